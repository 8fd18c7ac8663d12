"""Methods and settings that differ in one option, beside their controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import results
from support.evaluated import METHODS

from prefheads.evaluation.methods import Method
from prefheads.report.statistics import sweeps
from prefheads.report.statistics.evaluated import Evaluation


def test_head_sets_are_read_from_their_names() -> None:
    assert sweeps.head_set("top 4% by head PCS") == ("head", 0.04)
    assert sweeps.head_set("mine")[0] == "mine" and np.isnan(sweeps.head_set("mine")[1])


def test_calibration_rows_hold_every_setting() -> None:
    calibration = results.calibration()
    rows = sweeps.calibration_rows(calibration)
    assert [r["change_of_nll"] for r in rows] == list(calibration.change)
    (chosen,) = [r for r in rows if r["chosen"]]
    assert (chosen["mode"], chosen["target"], chosen["gamma"]) == ("amplify", "profile", 2.0)


def test_sweeps_are_the_methods_that_differ_in_one_option() -> None:
    found = {s.name: s for s in sweeps.find_sweeps([Method.parse(m) for m in METHODS])}
    assert set(found) == {"dps: fraction", "dps: gamma", "dps-cluster: routing"}
    fractions = found["dps: fraction"]
    assert fractions.values == (0.02, 0.04, 0.08)
    assert [m.name for m in fractions.methods] == ["dps:fraction=0.02", "dps", "dps:fraction=0.08"]


def test_what_else_is_fixed_is_in_the_name() -> None:
    methods = [Method.parse(f"dps:mode=amplify:gamma={g}") for g in (0.1, 0.5)]
    (sweep,) = sweeps.find_sweeps(methods)
    assert sweep.name == "dps (mode=amplify): gamma"


def test_sweep_rows_stand_beside_the_controls_of_the_same_options(eval_run: Path) -> None:
    found = Evaluation.read(eval_run)
    sweep = next(s for s in sweeps.find_sweeps(found.methods) if s.option == "fraction")
    rows = {(r["option_value"], r["metric"]): r for r in sweeps.sweep_rows(found, sweep)}
    assert {metric for _, metric in rows} == {"accuracy", "f1", "change of NLL"}
    assert rows[0.04, "accuracy"]["value"] == pytest.approx(0.8)
    assert rows[0.04, "change of NLL"]["value"] == pytest.approx(0.1)
    assert rows[0.04, "change of NLL"]["random_control"] == pytest.approx((0.7 + 0.8) / 2)
    assert rows[0.08, "change of NLL"]["random_control"] == pytest.approx(0.9)
    assert np.isnan(rows[0.02, "change of NLL"]["random_control"])
    assert rows[0.02, "accuracy"]["baseline"] == pytest.approx(0.2)
