"""Blinded pairs of the texts of an evaluation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.judged import BAD, GOOD, METHODS, TASK, record, write_run
from support.lamp_files import write_task
from support.saved import Cli, save_model

from prefheads.data.example import load_examples
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.records import Records
from prefheads.judge.pairs import Study, load_study

CAD, DPS = METHODS


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
