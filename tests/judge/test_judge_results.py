"""Results of annotation by people and of ratings by a language model."""

from __future__ import annotations

import csv
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from support.judged import METHODS
from support.saved import Cli

from prefheads.judge.llm import DIMENSIONS, Ratings
from prefheads.judge.pairs import Study
from prefheads.judge.results import WINS, agreement, human_results, majority, rating_rows
from prefheads.judge.store import TIE, Vote, Votes

CAD, DPS = METHODS


@pytest.mark.parametrize(
    "choices, winner",
    [
        ("a", "a"),
        ("aab", "a"),
        ("ab", TIE),
        ("at", TIE),
        ("abt", TIE),
        ("aabt", "a"),
        ("aabbt", TIE),
        ("tta", TIE),
    ],
)
def test_majority(choices: str, winner: str) -> None:
    assert majority([TIE if c == "t" else c for c in choices]) == winner


def test_win_rates(study: Study, tmp_path: Path) -> None:
    votes = Votes(tmp_path / "v", study)
    ballots = {"ann": [DPS] * 5 + [CAD, TIE], "ben": [DPS] * 4 + [CAD] * 2 + [DPS], "cid": [CAD]}
    for name, choices in ballots.items():
        for pair, choice in zip(study.pairs, choices, strict=False):
            votes.add(pair, name, choice, DPS)
    found = human_results(Votes(tmp_path / "v"))
    # s0: 2-1 dps; s1..s3: dps; s4: 1-1; s5: cad; s6: dps against tie; s7: open; s8, s9: the same
    rates = {name: e.mean for name, e in found.wins.items()}
    assert rates == pytest.approx({CAD: 1 / 9, DPS: 4 / 9, TIE: 4 / 9})
    assert found.difference.mean == pytest.approx(3 / 9)
    known = binomtest(4, 9).proportion_ci()
    assert (found.wins[DPS].low, found.wins[DPS].high) == pytest.approx((known.low, known.high))
    assert (found.pairs, found.same, found.open) == (10, 2, 1)
    assert found.votes == {"ann": 7, "ben": 7, "cid": 1}
    assert found.first_wins.mean == pytest.approx(10 / 14)
    assert found.first_wins.low < 0.5 < 10 / 14 < found.first_wins.high


def krippendorff_by_hand(ballots: list[list[str]]) -> float:
    """1 - observed / expected disagreement, from all pairs of votes."""
    kept = [b for b in ballots if len(b) > 1]
    observed = sum(
        (x != y) / (len(b) - 1)
        for b in kept
        for i, x in enumerate(b)
        for j, y in enumerate(b)
        if i != j
    )
    everyone = [x for b in kept for x in b]
    n = len(everyone)
    expected = sum(x != y for x in everyone for y in everyone) / (n - 1)
    return 1 - observed / expected


def test_agreement() -> None:
    ballots = [["a", "a", "b"], ["a"], ["b", "b"], ["t", "a"], ["t", "t", "t"], ["b", "b", "b"]]
    votes = [
        Vote(f"s{i}", f"n{j}", choice, "a", "")
        for i, ballot in enumerate(ballots)
        for j, choice in enumerate(ballot)
    ]
    assert agreement(votes, ("a", "b", "t")) == pytest.approx(krippendorff_by_hand(ballots))
    assert np.isnan(agreement(votes[3:4], ("a", "b", "t")))  # nobody to agree with
    assert np.isnan(agreement([v for v in votes if v.pair == "s4"], ("a", "b", "t")))


def test_results_on_the_command_line(cli: Cli, study: Study, tmp_path: Path) -> None:
    votes = Votes(tmp_path / "v", study)
    empty = cli("judge", "results", "--db", tmp_path / "v")
    assert empty.code == 2 and "no votes yet" in empty.err
    for i, pair in enumerate(study.differing):
        for name in ("ann", "ben"):
            votes.add(pair, name, CAD if i == 3 else DPS, CAD)
    told = cli("judge", "results", "--db", tmp_path / "v", "--csv", tmp_path / "votes.csv")
    assert told.code == 0 and "70.0 [" in told.out and "alpha 1.00" in told.out
    assert "2 pairs have the same text twice and count as ties" in told.out
    found = json.loads(cli("judge", "results", "--db", tmp_path / "v", "--json").out)
    assert found["wins"][DPS]["mean"] == 0.7 and found["wins"][CAD]["mean"] == 0.1
    rows = list(csv.DictReader((tmp_path / "votes.csv").open()))
    assert len(rows) == 16
    row = {"pair": "s3", "user_id": "u3", "annotator": "ann", "choice": CAD, "shown_first": CAD}
    assert row.items() <= rows[6].items()


def test_a_taken_port_is_told(cli: Cli, judged_run: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = ("--db", tmp_path / "v", "--port", taken.getsockname()[1])
        result = cli("judge", "serve", "--run", judged_run, "--methods", ",".join(METHODS), *where)
    assert result.code == 2 and result.err.endswith("Address already in use; give another --port\n")


@pytest.mark.parametrize(
    "arguments, part",
    [
        (("results", "--db", "absent"), "no such file"),
        (("serve", "--run", "absent", "--methods", "a,b", "--db", "v"), "holds no texts"),
        (("serve", "--run", "RUN", "--methods", "cad", "--db", "v"), "two different methods"),
        (("serve", "--run", "RUN", "--methods", ",".join(METHODS), "--db", "no/v"), "no/v"),
    ],
)
def test_bad_requests_are_told_in_a_line(
    cli: Cli, judged_run: Path, arguments: tuple[str, ...], part: str
) -> None:
    result = cli("judge", *(str(judged_run) if a == "RUN" else a for a in arguments))
    assert result.code == 2 and result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ") and part in line


def test_rows_of_the_table(study: Study) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(1, 6, (8, 2, 2, 5)).astype(float)
    rows = {r.name: r for r in rating_rows(Ratings(study, study.differing, scores, {}, 0, 0))}
    assert list(rows) == [WINS, *DIMENSIONS]
    wins = [0, 0]
    for pair in scores:
        a, b = (pair[:, m, DIMENSIONS.index("preference_alignment")].sum() for m in (0, 1))
        wins[0] += a > b
        wins[1] += b > a
    assert [e.mean for e in rows[WINS].means] == pytest.approx([w / 10 for w in wins])
    for i, name in enumerate(DIMENSIONS):
        a, b = scores[:, :, 0, i], scores[:, :, 1, i]  # (pairs, orders)
        row = rows[name]
        assert [e.mean for e in row.means] == pytest.approx([a.mean(), b.mean()])
        assert row.difference.mean == pytest.approx(b.mean() - a.mean())
        assert row.difference.low <= row.difference.mean <= row.difference.high
        shown_first = np.concatenate([a[:, 0], b[:, 1]]).mean()
        shown_second = np.concatenate([a[:, 1], b[:, 0]]).mean()
        assert row.bias is not None
        assert row.bias.mean == pytest.approx(shown_first - shown_second)
