"""The head sets and settings that calibration tries."""

from __future__ import annotations

import pytest

from prefheads.calibration.headsets import candidates, grid, head_sets
from prefheads.report.statistics.sweeps import head_set
from prefheads.steering.setting import PLAIN


def test_the_default_grid_holds_every_form_and_plain_once():
    settings = grid(["a", "b"])
    assert settings.count(PLAIN) == 1 and settings[0] == PLAIN
    forms = {(s.mode, s.target) for s in settings[1:]}
    assert forms == {(m, t) for m in ("contrast", "amplify") for t in ("head", "profile")}
    assert len(set(settings)) == len(settings)


def test_sets_of_heads_are_named_by_their_share_as_it_is(monkeypatch):
    monkeypatch.setattr("prefheads.calibration.headsets.SIZES", (0.005, 0.015, 0.07))
    named = ["top 0.5% by profile PCS", "top 1.5% by profile PCS", "top 7% by profile PCS"]
    assert [s.name for s in head_sets(("profile",))] == named
    assert [head_set(name) for name in named] == [
        ("profile", pytest.approx(share)) for share in (0.005, 0.015, 0.07)
    ]


def test_the_papers_form_is_tried_over_k_and_gamma():
    tried = [s for s in candidates() if s.of_paper]
    assert {s.heads for s in tried} == {f"top {k}% by head PCS" for k in (1, 2, 4, 8, 16)} | {
        f"top {k}% by profile PCS" for k in (4, 8)
    }
    for heads in ("top 1% by head PCS", "top 16% by head PCS"):
        for schedule in ("constant", "entropy"):
            gammas = [s.gamma for s in tried if (s.heads, s.schedule) == (heads, schedule)]
            assert gammas == [0.05, 0.1, 0.25, 0.5, 1.0, 2.0]
    assert len(set(candidates())) == len(candidates())
