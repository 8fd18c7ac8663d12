"""Pairs, votes and results of annotation by people."""

from __future__ import annotations

import csv
import json
import re
import socket
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from support.judged import BAD, GOOD, METHODS, TASK, record, write_run
from support.lamp_files import write_task
from support.saved import Cli, save_model

from prefheads.data.example import load_examples
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.records import Records
from prefheads.judge.pairs import Study, load_study
from prefheads.judge.results import agreement, human_results, majority
from prefheads.judge.store import TIE, Vote, Votes

CAD, DPS = METHODS


# --- pairs


def test_pairs_are_what_both_methods_wrote(study: Study) -> None:
    assert (study.task, study.methods) == (TASK, METHODS)
    assert [p.id for p in study.pairs] == [f"s{i}" for i in range(10)]
    first = study.pairs[0]
    assert first.texts == (f"{BAD} text 0", f"{GOOD} text 0")
    assert first.profile == ({"text": "what <b>user 0</b> & co wrote"},)  # as the prompt shows it
    assert [p.id for p in study.pairs if p.same] == ["s8", "s9"]
    assert len(study.differing) == 8


def test_methods_in_another_order_give_the_texts_in_that_order(
    judged_run: Path, study: Study
) -> None:
    turned = load_study(judged_run, METHODS[::-1])
    assert [p.texts for p in turned.pairs] == [p.texts[::-1] for p in study.pairs]


def test_a_sample_is_fixed_by_the_seed(tmp_path: Path) -> None:
    run = write_run(tmp_path, 30)
    ids = [[p.id for p in load_study(run, METHODS, n=6, seed=s).pairs] for s in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 6


def test_unfinished_samples_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, 3)
    Records(run / TASK / "records.jsonl").add([record("s1", "dola", "only here")])
    assert [p.id for p in load_study(run, [CAD, "dola"]).pairs] == ["s1"]


def test_order_is_a_coin_for_each_pair_and_judge(tmp_path: Path) -> None:
    study = load_study(write_run(tmp_path, 400), METHODS, n=400)
    flips = {name: [study.swapped(p, name) for p in study.pairs] for name in ("ann", "ben")}
    for side in flips.values():
        assert 150 < sum(side) < 250
    assert 150 < sum(a == b for a, b in zip(*flips.values(), strict=True)) < 250
    again = load_study(tmp_path, METHODS, n=400)
    assert [again.swapped(p, "ann") for p in again.pairs] == flips["ann"]


@pytest.mark.parametrize(
    "methods, task, part",
    [
        (["cad"], None, "two different methods"),
        (["cad", "cad"], None, "two different methods"),
        (["cad", "dsp"], None, "no texts of dsp; there are cad, dps:gamma=0.5"),
        (METHODS, "LaMP-4", "no texts of LaMP-4; there are LaMP-7"),
    ],
)
def test_what_is_not_there_is_told(
    judged_run: Path, methods: list[str], task: str | None, part: str
) -> None:
    with pytest.raises(DataError, match=re.escape(part)):
        load_study(judged_run, methods, task)


def test_runs_that_cannot_be_judged_are_told(judged_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no texts"):
        load_study(tmp_path / "nothing", METHODS)
    write_run(judged_run, 2, task="LaMP-4")
    with pytest.raises(DataError, match="name the --task; there are LaMP-4, LaMP-7"):
        load_study(judged_run, METHODS)
    assert len(load_study(judged_run, METHODS, "lamp_7").pairs) == 10
    (judged_run / "LaMP-7" / "samples.jsonl").unlink()
    with pytest.raises(ArtifactError, match=r"no samples.jsonl; run the same"):
        load_study(judged_run, METHODS, "LaMP-7")


def test_a_run_of_eval_can_be_judged(cli: Cli, tmp_path: Path) -> None:
    """With the profiles as the model saw them: cut to the prompt's length."""
    data, model = write_task(tmp_path / "lamp", "LaMP_7", 6), save_model(tmp_path / "model")
    some = ("--methods", "plain,cad", "--measure", "texts", "--max-new-tokens", 5, "--limit", 4)
    out = ("--out", tmp_path / "run", "--prompt-length", 130)
    done = cli("eval", "--model", model, "--data", data, *out, *some)
    assert done.code == 0, done.err
    study = load_study(tmp_path / "run", ["plain", "cad"])
    assert len(study.pairs) == 4
    records = Records(tmp_path / "run" / TASK / "records.jsonl").done
    samples = {e.id: e for e in load_examples(data)}
    for pair in study.pairs:
        whole = samples[pair.id]
        assert (pair.user_id, pair.input) == (whole.user_id, whole.input)
        assert pair.texts == tuple(records[m, pair.id].prediction for m in ("plain", "cad"))
        for item, full in zip(pair.profile, whole.profile, strict=True):
            assert item["text"] != full["text"] and full["text"].startswith(item["text"])


# --- votes


def test_the_first_vote_counts_and_is_kept(study: Study, tmp_path: Path) -> None:
    votes, (pair, other, *_) = Votes(tmp_path / "v", study), study.pairs
    for choice in (DPS, CAD, TIE):
        votes.add(pair, "ann", choice, CAD)
    votes.add(pair, "ben", TIE, DPS)
    votes.add(other, "ann", CAD, DPS)
    again = Votes(tmp_path / "v", study)
    kept = [(v.pair, v.annotator, v.choice, v.first) for v in again.all()]
    assert kept == [("s0", "ann", DPS, CAD), ("s0", "ben", TIE, DPS), ("s1", "ann", CAD, DPS)]
    assert again.voted("ann") == ["s0", "s1"] and again.voted("cid") == []
    again.remove(pair, "ann")
    again.remove(pair, "ann")
    assert votes.voted("ann") == ["s1"]


def test_votes_on_something_else_are_not_mixed(
    judged_run: Path, study: Study, tmp_path: Path
) -> None:
    Votes(tmp_path / "v", study)
    others = [
        (load_study(judged_run, METHODS[::-1]), "methods"),
        (load_study(judged_run, METHODS, seed=1), "pairs"),
        (load_study(judged_run, METHODS, n=4), "pairs"),
        (replace(study, task="LaMP-4"), "tasks"),
        (replace(study, pairs=(replace(study.pairs[0], input="?"), *study.pairs[1:])), "pairs"),
    ]
    for other, part in others:
        with pytest.raises(ArtifactError, match=f"other {part}"):
            Votes(tmp_path / "v", other)


def test_files_of_another_kind_are_refused_and_stay(study: Study, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be one " * 9)
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t (x)")
    other.close()
    for name in ("text", "other", "", "no/folder"):
        path = tmp_path / name
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(ArtifactError):
            Votes(path, study)
        assert (path.read_bytes() if path.is_file() else None) == before
    with pytest.raises(ArtifactError, match="no such file"):
        Votes(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


# --- results


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
