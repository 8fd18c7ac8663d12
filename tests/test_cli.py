"""The command line: every command on a tiny model, and one clear line for everything wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import CONTEXT, Result, byte_tokenizer, save_model
from transformers import BloomConfig, BloomForCausalLM

import prefheads
from prefheads import HeadScores, HeadWeights
from prefheads.cli import session
from prefheads.cli.main import run

TOPICS = {"cook": "A stew of beans, onions and garlic.", "sail": "The wind at sea, a reef, a rope."}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "other", num_hidden_layers=2)


def rows(n_users: int = 12, each: int = 2) -> list[dict[str, Any]]:
    """Examples of users who write of one of two things."""
    found = []
    for user in range(n_users):
        topic = list(TOPICS)[user % 2]
        for i in range(each):
            found.append(
                {
                    "id": f"{user}-{i}",
                    "user_id": f"{topic}-{user}",
                    "profile": [{"text": TOPICS[topic]}, {"text": f"{topic} {user}"}],
                    "input": f"Write {i}",
                    "output": f"{topic} {i}",
                }
            )
    return found


def write_rows(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "people.jsonl", rows())


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile.txt"
    path.write_text("Beans again.\n\nGarlic, as ever.\n")
    return path


@pytest.fixture(scope="session")
def discovered(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "discovered"
    code = run(["discover", "--model", str(model), "--data", str(data), "--out", str(out)])
    assert code == 0
    return out


@pytest.fixture(scope="session")
def fitted(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "fitted"
    where = ["--model", str(model), "--data", str(data), "--out", str(out)]
    assert run(["fit", *where, "--clusters", "2", "--min-samples", "1"]) == 0
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_one_error(result: Result, *parts: str) -> None:
    """Exit code 2, nothing on stdout, and one line on stderr that says all these things."""
    assert result.code == 2
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


# --- each command, end to end


def test_discover_writes_scores_and_heads(cli, model: Path, data: Path, tmp_path: Path) -> None:
    result = cli("discover", "--model", model, "--data", data, "--out", tmp_path, "--fraction", 0.3)
    assert (result.code, result.err) == (0, "")
    scores = HeadScores.load(tmp_path / "scores.safetensors")
    assert scores.shape == (24, 3, 4)
    heads = HeadWeights.load(tmp_path / "heads.safetensors")
    assert heads == scores.top(fraction=0.3)
    layer, head, mean, stderr = scores.ranked()[0]
    assert f"{layer}.{head}" in result.out
    assert f"{1000 * mean:+.2f}" in result.out and f"{1000 * stderr:.2f}" in result.out
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["command"] == "discover" and record["options"]["target"] == "head"


def test_discover_passes_its_options_on(cli, model: Path, data: Path, tmp_path: Path) -> None:
    options = ("--target", "profile", "--scope", "all", "--reference", "other-profile")
    run_of = ("discover", "--model", model, "--data", data, "--out", tmp_path, "--limit", 4)
    result = cli(*run_of, *options, "--seed", 3, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert (found["n_examples"], found["shape"], len(found["heads"])) == (4, [3, 4], 12)
    info = HeadScores.load(tmp_path / "scores.safetensors").info
    assert (info.target, info.scope, info.reference, info.seed) == (
        "profile", "all", "other-profile", 3,
    )  # fmt: skip


def test_same_command_again_changes_nothing(cli, model: Path, data: Path, discovered: Path) -> None:
    before = contents(discovered)
    assert cli("discover", "--model", model, "--data", data, "--out", discovered).code == 0
    assert {k: v for k, v in contents(discovered).items() if k in before} == before


def test_killed_discovery_resumes(
    model: Path, data: Path, discovered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["discover", "--model", str(model), "--data", str(data), "--out", str(out)]
    script = f"""
import os, signal, sys
from prefheads import checkpoint
from prefheads.cli.main import main
checkpoint.SAVE_AFTER = 0
add = checkpoint.Checkpoint.add
def counted(self, **row):
    add(self, **row)
    if len(self.rows) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    print("scored", file=sys.stderr)
checkpoint.Checkpoint.add = counted
main({command!r})
"""
    environment = os.environ | {"PYTHONPATH": str(Path(prefheads.__file__).parents[1])}

    def start(kill_at: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, str(kill_at)],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    killed = start(7)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "scores.safetensors").exists()
    resumed = start(-1)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("scored") == 24 - 7
    whole = HeadScores.load(discovered / "scores.safetensors")
    assert HeadScores.load(out / "scores.safetensors") == whole


def test_interrupt_says_how_to_go_on(
    cli, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prefheads, "discover", interrupted)
    result = cli("discover", "--model", model, "--data", data, "--out", tmp_path)
    assert result.code == 130
    (line,) = result.err.splitlines()
    assert "the same command goes on" in line


def test_fit_chooses_clusters_and_a_setting(cli, model: Path, data: Path, fitted: Path) -> None:
    where = ("--model", model, "--data", data, "--out", fitted)
    result = cli("fit", *where, "--clusters", 2, "--min-samples", 1, "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert len(found["clusters"]) == 2 and sum(found["clusters"]) == 6
    assert found["users"] == {"discovery": 6, "calibration": 3, "test": 3}
    assert found["calibration"]["n_users"] == 3


def test_fit_prints_the_curve(cli, model: Path, data: Path, tmp_path: Path) -> None:
    where = ("--model", model, "--data", data, "--out", tmp_path)
    options = ("--discovery", 4, "--calibration", 4, "--split", "0.4,0.4,0.2")
    result = cli("fit", *where, *options, "--objective", "specificity")
    assert (result.code, result.err) == (0, "")
    for part in ("Clusters of users", "Calibration: 4 samples", "plain (no steering)", "chosen"):
        assert part in result.out


def test_validate_counts_what_it_leaves_out(cli, model: Path, data: Path, fitted: Path) -> None:
    result = cli("validate", "--model", model, "--run", fitted, "--data", data)
    assert (result.code, result.err) == (0, "")
    assert "18 of 24 samples were left out: their users took part in fitting" in result.out
    assert "hown: " in result.out or "chose plain decoding" in result.out
    saved = json.loads((fitted / "validation.json").read_text())
    assert len(saved["example_ids"]) == 6
    found = json.loads(
        cli("validate", "--model", model, "--run", fitted, "--data", data, "--json").out
    )
    assert found["left_out"] == 18 and found["nll"] == saved["nll"]
    # Other data in the same folder is no resumption of the first.
    assert cli("validate", "--model", model, "--run", fitted, "--data", data, "--seed", 1).code == 0


def test_generate_with_a_fitted_run(cli, model: Path, fitted: Path, profile: Path) -> None:
    ask = ("generate", "--model", model, "--run", fitted, "--profile", profile, "--prompt", "Go")
    some = ("--max-new-tokens", 8, "--json")
    plain = json.loads(cli(*ask, *some, "--gamma", 0).out)
    both = cli(*ask, *some, "--gamma", 3, "--mode", "amplify", "--target", "head", "--compare")
    assert (both.code, both.err) == (0, "")
    found = json.loads(both.out)
    assert found["plain"] == plain["steered"] != found["steered"]
    shown = cli(*ask, "--max-new-tokens", 8, "--compare", "--gamma", 1, "--routing", "hard")
    assert shown.code == 0 and "plain" in shown.out and "gamma 1" in shown.out


def test_generate_with_discovered_heads_needs_gamma(
    cli, model: Path, discovered: Path, profile: Path
) -> None:
    ask = (
        "generate",
        "--model",
        model,
        "--run",
        discovered,
        "--profile",
        profile,
        "--prompt",
        "Go",
    )
    assert_one_error(cli(*ask), "--gamma")
    found = cli(*ask, "--gamma", 0.5, "--max-new-tokens", 5)
    assert (found.code, found.err) == (0, "")


def test_sampling_follows_the_seed(cli, model: Path, discovered: Path, profile: Path) -> None:
    ask = (
        "generate",
        "--model",
        model,
        "--run",
        discovered,
        "--profile",
        profile,
        "--prompt",
        "Go",
    )
    how = ("--gamma", 0.5, "--max-new-tokens", 12, "--sample", "--temperature", 1.5, "--json")
    first, again, other = (json.loads(cli(*ask, *how, "--seed", s).out) for s in (1, 1, 2))
    assert first["steered"] == again["steered"] != other["steered"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "One.\nTwo.\n"),
        ("p.json", '["One.", {"text": "Two."}]'),
        ("p.jsonl", '"One."\n\n{"text": "Two."}\n'),
    ],
)
def test_profile_formats(name: str, text: str, tmp_path: Path) -> None:
    from prefheads.cli.generate import read_profile

    (tmp_path / name).write_text(text)
    assert read_profile(tmp_path / name) == [{"text": "One."}, {"text": "Two."}]


def test_inspect_shows_everything_without_the_model(
    cli, model: Path, data: Path, fitted: Path
) -> None:
    assert cli("validate", "--model", model, "--run", fitted, "--data", data).code == 0
    shown = cli("inspect", fitted)
    assert (shown.code, shown.err) == (0, "")
    for part in ("Heads of highest PCS", "95 % interval", "Clusters", "Calibration", "Validation"):
        assert part in shown.out
    found = json.loads(cli("inspect", fitted, "--json", "--top", 3).out)
    assert set(found["scores"]) == {"head", "profile"}
    assert len(found["scores"]["head"]["heads"]) == 3
    assert {"clusters", "calibration", "validation"} < set(found)
    assert all(Path(path).stat().st_size for path in found["plots"]) and found["plots"]


def test_inspect_of_discovery(cli, discovered: Path) -> None:
    result = cli("inspect", discovered)
    assert result.code == 0 and "Selected: HeadWeights" in result.out


def test_module_and_version() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(prefheads.__file__).parents[1])}
    command = [sys.executable, "-m", "prefheads", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"prefheads {prefheads.__version__}\n"


# --- profiles that do not fit


def test_long_profiles_are_cut_and_said_so(cli, model: Path, tmp_path: Path) -> None:
    content = rows(4, 1)
    content[1]["profile"] = [{"text": "wind " * 400}]
    data = write_rows(tmp_path / "long.jsonl", content)
    result = cli("discover", "--model", model, "--data", data, "--out", tmp_path / "run", "--json")
    assert result.code == 0
    (line,) = result.err.splitlines()
    assert f"1 of 4 prompts had profile items cut to fit {CONTEXT} tokens" in line
    assert "inputs are never cut" in line
    json.loads(result.out)


# --- bad input


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
def test_bad_examples(cli, change, parts, model: Path, tmp_path: Path) -> None:
    data, out = broken(tmp_path, change), tmp_path / "run"
    assert_one_error(cli("discover", "--model", model, "--data", data, "--out", out), *parts)
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_fit_looks_at_calibration_samples_first(cli, model: Path, tmp_path: Path) -> None:
    content = rows()
    _, held, _ = prefheads.split_users(prefheads.load_examples(content))
    bad = next(row for row in content if row["id"] == held[0].id)
    bad["output"] = "long " * CONTEXT
    data, out = write_rows(tmp_path / "long.jsonl", content), tmp_path / "run"
    result = cli("fit", "--model", model, "--data", data, "--out", out)
    assert_one_error(result, "response alone", held[0].id)
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_malformed_line_is_named(cli, model: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(data.read_text().splitlines()[0] + "\n{not json\n")
    result = cli("discover", "--model", model, "--data", path, "--out", tmp_path / "run")
    assert_one_error(result, "bad.jsonl:2", "not JSON")


def test_missing_data(cli, model: Path, tmp_path: Path) -> None:
    result = cli("fit", "--model", model, "--data", tmp_path / "none", "--out", tmp_path / "run")
    assert_one_error(result, "no such file")
    assert not (tmp_path / "run").exists()


def test_missing_model(cli, data: Path, tmp_path: Path) -> None:
    result = cli("discover", "--model", tmp_path / "no", "--data", data, "--out", tmp_path / "run")
    assert_one_error(result, "no such model folder")


@pytest.mark.parametrize("kind", ["t5", "bloom", "nonesuch"])
def test_models_that_cannot_be_handled(cli, kind: str, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / kind
    if kind == "bloom":
        BloomForCausalLM(
            BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4)
        ).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    else:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    result = cli("discover", "--model", folder, "--data", data, "--out", tmp_path / "run")
    assert_one_error(result, {"bloom": "BloomForCausalLM"}.get(kind, kind))


def nan_weights(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan


def test_nan_in_the_model(cli, data: Path, discovered: Path, profile: Path, tmp_path: Path) -> None:
    folder, out = save_model(tmp_path / "nan", nan_weights), tmp_path / "run"
    result = cli("discover", "--model", folder, "--data", data, "--out", out)
    assert_one_error(result, "not finite")
    assert not list(out.glob("*.safetensors"))
    ask = ("generate", "--model", folder, "--run", discovered, "--profile", profile)
    for how in ((), ("--sample",)):
        result = cli(*ask, "--prompt", "Go", "--gamma", 0.5, *how)
        assert_one_error(result, "not finite")


@pytest.mark.parametrize("value", ["nan", "wrong shape", "truncated", "text"])
def test_damaged_heads(
    cli, value: str, model: Path, discovered: Path, profile: Path, tmp_path: Path
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
    ask = ("generate", "--model", model, "--run", tmp_path, "--profile", profile, "--prompt", "Go")
    assert_one_error(cli(*ask, "--gamma", 0.5), "heads.safetensors")
    assert contents(tmp_path) == before


def test_heads_of_another_model(cli, other_model: Path, discovered: Path, profile: Path) -> None:
    ask = ("generate", "--model", other_model, "--run", discovered, "--profile", profile)
    assert_one_error(cli(*ask, "--prompt", "Go", "--gamma", 0.5), "made for the model")


@pytest.mark.parametrize("command", ["generate", "validate", "fit", "discover"])
def test_runs_of_another_model(
    cli, command: str, other_model: Path, data: Path, fitted: Path, profile: Path
) -> None:
    before = contents(fitted)
    more = {
        "generate": ("--run", fitted, "--profile", profile, "--prompt", "Go"),
        "validate": ("--run", fitted, "--data", data),
        "fit": ("--out", fitted, "--data", data),
        "discover": ("--out", fitted, "--data", data),
    }
    assert_one_error(cli(command, "--model", other_model, *more[command]), str(fitted))
    assert contents(fitted) == before


def test_other_options_do_not_overwrite(cli, model: Path, data: Path, discovered: Path) -> None:
    before = contents(discovered)
    where = ("--model", model, "--data", data, "--out", discovered)
    assert_one_error(cli("discover", *where, "--target", "profile"), "target", "another folder")
    assert_one_error(cli("fit", *where), "another")
    assert contents(discovered) == before


def test_other_data_does_not_overwrite(cli, model: Path, discovered: Path, tmp_path: Path) -> None:
    before = contents(discovered)
    data = write_rows(tmp_path / "other.jsonl", rows(4))
    result = cli("discover", "--model", model, "--data", data, "--out", discovered)
    assert_one_error(result, "another folder")
    assert contents(discovered) == before


@pytest.mark.parametrize(
    "name", ["steerer.json", "steerer.safetensors", "scores-head.safetensors", "validation.json"]
)
@pytest.mark.parametrize("content", [b"", b"\x00\xff broken", b"{}"])
def test_damaged_runs(
    cli, name: str, content: bytes, model: Path, fitted: Path, data: Path, tmp_path: Path
) -> None:
    for path in fitted.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(content)
    before = contents(tmp_path)
    assert_one_error(cli("inspect", tmp_path), name)
    if name != "validation.json":
        ask = ("validate", "--model", model, "--run", tmp_path, "--data", data)
        assert_one_error(cli(*ask), str(tmp_path))
    assert contents(tmp_path) == before


def test_inspect_of_nothing(cli, tmp_path: Path) -> None:
    assert_one_error(cli("inspect", tmp_path), "holds no finished run")
    assert_one_error(cli("inspect", tmp_path / "no"), "holds no finished run")
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("command", ["discover", "fit"])
def test_output_that_is_a_file(
    cli, command: str, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("prefheads.cli.session.load_model", never)
    (tmp_path / "run").write_text("mine")
    result = cli(command, "--model", model, "--data", data, "--out", tmp_path / "run")
    assert_one_error(result, "not a folder to write to")
    assert (tmp_path / "run").read_text() == "mine"


def test_full_disk(
    cli, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prefheads.storage.os.fsync", full)
    result = cli("discover", "--model", model, "--data", data, "--out", tmp_path)
    assert_one_error(result, "No space left")
    monkeypatch.undo()
    monkeypatch.setattr(prefheads, "discover", full)
    result = cli("discover", "--model", model, "--data", data, "--out", tmp_path)
    assert_one_error(result, "No space left", "same command again")


@pytest.mark.parametrize("gamma", ["-1", "nan", "inf", "much"])
def test_bad_gamma(cli, gamma: str, model: Path, discovered: Path, profile: Path) -> None:
    ask = ("generate", "--model", model, "--run", discovered, "--profile", profile)
    assert_one_error(cli(*ask, "--prompt", "Go", f"--gamma={gamma}"), "gamma")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--clusters", "0"), "clusters"),
        (("--clusters", "many"), "clusters"),
        (("--clusters", "7"), "7 clusters"),
        (("--split", "0.5,0.5"), "--split"),
        (("--split", "1,2,3"), "sum to 1"),
        (("--split", "x"), "--split"),
        (("--clusters", "2", "--min-samples", "50"), "50"),
        (("--calibration", "1"), "calibration"),
        (("--no-such-option",), "No such option"),
        (("--scope", "nowhere"), "scope"),
        (("--device", "abacus"), "abacus"),
        (("--encoder", "no/such/encoder"), "encoder"),
    ],
)
def test_bad_options_of_fit(cli, options, part: str, model: Path, data: Path, tmp_path) -> None:
    out = tmp_path / "run"
    assert_one_error(cli("fit", "--model", model, "--data", data, "--out", out, *options), part)
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_too_few_users(cli, model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "few.jsonl", rows(3))
    result = cli("fit", "--model", model, "--data", data, "--out", tmp_path / "run")
    assert_one_error(result, "at least two users")


def test_nobody_left_to_validate(
    cli, model: Path, data: Path, fitted: Path, tmp_path: Path
) -> None:
    seen = json.loads((fitted / "steerer.json").read_text())["users"]["discovery"]
    known = write_rows(tmp_path / "seen.jsonl", [r for r in rows() if r["user_id"] in seen])
    result = cli("validate", "--model", model, "--run", fitted, "--data", known)
    assert_one_error(result, "took part in fitting")


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("p.json", "[", "not JSON"),
        ("p.jsonl", '"a"\n{"text": }\n', "p.jsonl:2"),
        ("p.jsonl", '{"title": "a"}\n', "text"),
        ("p.json", "[3]", "profile[0]"),
        ("p.json", '{"text": "a"}', "list"),
        ("p.txt", "\n \n", "empty"),
        ("p.txt", None, "no such file"),
    ],
)
def test_bad_profiles(
    cli, name: str, text: str | None, part: str, model: Path, discovered: Path, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    ask = ("generate", "--model", model, "--run", discovered, "--profile", tmp_path / name)
    assert_one_error(cli(*ask, "--prompt", "Go", "--gamma", 1), part, name)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--prompt", " "), "--prompt"),
        (("--prompt", "long " * CONTEXT), "input alone"),
        (("--prompt", "Go", "--max-new-tokens", CONTEXT), "max_new_tokens"),
        (("--prompt", "Go", "--mode", "shout"), "mode"),
    ],
)
def test_bad_requests(cli, more, part: str, model: Path, discovered: Path, profile: Path) -> None:
    ask = ("generate", "--model", model, "--run", discovered, "--profile", profile)
    assert_one_error(cli(*ask, *more, "--gamma", 1), part)


def test_long_profile_is_cut_for_generation(
    cli, model: Path, discovered: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("wind " * 400)
    ask = ("generate", "--model", model, "--run", discovered, "--profile", path)
    result = cli(*ask, "--prompt", "Go", "--gamma", 1, "--max-new-tokens", 4)
    assert result.code == 0
    assert "1 of 1 prompts had profile items cut" in result.err


def test_results_that_no_command_wrote_are_not_overwritten(
    cli, model: Path, data: Path, tmp_path: Path
) -> None:
    HeadWeights(torch.ones(3, 4)).save(tmp_path / "heads.safetensors")
    before = (tmp_path / "heads.safetensors").read_bytes()
    result = cli("discover", "--model", model, "--data", data, "--out", tmp_path)
    assert result.code == 2 and "holds results of something else" in result.err
    assert (tmp_path / "heads.safetensors").read_bytes() == before


def test_a_long_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "word " * 100
    session.emit(False, {}, [text])
    assert capsys.readouterr().out == text + "\n"
