"""What commands say before the work: samples, passes and how long; counted by hand here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.commands import TOPICS
from support.saved import Cli

from prefheads.cli import cost
from prefheads.cli.cost import Stage
from prefheads.data.example import Example
from prefheads.models.loading import load_model

SAMPLES = [
    Example(f"{i}", f"u{i}", ({"text": TOPICS["cook"]},), "Write", "beans " * (i + 1))
    for i in range(3)
]


@pytest.fixture(scope="module")
def model(tiny_folder: Path):
    return load_model(tiny_folder)[0]


def test_tokens_of_a_stage() -> None:
    lengths = [(100, 10), (200, 20)]
    assert Stage("", SAMPLES, 3).tokens(lengths) == 3 * (150 + 3 * 15)
    assert Stage("", SAMPLES, 3, prompts=2).tokens(lengths) == 3 * (300 + 3 * 15)
    assert Stage("", SAMPLES, 3, whole=True).tokens(lengths) == 3 * (150 + 3 * 165)


@pytest.mark.parametrize(
    ("how", "copies", "prompts"),
    [
        ({}, 1 + 12 / 2, 1),  # three layers of four heads
        ({"reference": "other-profile"}, 2 * (1 + 12 / 2), 2),
        ({"reference": "no-profile", "target": "profile"}, 1 + 12 / 2, 1),
        ({"method": "screen"}, 1 + 1.2 / 2 + 3, 1),
    ],
)
def test_passes_of_discovery(model, how, copies: float, prompts: int) -> None:
    stage = cost.discovery_stage(model, SAMPLES, **how)
    assert (stage.copies, stage.prompts) == (pytest.approx(copies), prompts)
    assert stage.what.endswith(f"of 12 heads ablated, target {how.get('target', 'head')}")


def test_durations_are_as_exact_as_they_are_known() -> None:
    told = {0.2: "1 s", 80: "80 s", 600: "10 minutes", 9000: "2.5 hours"}
    assert {seconds: cost._duration(seconds) for seconds in told} == told


def test_what_discovery_says_before_it_begins(
    cli: Cli, tiny_folder: Path, people_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_seconds_a_token", lambda *_: 0.1)
    where = ("--model", tiny_folder, "--data", people_file, "--out", tmp_path, "--limit", 4)
    todo, told, first, _ = cli("discover", *where).err.splitlines()
    assert todo == "to do: 4 samples, 12 of 12 heads ablated, target head"
    match = re.fullmatch(
        r"cost: ([\d,]+) tokens through the model, about (\d+) (s|minutes) .*", told
    )
    assert match is not None and "weights" in told
    tokens = int(match[1].replace(",", ""))
    assert int(match[2]) == round(tokens / 10 / (60 if match[3] == "minutes" else 1))
    assert first == "PCS, target head: 4 examples to do"
    assert "to do: " not in cli("discover", *where).err  # it is done


def test_what_fit_validate_and_eval_say(
    cli: Cli, tiny_folder: Path, people_file: Path, lamp_folder: Path, tmp_path: Path
) -> None:
    where = ("--model", tiny_folder, "--data", people_file)
    few = ("--discovery", 4, "--calibration", 4, "--split", "0.4,0.4,0.2", "--mode", "amplify")
    said = cli("fit", *where, *few, "--out", tmp_path / "fit").err
    assert said.startswith(
        "to do: 4 samples, 12 of 12 heads ablated, target head; "
        "4 samples, 12 of 12 heads ablated, target profile; 4 samples, 29 settings\ncost: "
    )
    said = cli("validate", *where, "--run", tmp_path / "fit").err
    assert re.match(r"to do: \d+ samples, with controls\ncost: ", said)
    where = ("--model", tiny_folder, "--data", lamp_folder, "--out", tmp_path / "eval")
    some = ("--task", "LaMP-7", "--methods", "plain,cad", "--limit", 5, "--max-new-tokens", 3)
    todo, _, texts, *_ = cli("eval", *where, *some).err.splitlines()
    assert todo == "to do: 5 samples, likelihood by 2 methods (LaMP-7)"
    assert texts.startswith("texts: 10 of at most 3 new tokens (LaMP-7); their time")
