"""An evaluation's results as files, written and read again."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from support.compared import record

from prefheads.calibration.validate import Validation
from prefheads.errors import ArtifactError
from prefheads.evaluation.results import read_results, write_tables
from prefheads.evaluation.run import Measured
from prefheads.evaluation.tables import cells
from prefheads.report.page import paper
from prefheads.report.statistics.evaluated import Evaluation
from prefheads.steering.setting import PLAIN
from prefheads.storage import plain, read_json, write_json
from prefheads.tasks.metrics import MetricWarning


def test_what_rouge_does_not_see_is_told_with_the_table(tmp_path) -> None:
    def measured(text: str) -> Measured:
        own = [record(str(i), "plain", prediction=text, reference=text) for i in range(3)]
        nll = np.ones((3, 3, 2))
        ids = tuple("012")
        texts = {"plain": own, "dps": [replace(r, method="dps") for r in own]}
        return Measured("LaMP-7", texts, Validation(PLAIN, tuple(texts), nll, ids, ids), {}, 1)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        made = cells(measured("Привет, мир"))
    assert {w.category for w in told} == {MetricWarning}  # an import in between repeats it
    write_tables(tmp_path, [measured("Привет, мир")], [made], {})
    note = json.loads((tmp_path / "results.json").read_text())["tasks"]["LaMP-7"]["note"]
    assert note == str(told[0].message) and "nothing of 3 of the 3 references" in note
    texts, likelihood = (tmp_path / "table.md").read_text().split("### ")[1:]
    assert "| 0.000" in texts and f"|\n\n{note}\n" in texts and note not in likelihood
    assert (tmp_path / "table.tex").read_text().count(note) == 1
    shown = [e.shows for e in paper.results(Evaluation.read(tmp_path))]
    assert [note in text for text in shown] == [True, False]

    write_tables(tmp_path, [measured("hello")], [cells(measured("hello"))], {})
    assert "rouge-1 and rouge-L see" not in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["tasks"]["LaMP-7"]["note"] == ""


def test_infinities_and_unknown_numbers_survive_a_second_reading(tmp_path) -> None:
    nll = np.random.default_rng(0).random((9, 3, 3))
    nll[0, :, 1] = np.inf  # rules out what one user wrote
    nll[:, :, 2] = np.nan  # has none at all
    ids = tuple(str(i) for i in range(9))
    found = Validation(PLAIN, ("plain", "dps", "dola"), nll, ids, ids)
    measured = Measured("LaMP-7", {}, found, {}, 1)
    made = cells(measured)
    write_tables(tmp_path, [measured], [made], {})
    files = ("table.md", "table.tex", "table.csv")
    first = [(tmp_path / name).read_text() for name in files]
    told = read_json(tmp_path / "results.json")
    _, parts = read_results(tmp_path)
    assert list(map(repr, parts["LaMP-7"])) == list(map(repr, made))
    shown = {(c.method, c.metric): str(c) for c in Evaluation.read(tmp_path).cells}
    assert shown["dps", "NLL"] == "inf" and shown["dola", "NLL"] == "n/a"
    write_tables(tmp_path, [], [], {})
    assert first == [(tmp_path / name).read_text() for name in files]
    assert told == read_json(tmp_path / "results.json")
    write_json(tmp_path / "nll.json", plain(found.to_dict()))
    again = Validation.from_dict(read_json(tmp_path / "nll.json"))
    assert np.array_equal(again.nll, nll, equal_nan=True)


def test_results_of_before_are_read(tmp_path) -> None:
    """They said less of a task, and null for every number that JSON does not have."""
    cell = {"task": "LaMP-7", "table": "texts", "method": "plain", "metric": "meteor", "n": 3}
    cell |= {"higher_is_better": True, "value": 0.5, "low": None, "high": None, "p": None}
    cell |= {"better": False}
    for tasks in ({}, {"tasks": {"LaMP-7": {"samples": 3}}}):
        write_json(tmp_path / "results.json", {"cells": [cell], **tasks})
        about, parts = read_results(tmp_path)
        assert about["LaMP-7"]["folds"] == 1 and str(parts["LaMP-7"][0]) == "0.500"
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_results(tmp_path / "nowhere")
