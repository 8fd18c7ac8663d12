"""Every interval that is printed covers what it says, by simulation with few draws.

`python -m benchmarks coverage` does the same with many; docs/science.md has its table.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.coverage import KINDS, coverage, table

# What few users cannot have by the percentile bootstrap: it covers 50 %, 83 % and 90 % at 2, 5, 10.
EXACT = [
    "mean, normal",
    "mean, normal, four samples a user",
    "perplexity",
]
AT_LEAST = [
    "mean, normal, one user with half of the samples",
    *(name for name in KINDS if name.startswith(("share of 0", "difference of shares"))),
    "Gini coefficient of a map",
    "share of the top heads",
]


@pytest.mark.parametrize("n_users", [2, 5, 10, 20])
@pytest.mark.parametrize("name", EXACT)
def test_intervals_cover_as_often_as_they_say(name: str, n_users: int) -> None:
    draws = 200 if name == "perplexity" else 2000
    assert coverage(KINDS[name], n_users, draws) == pytest.approx(0.95, abs=8 / draws**0.5 / 10)


@pytest.mark.parametrize("n_users", [2, 5, 20])
@pytest.mark.parametrize("name", AT_LEAST)
def test_intervals_of_bounded_figures_cover_at_least_as_often(name: str, n_users: int) -> None:
    assert coverage(KINDS[name], n_users, 200) >= 0.92


@pytest.mark.parametrize(("name", "least"), [("mean, skewed (exponential)", 0.85), ("RMSE", 0.78)])
def test_skewed_users_cost_some_coverage_but_not_what_the_bootstrap_does(
    name: str, least: float
) -> None:
    assert all(coverage(KINDS[name], n, 300) > least for n in (5, 10, 20))


@pytest.mark.parametrize("name", ["overlap of pairs of users", "rank correlation of two maps"])
def test_users_in_pairs_and_ranks(name: str) -> None:
    assert coverage(KINDS[name], 5, 150) >= 0.91
    assert np.isnan(coverage(KINDS["overlap of pairs of users"], 3, 5))


def test_six_verdicts_are_wrong_of_all_as_seldom_as_one() -> None:
    assert coverage(KINDS["no verdict of six, normal"], 8, 2000) == pytest.approx(0.95, abs=0.02)


def test_the_bootstrap_would_not_pass() -> None:
    found = [coverage(KINDS["for comparison: percentile bootstrap, normal"], n, 1000)
             for n in (2, 5, 10)]  # fmt: skip
    assert found == pytest.approx([0.5, 0.83, 0.9], abs=0.03)


def test_heads_that_do_nothing_exclude_zero_as_often_as_stated() -> None:
    """What the page says of a map: about 5 % of heads by chance, of few users too."""
    import torch

    from prefheads.heads.scores import HeadScores

    for n_users in (6, 20):
        values = torch.randn(3 * n_users, 40, 50, generator=torch.Generator().manual_seed(n_users))
        users = tuple(f"u{i // 3}" for i in range(3 * n_users))
        own = torch.randn(n_users, 40, 50, generator=torch.Generator().manual_seed(1))
        values = values + own.repeat_interleave(3, dim=0)
        scores = HeadScores(values, torch.ones(3 * n_users), users_of(values), users)
        low, high = scores.interval()
        assert ((low > 0) | (high < 0)).float().mean().item() == pytest.approx(0.05, abs=0.015)


def users_of(values) -> tuple[str, ...]:
    return tuple(f"e{i}" for i in range(len(values)))


def test_the_table_has_a_line_a_kind(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    few = {name: KINDS[name] for name in ("mean, normal", "overlap of pairs of users")}
    monkeypatch.setattr("benchmarks.coverage.KINDS", few)
    monkeypatch.setattr("benchmarks.coverage.USERS", (2, 5))
    table(40, 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["| users | 2 | 5 |", "| --- | --- | --- |"]
    assert (
        lines[2].startswith("| mean, normal | 9")
        and lines[3].startswith("| overlap")
        and ("|  | " in lines[3])
    )
