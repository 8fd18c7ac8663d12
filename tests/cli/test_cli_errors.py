"""Data, models and runs that are wrong: one clear line, and nothing is overwritten."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import assert_one_error, contents, rows, write_rows
from support.saved import CONTEXT, byte_tokenizer, save_model
from transformers import BloomConfig, BloomForCausalLM

import prefheads
from prefheads import HeadWeights


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "other", num_hidden_layers=2)


def broken(tmp_path: Path, change: dict[str, Any]) -> Path:
    content = rows(4, 1)
    content[2] = {k: v for k, v in (content[2] | change).items() if v is not None}
    return write_rows(tmp_path / "broken.jsonl", content)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"input": None}, ("broken.jsonl:3", '"input" is missing')),
        ({"profile": None}, ("broken.jsonl:3", '"profile"')),
        ({"profile": []}, ("broken.jsonl:3", "empty profile")),
        ({"profile": [{"title": "x"}]}, ("broken.jsonl:3", '"text"')),
        ({"output": "  "}, ("broken.jsonl:3", "no response")),
        ({"output": "long " * CONTEXT}, ("2-0", "response alone", str(CONTEXT))),
        ({"input": "long " * CONTEXT}, ("2-0", "input alone", str(CONTEXT))),
        ({"id": "1-0"}, ("broken.jsonl:3", "twice")),
    ],
)
def test_bad_examples(cli, change, parts, tiny_folder: Path, tmp_path: Path) -> None:
    data, out = broken(tmp_path, change), tmp_path / "run"
    assert_one_error(cli("discover", "--model", tiny_folder, "--data", data, "--out", out), *parts)
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_fit_looks_at_calibration_samples_first(cli, tiny_folder: Path, tmp_path: Path) -> None:
    content = rows()
    _, held, _ = prefheads.split_users(prefheads.load_examples(content))
    bad = next(row for row in content if row["id"] == held[0].id)
    bad["output"] = "long " * CONTEXT
    data, out = write_rows(tmp_path / "long.jsonl", content), tmp_path / "run"
    result = cli("fit", "--model", tiny_folder, "--data", data, "--out", out)
    assert_one_error(result, "response alone", held[0].id)
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_malformed_line_is_named(cli, tiny_folder: Path, people_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(people_file.read_text().splitlines()[0] + "\n{not json\n")
    result = cli("discover", "--model", tiny_folder, "--data", path, "--out", tmp_path / "run")
    assert_one_error(result, "bad.jsonl:2", "not JSON")


def test_missing_data(cli, tiny_folder: Path, tmp_path: Path) -> None:
    result = cli(
        "fit", "--model", tiny_folder, "--data", tmp_path / "none", "--out", tmp_path / "run"
    )
    assert_one_error(result, "no such file")
    assert not (tmp_path / "run").exists()


def test_missing_model(cli, people_file: Path, tmp_path: Path) -> None:
    result = cli(
        "discover", "--model", tmp_path / "no", "--data", people_file, "--out", tmp_path / "run"
    )
    assert_one_error(result, "no such model folder")


@pytest.mark.parametrize("kind", ["t5", "bloom", "nonesuch"])
def test_models_that_cannot_be_handled(cli, kind: str, people_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / kind
    if kind == "bloom":
        BloomForCausalLM(
            BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4)
        ).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    else:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    result = cli("discover", "--model", folder, "--data", people_file, "--out", tmp_path / "run")
    assert_one_error(result, {"bloom": "BloomForCausalLM"}.get(kind, kind))


def nan_weights(tiny_folder: Any) -> None:
    tiny_folder.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan


def test_nan_in_the_model(
    cli, people_file: Path, discovered: Path, profile_file: Path, tmp_path: Path
) -> None:
    folder, out = save_model(tmp_path / "nan", nan_weights), tmp_path / "run"
    where = ("--model", folder, "--data", people_file, "--out", out)
    assert_one_error(cli("discover", *where, "--quiet"), "not finite")
    assert not list(out.glob("*.safetensors"))
    ask = ("generate", "--model", folder, "--run", discovered, "--profile", profile_file)
    for how in ((), ("--sample",)):
        result = cli(*ask, "--prompt", "Go", "--gamma", 0.5, *how)
        assert_one_error(result, "not finite")


@pytest.mark.parametrize("value", ["nan", "wrong shape", "truncated", "text"])
def test_damaged_heads(
    cli, value: str, tiny_folder: Path, discovered: Path, profile_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "heads.safetensors"
    whole = (discovered / "heads.safetensors").read_bytes()
    if value == "nan":
        heads = HeadWeights.load(discovered / "heads.safetensors")
        heads.values[1, 2] = torch.nan
        heads.save(path)
    elif value == "wrong shape":
        HeadWeights(torch.ones(2, 4)).save(path)
    else:
        path.write_bytes(whole[:-5] if value == "truncated" else b"hello")
    before = contents(tmp_path)
    ask = (
        "generate",
        "--model",
        tiny_folder,
        "--run",
        tmp_path,
        "--profile",
        profile_file,
        "--prompt",
        "Go",
    )
    assert_one_error(cli(*ask, "--gamma", 0.5), "heads.safetensors")
    assert contents(tmp_path) == before


def test_heads_of_another_model(
    cli, other_model: Path, discovered: Path, profile_file: Path
) -> None:
    ask = ("generate", "--model", other_model, "--run", discovered, "--profile", profile_file)
    assert_one_error(cli(*ask, "--prompt", "Go", "--gamma", 0.5), "made for the model")


@pytest.mark.parametrize("command", ["generate", "validate", "fit", "discover"])
def test_runs_of_another_model(
    cli, command: str, other_model: Path, people_file: Path, fitted: Path, profile_file: Path
) -> None:
    before = contents(fitted)
    more = {
        "generate": ("--run", fitted, "--profile", profile_file, "--prompt", "Go"),
        "validate": ("--run", fitted, "--data", people_file),
        "fit": ("--out", fitted, "--data", people_file),
        "discover": ("--out", fitted, "--data", people_file),
    }
    assert_one_error(cli(command, "--model", other_model, *more[command]), str(fitted))
    assert contents(fitted) == before


def test_other_options_do_not_overwrite(
    cli, tiny_folder: Path, people_file: Path, discovered: Path
) -> None:
    before = contents(discovered)
    where = ("--model", tiny_folder, "--data", people_file, "--out", discovered)
    assert_one_error(cli("discover", *where, "--target", "profile"), "target", "another folder")
    assert_one_error(cli("fit", *where), "another")
    assert contents(discovered) == before


def test_other_data_does_not_overwrite(
    cli, tiny_folder: Path, discovered: Path, tmp_path: Path
) -> None:
    before = contents(discovered)
    data = write_rows(tmp_path / "other.jsonl", rows(4))
    result = cli("discover", "--model", tiny_folder, "--data", data, "--out", discovered)
    assert_one_error(result, "another folder")
    assert contents(discovered) == before


@pytest.mark.parametrize(
    "name", ["steerer.json", "steerer.safetensors", "scores-head.safetensors", "validation.json"]
)
@pytest.mark.parametrize("content", [b"", b"\x00\xff broken", b"{}"])
def test_damaged_runs(
    cli,
    name: str,
    content: bytes,
    tiny_folder: Path,
    fitted: Path,
    people_file: Path,
    tmp_path: Path,
) -> None:
    for path in fitted.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(content)
    before = contents(tmp_path)
    assert_one_error(cli("inspect", tmp_path), name)
    if name != "validation.json":
        ask = ("validate", "--model", tiny_folder, "--run", tmp_path, "--data", people_file)
        assert_one_error(cli(*ask), str(tmp_path))
    assert contents(tmp_path) == before


def test_inspect_of_nothing(cli, tmp_path: Path) -> None:
    assert_one_error(cli("inspect", tmp_path), "holds no finished run")
    assert_one_error(cli("inspect", tmp_path / "no"), "holds no finished run")
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("command", ["discover", "fit"])
def test_output_that_is_a_file(
    cli,
    command: str,
    tiny_folder: Path,
    people_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("prefheads.cli.session.load_model", never)
    (tmp_path / "run").write_text("mine")
    result = cli(command, "--model", tiny_folder, "--data", people_file, "--out", tmp_path / "run")
    assert_one_error(result, "not a folder to write to")
    assert (tmp_path / "run").read_text() == "mine"


def test_full_disk(
    cli, tiny_folder: Path, people_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prefheads.storage.os.fsync", full)
    where = ("--model", tiny_folder, "--data", people_file, "--out", tmp_path, "--quiet")
    assert_one_error(cli("discover", *where), "No space left")
    monkeypatch.undo()
    monkeypatch.setattr(prefheads, "discover", full)
    assert_one_error(cli("discover", *where), "No space left", "same command again")


def test_results_that_no_command_wrote_are_not_overwritten(
    cli, tiny_folder: Path, people_file: Path, tmp_path: Path
) -> None:
    HeadWeights(torch.ones(3, 4)).save(tmp_path / "heads.safetensors")
    before = (tmp_path / "heads.safetensors").read_bytes()
    result = cli("discover", "--model", tiny_folder, "--data", people_file, "--out", tmp_path)
    assert result.code == 2 and "holds results of something else" in result.err
    assert (tmp_path / "heads.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("command", "library"),
    [
        ("eval", "sentence_transformers"),
    ],
)
def test_a_missing_library_is_told_before_the_model_is_loaded(
    cli, monkeypatch, command: str, library: str, tiny_folder: Path, people_file: Path,
    lamp_folder: Path, discovered: Path, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr("prefheads.cli.session.load", lambda *a: pytest.fail("loaded"))
    where = ("--model", tiny_folder, "--data")
    asked = {
        "fit": (*where, people_file, "--out", tmp_path / "run"),
        "eval": (*where, lamp_folder, "--out", tmp_path / "run", "--methods", "dps"),
        "analyze": (discovered, *where, people_file),
    }
    assert_one_error(cli(command, *asked[command]), f"{library} is not installed")
    assert not (tmp_path / "run").exists()
