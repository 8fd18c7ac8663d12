"""The command line: every command on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import assert_one_error, contents, rows, write_rows
from support.saved import CONTEXT

import prefheads
from prefheads import HeadScores, HeadWeights
from prefheads.calibration.calibrate import Calibration
from prefheads.cli import output
from prefheads.cli.terminal import calibration_table
from prefheads.steering.setting import PLAIN, Setting


def test_discover_writes_scores_and_heads(
    cli, tiny_folder: Path, people_file: Path, tmp_path: Path
) -> None:
    where = ("--model", tiny_folder, "--data", people_file, "--out", tmp_path)
    result = cli("discover", *where, "--fraction", 0.3, "--quiet")
    assert (result.code, result.err) == (0, "")
    assert {p.name for p in tmp_path.iterdir()} == {
        "run.json", "scores.safetensors", "heads.safetensors",
    }  # fmt: skip
    scores = HeadScores.load(tmp_path / "scores.safetensors")
    assert scores.shape == (24, 3, 4)
    heads = HeadWeights.load(tmp_path / "heads.safetensors")
    assert heads == scores.top(fraction=0.3)
    layer, head, mean, stderr = scores.ranked()[0]
    assert f"{layer}.{head}" in result.out
    assert f"{1000 * mean:+.2f}" in result.out and f"{1000 * stderr:.2f}" in result.out
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["command"] == "discover" and record["options"]["target"] == "head"


def test_discover_passes_its_options_on(
    cli, tiny_folder: Path, people_file: Path, tmp_path: Path
) -> None:
    options = ("--target", "profile", "--scope", "all", "--reference", "other-profile")
    where = ("--model", tiny_folder, "--data", people_file, "--out", tmp_path, "--limit", 4)
    result = cli("discover", *where, *options, "--seed", 3, "--json", "--quiet")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert (found["n_examples"], found["shape"], len(found["heads"])) == (4, [3, 4], 12)
    info = HeadScores.load(tmp_path / "scores.safetensors").info
    assert (info.target, info.scope, info.reference, info.seed) == (
        "profile", "all", "other-profile", 3,
    )  # fmt: skip


def test_mean_ablation_is_shown_beside_zero(
    cli, tiny_folder: Path, people_file: Path, tmp_path: Path
) -> None:
    where = ("--model", tiny_folder, "--data", people_file, "--out", tmp_path, "--limit", 6)
    command = ("discover", *where, "--ablation", "mean", "--quiet")
    said = cli(*command).out
    assert "by zero ablation" in said and "rank the heads with correlation" in said
    mean = HeadScores.load(tmp_path / "scores.safetensors")
    zero = HeadScores.load(tmp_path / "scores-zero.safetensors")
    assert (mean.info.ablation, zero.info.ablation) == ("mean", "zero")
    assert HeadWeights.load(tmp_path / "heads.safetensors") == mean.top(fraction=0.04)
    found = json.loads(cli(*command, "--json").out)
    layer, head = found["heads"][0]["layer"], found["heads"][0]["head"]
    assert found["heads"][0]["zero"] == pytest.approx(zero.values[:, layer, head].mean().item())
    assert -1 <= found["agreement"]["rank_correlation"] <= 1


def test_same_command_again_changes_nothing(
    cli, tiny_folder: Path, people_file: Path, discovered: Path
) -> None:
    before = contents(discovered)
    assert (
        cli("discover", "--model", tiny_folder, "--data", people_file, "--out", discovered).code
        == 0
    )
    assert {k: v for k, v in contents(discovered).items() if k in before} == before


def test_a_finished_discovery_is_not_measured_again(
    cli, tiny_folder: Path, people_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--model", tiny_folder, "--data", people_file, "--out", tmp_path, "--limit", 4)
    assert cli("discover", *where).code == 0

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(prefheads, "discover", never)
    again = cli("discover", *where, "--fraction", 0.5, "--json", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert len(json.loads(again.out)["selected"]) == 6  # of 12, as many as are positive


def test_progress_goes_to_standard_error_and_json_to_standard_output(
    cli, tiny_folder: Path, people_file: Path, tmp_path: Path
) -> None:
    where = ("--model", tiny_folder, "--data", people_file, "--out", tmp_path, "--limit", 4)
    result = cli("discover", *where, "--json")
    assert json.loads(result.out)["n_examples"] == 4
    *_, first, last = result.err.splitlines()
    assert first == "PCS, target head: 4 examples to do"
    assert last.startswith("PCS, target head: 4 of 4 examples in 00:0")


def test_bundled_people_by_name(cli, tiny_folder: Path, tmp_path: Path) -> None:
    where = ("--model", tiny_folder, "--data", "bundled", "--out", tmp_path, "--limit", 2)
    found = json.loads(cli("discover", *where, "--json").out)
    assert (found["n_examples"], found["n_users"]) == (2, 1)
    assert json.loads((tmp_path / "run.json").read_text())["options"]["data"] == "bundled"


def test_killed_discovery_resumes(
    tiny_folder: Path, people_file: Path, discovered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    where = ["--model", str(tiny_folder), "--data", str(people_file)]
    command = ["discover", *where, "--out", str(out)]
    script = f"""
import os, signal, sys
from prefheads import checkpoint
from prefheads.cli.main import main
add = checkpoint.Checkpoint.add
def counted(self, *row):
    add(self, *row)
    if len(self.done) == int(sys.argv[1]):
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
    cli, tiny_folder: Path, people_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prefheads, "discover", interrupted)
    where = ("--model", tiny_folder, "--data", people_file, "--out", tmp_path)
    result = cli("discover", *where, "--quiet")
    assert result.code == 130
    (line,) = result.err.splitlines()
    assert "the same command goes on" in line


def test_fit_chooses_clusters_and_a_setting(
    cli, tiny_folder: Path, people_file: Path, fitted: Path
) -> None:
    where = ("--model", tiny_folder, "--data", people_file, "--out", fitted)
    result = cli("fit", *where, "--clusters", 2, "--min-samples", 1, "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert len(found["clusters"]) == 2 and sum(found["clusters"]) == 6
    assert found["users"] == {"discovery": 6, "calibration": 3, "test": 3}
    assert found["calibration"]["n_users"] == 3


def test_fit_prints_the_curve(cli, tiny_folder: Path, people_file: Path, tmp_path: Path) -> None:
    where = ("--model", tiny_folder, "--data", people_file, "--out", tmp_path)
    options = ("--discovery", 4, "--calibration", 4, "--split", "0.4,0.4,0.2")
    result = cli("fit", *where, *options, "--objective", "specificity", "--quiet")
    assert (result.code, result.err) == (0, "")
    for part in ("Clusters of users", "Calibration: 4 samples", "plain (no steering)", "chosen"):
        assert part in result.out


def test_the_calibration_table_shows_the_papers_form() -> None:
    """Beside the best two of the rest and the chosen one, plain first, then by NLL."""
    few, heads, profile = (f"top {x} PCS" for x in ("1% by head", "4% by head", "4% by profile"))
    code = "the paper's form, numbers of its authors' code"
    ours = "the paper's form, 4 % of its authors' code, gamma ours"
    tried = [
        (PLAIN, 0.0, ""),
        (Setting(few, "contrast", "head", 0.1), 0.05, "the paper's form, best of 4"),
        (Setting(heads, "contrast", "head", 0.25), 0.2, ours),
        (Setting(heads, "contrast", "head", 1.0), 0.9, None),
        (Setting(heads, "contrast", "head", 1.0, schedule="entropy"), 1.9, code),
        (Setting(heads, "contrast", "head", 1.0, 0.1), 0.02, None),  # faint suppression
        (Setting(profile, "contrast", "head", 0.1), 0.03, None),  # not the paper's heads
        (Setting(profile, "amplify", "profile", 1.0), -0.3, ""),
        (Setting(profile, "amplify", "profile", 0.5), -0.2, ""),
        (Setting(heads, "amplify", "head", 0.1), -0.1, "chosen"),
    ]
    n = len(tried)
    settings, change, _ = zip(*tried, strict=True)
    zeros = (0.0,) * n
    found = Calibration(settings, change, zeros, None, zeros, n - 1, 1.0, 1.0, 3.0, 20, 20)
    table = calibration_table(found, n=2)
    shown = list(zip(table.columns[0].cells, table.columns[-1].cells, strict=True))
    expected = [t for t in tried if t[2] is not None]
    expected = [expected[0], *sorted(expected[1:], key=lambda t: t[1])]
    assert shown == [(str(s), mark) for s, _, mark in expected]


def test_validate_counts_what_it_leaves_out(
    cli, tiny_folder: Path, people_file: Path, fitted: Path
) -> None:
    ask = ("validate", "--model", tiny_folder, "--run", fitted, "--data", people_file)
    result = cli(*ask, "--quiet")
    assert (result.code, result.err) == (0, "")
    assert "18 of 24 samples were left out: their users took part in fitting" in result.out
    assert "hown: " in result.out or "chose plain decoding" in result.out
    saved = json.loads((fitted / "validation.json").read_text())
    assert len(saved["example_ids"]) == 6
    found = json.loads(
        cli(
            "validate", "--model", tiny_folder, "--run", fitted, "--data", people_file, "--json"
        ).out
    )
    assert found["left_out"] == 18 and found["nll"] == saved["nll"]
    # Other data in the same folder is no resumption of the first.
    assert (
        cli(
            "validate", "--model", tiny_folder, "--run", fitted, "--data", people_file, "--seed", 1
        ).code
        == 0
    )


def test_generate_with_a_fitted_run(
    cli, tiny_folder: Path, fitted: Path, profile_file: Path
) -> None:
    ask = ("generate", "--model", tiny_folder, "--run", fitted)
    ask = (*ask, "--profile", profile_file, "--prompt", "Go")
    some = ("--max-new-tokens", 8, "--json")
    plain = json.loads(cli(*ask, *some, "--gamma", 0).out)
    both = cli(*ask, *some, "--gamma", 3, "--mode", "amplify", "--target", "head", "--compare")
    assert (both.code, both.err) == (0, "")
    found = json.loads(both.out)
    assert found["plain"] == plain["steered"] != found["steered"]
    shown = cli(*ask, "--max-new-tokens", 8, "--compare", "--gamma", 1, "--routing", "hard")
    assert shown.code == 0 and "plain" in shown.out and "gamma 1" in shown.out


def test_generate_with_discovered_heads_needs_gamma(
    cli, tiny_folder: Path, discovered: Path, profile_file: Path
) -> None:
    ask = ("generate", "--model", tiny_folder, "--run", discovered)
    ask = (*ask, "--profile", profile_file, "--prompt", "Go")
    assert_one_error(cli(*ask), "--gamma")
    found = cli(*ask, "--gamma", 0.5, "--max-new-tokens", 5)
    assert (found.code, found.err) == (0, "")


def test_sampling_follows_the_seed(
    cli, tiny_folder: Path, discovered: Path, profile_file: Path
) -> None:
    ask = ("generate", "--model", tiny_folder, "--run", discovered)
    ask = (*ask, "--profile", profile_file, "--prompt", "Go")
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
    cli, tiny_folder: Path, people_file: Path, fitted: Path
) -> None:
    assert cli("validate", "--model", tiny_folder, "--run", fitted, "--data", people_file).code == 0
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


def test_long_profiles_are_cut_and_said_so(cli, tiny_folder: Path, tmp_path: Path) -> None:
    content = rows(4, 1)
    content[1]["profile"] = [{"text": "wind " * 400}]
    data = write_rows(tmp_path / "long.jsonl", content)
    where = ("--model", tiny_folder, "--data", data, "--out", tmp_path / "run")
    result = cli("discover", *where, "--json", "--quiet")
    assert result.code == 0
    (line,) = result.err.splitlines()
    assert f"1 of 4 prompts had profile items cut to fit {CONTEXT} tokens" in line
    assert "inputs are never cut" in line
    json.loads(result.out)


def test_long_profile_is_cut_for_generation(
    cli, tiny_folder: Path, discovered: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("wind " * 400)
    ask = ("generate", "--model", tiny_folder, "--run", discovered, "--profile", path)
    result = cli(*ask, "--prompt", "Go", "--gamma", 1, "--max-new-tokens", 4)
    assert result.code == 0
    assert "1 of 1 prompts had profile items cut" in result.err


def test_a_long_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "word " * 100
    output.emit(False, {}, [text])
    assert capsys.readouterr().out == text + "\n"
