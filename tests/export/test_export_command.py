"""`prefheads export`: from a run or a file of heads to folders that others load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import assert_one_error, rows, write_rows
from support.exported import (
    SOFT,
    answers,
    assert_same,
    reloaded,
    steered,
)
from support.saved import save_model

import prefheads as ph
from prefheads.cli.main import run
from prefheads.heads.scores import Provenance, fingerprint
from prefheads.heads.weights import HeadWeights
from prefheads.storage import load_tensors, save_tensors


@pytest.fixture(scope="module")
def exportable(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run calibrated to what can be exported, with two clusters."""
    out = tmp_path_factory.mktemp("runs") / "fitted"
    data = write_rows(out.parent / "people.jsonl", rows(12, 1))
    how = ["--mode", "amplify", "--target", "head", "--scope", "all"]
    where = ["--model", str(tiny_folder), "--data", str(data), "--out", str(out)]
    assert run(["fit", *where, *how, "--clusters", "2", "--min-samples", "1"]) == 0
    return out


def calibrated(run_folder: Path, to: Path, **setting: object) -> Path:
    """A copy of a run, as if calibration had chosen this; plain if nothing is given."""
    shutil.copytree(run_folder, to)
    data = json.loads((to / "steerer.json").read_text())
    data["calibration"]["chosen"] = 1 if setting else 0
    data["calibration"]["settings"][1] |= setting
    (to / "steerer.json").write_text(json.dumps(data))
    return to


def test_fit_can_be_kept_to_what_can_be_exported(exportable: Path) -> None:
    record = json.loads((exportable / "run.json").read_text())
    assert (record["options"]["mode"], record["options"]["target"]) == ("amplify", "head")
    tried = json.loads((exportable / "steerer.json").read_text())["calibration"]["settings"]
    assert len(tried) == 13
    assert {(s["mode"], s["target"]) for s in tried} == {("amplify", "head")}


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_fitted_run_gives_one_folder_a_cluster(
    cli, form: str, tiny_folder: Path, exportable: Path, tmp_path: Path
) -> None:
    source = calibrated(exportable, tmp_path / "run", gamma=1.5)
    out = tmp_path / "out"
    result = cli("export", source, "--model", tiny_folder, "--format", form, "--out", out, "--json")
    assert (result.code, result.err) == (0, "")
    model, tokenizer = ph.load_model(tiny_folder)
    steerer = ph.PreferenceSteerer.load(source, model, tokenizer)
    assert len(steerer.maps) == 2
    for i, heads in enumerate(steerer.maps):
        wanted = steered(model, heads, 1.5)
        if form == "peft":
            found = reloaded(model, out / f"cluster-{i}")
        else:
            found = ph.load_model(out / f"cluster-{i}")[0]
        assert_same(answers(found), wanted)
    report = json.loads(result.out)
    assert [x["folder"] for x in report["written"]] == [str(out / f"cluster-{i}") for i in (0, 1)]
    assert report["gamma"] == 1.5


def test_cluster_without_heads_is_told(
    cli, tiny_folder: Path, exportable: Path, tmp_path: Path
) -> None:
    source = calibrated(exportable, tmp_path / "run", gamma=1.5)
    tensors, meta = load_tensors(source / "steerer.safetensors", "steerer")
    tensors["maps"][0] = 0
    save_tensors(source / "steerer.safetensors", tensors, "steerer", meta)
    where = ("--model", tiny_folder, "--format", "peft", "--out", tmp_path / "out")
    result = cli("export", source, *where)
    assert result.code == 0 and "plain and not written: cluster-0" in result.out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["cluster-1"]


def test_heads_of_a_file_need_a_strength(cli, tiny_folder: Path, tmp_path: Path) -> None:
    config = ph.load_model(tiny_folder)[0].config
    info = Provenance(fingerprint=fingerprint(config), scope="response")
    HeadWeights(SOFT.values, info).save(tmp_path / "heads.safetensors")
    where = ("--model", tiny_folder, "--format", "peft")
    for source in (tmp_path / "heads.safetensors", tmp_path):
        result = cli("export", source, *where, "--out", tmp_path / "none")
        assert_one_error(result, "no calibrated strength", "--gamma")
    options = (*where, "--gamma", 2, "--max-rank", 3, "--out", tmp_path / "out")
    result = cli("export", tmp_path, *options)
    assert result.code == 0
    (note,) = result.err.splitlines()
    assert note.startswith("note: ") and "fit with that scope" in note
    error = json.loads((tmp_path / "out" / "prefheads.json").read_text())["error"]
    assert f"rank 3, relative error {error:.3g}" in result.out
    assert "model.layers.2.self_attn.o_proj" in result.out


def test_what_is_no_change_of_weights_is_refused(
    cli, tiny_folder: Path, exportable: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    where = ("--model", tiny_folder, "--format", "peft", "--out", out)
    for name, change in {"a": {"mode": "contrast"}, "b": {"target": "profile"}}.items():
        source = calibrated(exportable, tmp_path / name, gamma=1.0, **change)
        for options in ((), ("--gamma", 1)):
            result = cli("export", source, *where, *options)
            assert_one_error(result, "--mode amplify --target head --scope all")
    plain = calibrated(exportable, tmp_path / "plain")
    assert_one_error(cli("export", plain, *where), "no steering that helps", "--gamma")
    assert cli("export", plain, *where, "--gamma", 0.5).code == 0


def test_bad_command_lines(cli, tiny_folder: Path, exportable: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", num_hidden_layers=2)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    good = {"--model": tiny_folder, "--format": "peft", "--out": tmp_path / "out", "--gamma": 1}
    for source, change, part in (
        (tmp_path / "none", {}, "no such file"),
        (tmp_path / "taken", {}, "holds no run"),
        (exportable, {"--model": other}, "was fitted for"),
        (exportable, {"--out": tmp_path / "taken"}, "exists already"),
        (exportable, {"--format": "merged", "--max-rank": 4}, "--max-rank"),
        (exportable, {"--max-rank": 0}, "--max-rank"),
        (exportable, {"--gamma": -1}, "at least 0"),
        (exportable, {"--gamma": "inf"}, "at least 0"),
        (exportable, {"--format": "gguf"}, "--format"),
    ):
        options = [x for pair in (good | change).items() for x in pair]
        assert_one_error(cli("export", source, *options), part)
        assert not (tmp_path / "out").exists()
