"""`fit`, then `validate` and `eval --fitted`, on files that name nobody: who is left to test on,
and with which profiles."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from support.compared import ask

from prefheads.cli.main import run

LOADING = ("--items", 1)


@pytest.fixture(scope="module")
def data(lamp_folder: Path) -> Path:
    return lamp_folder / "LaMP_7"


@pytest.fixture(scope="module")
def fitted(tiny_folder: Path, data: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "fit"
    few = ("--discovery", 4, "--calibration", 3, "--min-samples", 1, "--clusters", 1, "--limit", 16)
    command = ("fit", "--model", tiny_folder, "--data", data, "--out", out)
    assert run([str(a) for a in (*command, *few, *LOADING, "--quiet")]) == 0
    return out


def test_a_fit_keeps_whom_it_saw(fitted: Path) -> None:
    seen = json.loads((fitted / "seen.json").read_text())
    users = json.loads((fitted / "steerer.json").read_text())["users"]
    assert sorted(users["discovery"] + users["calibration"]) == seen["users"] == seen["samples"]


def test_validation_is_of_the_unseen_alone_in_any_order(
    cli, tiny_folder: Path, data: Path, fitted: Path, tmp_path: Path
) -> None:
    seen = set(json.loads((fitted / "seen.json").read_text())["samples"])
    shuffled = tmp_path / "LaMP_7"
    shutil.copytree(data, shuffled)
    rows = json.loads((shuffled / "dev_questions.json").read_text())
    random.Random(0).shuffle(rows)
    (shuffled / "dev_questions.json").write_text(json.dumps(rows))
    command = ("validate", "--model", tiny_folder, "--run", fitted, "--json", "--quiet", "--data")
    for where in (data, shuffled):
        found = json.loads(cli(*command, where).out)
        assert sorted(found["example_ids"]) == sorted({r["id"] for r in rows} - seen)
        assert found["left_out"] == len(seen)
    few = json.loads(cli(*command, data, "--limit", 3).out)  # of those unseen, not of all
    assert len(few["example_ids"]) == 3 and not set(few["example_ids"]) & seen
    assert few["left_out"] == len(seen)


def test_profiles_are_those_of_the_fit(
    cli, tiny_folder: Path, data: Path, fitted: Path, tmp_path: Path
) -> None:
    command = ("validate", "--model", tiny_folder, "--run", fitted, "--data", data, "--quiet")
    for other in (("--items", 2), ("--retrieval", "random")):
        refused = cli(*command, *other)
        name, value = other
        assert refused.code == 2 and f"with {name} " in refused.err
        assert f"not {value}" in refused.err and refused.err.count("\n") == 1
    assert cli(*command, *LOADING, "--limit", 2).code == 0
    some = ("--methods", "plain,dps", "--measure", "likelihood", "--fitted", fitted, "--limit", 3)
    evaluate = ask(tiny_folder, data, tmp_path / "eval", "--task", "LaMP-7", *some, "--quiet")
    refused = cli(*evaluate)
    assert refused.code == 2 and "with --items 1, not 5" in refused.err
    assert cli(*evaluate, *LOADING).code == 0
    seen = set(json.loads((fitted / "seen.json").read_text())["samples"])
    lines = (tmp_path / "eval" / "LaMP-7" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 3 and not {json.loads(line)["id"] for line in lines} & seen


def test_fits_of_before_still_load(
    cli, tiny_folder: Path, data: Path, fitted: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(fitted, old)
    (old / "seen.json").unlink()
    command = ("validate", "--model", tiny_folder, "--data", data, "--limit", 2, "--quiet")
    told = cli(*command, "--run", old)
    assert told.code == 0 and "of an older version" in told.err
    (old / "seen.json").write_text('{"samples": []}')
    damaged = cli(*command, "--run", old)
    assert damaged.code == 2 and "seen.json: damaged" in damaged.err
