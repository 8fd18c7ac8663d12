"""The demo on a tiny model: everything is written, and a second run computes nothing anew."""

from __future__ import annotations

import json

import numpy as np
import pytest
from models import character_tokenizer, tiny

import prefheads.calibrate
import prefheads.discovery.exact
import prefheads.steerer
from prefheads.analysis.texts import compare, kind, mixed_kinds
from prefheads.calibrate import Setting
from prefheads.cli.demo import Size, as_data, run, summary
from prefheads.examples import Example
from prefheads.steerer import PreferenceSteerer

SIZE = Size(discovery=4, calibration=4, test=4, people=2)


class Encoder:
    """People of one kind are alike."""

    def __init__(self, name: str) -> None:
        pass

    def embed(self, profiles):
        return np.eye(4, dtype=np.float32)[[int(p[0]["text"] == "cat") for p in profiles]]


def people() -> list[Example]:
    words = {"cat": "cat", "dog": "dog"}
    return [
        Example(f"{k}-{u}-{i}", f"{k}-{u}", ({"text": word},), f"say {i}", f"{word}{i}{u}")
        for k, word in words.items()
        for u in range(4)
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def parts():
    return tiny("llama"), character_tokenizer()


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    monkeypatch.setattr(prefheads.steerer, "ProfileEncoder", Encoder)


def test_second_run_reuses_what_the_first_has_done(parts, tmp_path, monkeypatch):
    first = run(*parts, people(), tmp_path, SIZE, max_new_tokens=4)
    assert first.report.is_file()
    assert (tmp_path / "steerer.json").is_file()  # a run for the other commands, too
    assert json.loads((tmp_path / "validation.json").read_text())["nll"]

    def never(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(prefheads.discovery.exact, "_pcs", never)
    monkeypatch.setattr(prefheads.calibrate, "score_settings", never)
    monkeypatch.setattr(PreferenceSteerer, "generate", never)
    second = run(*parts, people(), tmp_path, SIZE, max_new_tokens=4)
    assert second.texts == first.texts
    assert np.array_equal(second.validation.nll, first.validation.nll)


def test_people_of_fitting_are_not_tested(parts, tmp_path):
    result = run(*parts, people(), tmp_path, SIZE, max_new_tokens=4)
    used = set(result.steerer.users["discovery"]) | set(result.steerer.users["calibration"])
    assert used.isdisjoint(result.validation.user_ids)
    assert used.isdisjoint(text.user_id for text in result.texts)
    assert len(result.validation.example_ids) == SIZE.test


def test_summary_and_data_tell_the_outcome(parts, tmp_path):
    result = run(*parts, people(), tmp_path, SIZE, max_new_tokens=4)
    lines = [str(line) for line in summary(result)]
    assert any(line.startswith("Groups of people:") for line in lines)
    assert any(str(result.steerer.setting) in line for line in lines)
    assert lines[-1] == f"Report: {result.report}"
    did_not_help = any("did not help" in line for line in lines)
    assert did_not_help == result.steerer.setting.plain
    assert as_data(result)["validation"]["methods"][0] == "plain"


def steerer_with(parts, setting, tmp_path) -> PreferenceSteerer:
    steerer = run(*parts, people(), tmp_path, SIZE, max_new_tokens=4).steerer
    calibration = steerer.calibration
    steerer.calibration = type(calibration).from_dict(
        calibration.to_dict() | {"settings": [vars(setting)], "chosen": 0}
    )
    return steerer


def test_texts_are_compared_for_people_of_different_kinds(parts, tmp_path):
    steerer = steerer_with(parts, Setting("", "amplify", "head", 8.0), tmp_path)
    texts = compare(steerer, people(), 2, tmp_path / "other.json", max_new_tokens=6)
    assert [text.user_id for text in texts] == ["cat-0", "dog-0"]
    assert all(text.differs for text in texts)
    assert texts[0].written == "cat00"


def test_next_sample_is_tried_where_texts_are_equal(parts, tmp_path, monkeypatch):
    steerer = steerer_with(parts, Setting("", "amplify", "head", 1.0), tmp_path)

    def generate(self, prompt, profile, *, gamma, **options):
        return f"{prompt} {gamma}" if prompt == "say 1" else prompt

    monkeypatch.setattr(PreferenceSteerer, "generate", generate)
    (text,) = compare(steerer, people(), 1, tmp_path / "other.json")
    assert (text.prompt, text.plain, text.steered) == ("say 1", "say 1 0.0", "say 1 1.0")
    monkeypatch.setattr(PreferenceSteerer, "generate", lambda self, prompt, *a, **k: prompt)
    (text,) = compare(steerer, people(), 1, tmp_path / "third.json")
    assert not text.differs


def test_nothing_is_compared_under_plain_decoding(parts, tmp_path):
    steerer = steerer_with(parts, Setting(), tmp_path)
    assert compare(steerer, people(), 2, tmp_path / "other.json") == []


def test_people_take_turns_by_kind():
    assert kind("trail-01") == "trail"
    assert mixed_kinds(["a-1", "a-2", "a-3", "b-1"]) == ["a-1", "b-1", "a-2", "a-3"]
