"""The demo on a tiny model: everything is written, and a second run computes nothing anew."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from support.models import character_tokenizer, tiny

import prefheads.calibration.calibrate
import prefheads.discovery.exact
import prefheads.steerer.core
from prefheads.cli.demo import Size, as_data, run, summary
from prefheads.data.example import Example
from prefheads.report.measure.comparison import compare, kind, mixed_kinds
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.setting import Setting

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


@pytest.fixture(scope="module", autouse=True)
def encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefheads.steerer.core, "ProfileEncoder", Encoder)
        yield


@pytest.fixture(scope="module")
def parts():
    return tiny("llama"), character_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def first(parts, folder):
    return run(*parts, people(), folder, SIZE, max_new_tokens=4)


def test_second_run_reuses_what_the_first_has_done(parts, folder, first, monkeypatch):
    page = first.report.read_text()
    assert page.count("<strong>User ") == SIZE.people and "texts differ" in page
    assert (folder / "steerer.json").is_file()  # a run for the other commands, too
    assert json.loads((folder / "validation.json").read_text())["nll"]

    def never(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(prefheads.discovery.exact, "_pcs", never)
    monkeypatch.setattr(prefheads.calibration.calibrate, "score_settings", never)
    monkeypatch.setattr(PreferenceSteerer, "generate", never)
    second = run(*parts, people(), folder, SIZE, max_new_tokens=4)
    assert second.texts == first.texts
    assert np.array_equal(second.validation.nll, first.validation.nll, equal_nan=True)


def test_people_of_fitting_are_not_tested(first):
    used = set(first.steerer.users["discovery"]) | set(first.steerer.users["calibration"])
    assert used.isdisjoint(first.validation.user_ids)
    assert used.isdisjoint(text.user_id for text in first.texts)
    assert len(first.validation.example_ids) == SIZE.test


def test_summary_and_data_tell_the_outcome(first):
    lines = [str(line) for line in summary(first)]
    assert any(line.startswith("Groups of people:") for line in lines)
    assert any(str(first.steerer.setting) in line for line in lines)
    assert lines[-1] == f"Report: {first.report}"
    did_not_help = any("did not help" in line for line in lines)
    assert did_not_help == first.steerer.setting.plain
    assert as_data(first)["validation"]["methods"][0] == "plain"


def steerer_with(first, setting) -> PreferenceSteerer:
    calibration = replace(first.steerer.calibration, settings=(setting,), chosen=0)
    return replace(first.steerer, calibration=calibration)


def test_texts_are_compared_for_people_of_different_kinds(first, tmp_path):
    steerer = steerer_with(first, Setting("", "amplify", "head", 8.0))
    texts = compare(steerer, people(), 2, tmp_path / "other.json", max_new_tokens=6)
    assert [text.user_id for text in texts] == ["cat-0", "dog-0"]
    assert all(text.differs for text in texts)
    assert texts[0].written == "cat00"


def test_next_sample_is_tried_where_texts_are_equal(first, tmp_path, monkeypatch):
    steerer = steerer_with(first, Setting("", "amplify", "head", 1.0))

    def generate(self, prompt, profile, *, gamma, **options):
        return f"{prompt} {gamma}" if prompt == "say 1" else prompt

    monkeypatch.setattr(PreferenceSteerer, "generate", generate)
    (text,) = compare(steerer, people(), 1, tmp_path / "other.json")
    assert (text.prompt, text.plain, text.steered) == ("say 1", "say 1 0.0", "say 1 1.0")
    monkeypatch.setattr(PreferenceSteerer, "generate", lambda self, prompt, *a, **k: prompt)
    (text,) = compare(steerer, people(), 1, tmp_path / "third.json")
    assert not text.differs


def test_where_plain_was_chosen_the_best_setting_tried_is_shown(first, tmp_path):
    tried = Setting("", "amplify", "head", 8.0)
    calibration = replace(
        first.steerer.calibration, settings=(Setting(), tried), change=(0.0, 0.1), chosen=0
    )
    steerer = replace(first.steerer, calibration=calibration)
    texts = compare(steerer, people(), 2, tmp_path / "a.json", max_new_tokens=6)
    by_hand = compare(steerer_with(first, tried), people(), 2, tmp_path / "b.json", 6)
    assert texts == by_hand and any(text.differs for text in texts)


def test_nothing_is_compared_where_nothing_was_tried(first, tmp_path):
    steerer = steerer_with(first, Setting())
    assert compare(steerer, people(), 2, tmp_path / "other.json") == []


def test_people_take_turns_by_kind():
    assert kind("trail-01") == "trail"
    assert mixed_kinds(["a-1", "a-2", "a-3", "b-1"]) == ["a-1", "b-1", "a-2", "a-3"]
