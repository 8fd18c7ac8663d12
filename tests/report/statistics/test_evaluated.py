"""What an evaluation left: differences are paired by sample, and damage is told."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from support.evaluated import N

from prefheads.errors import ArtifactError
from prefheads.report.page import steering
from prefheads.report.statistics import evaluated
from prefheads.report.statistics.evaluated import Evaluation
from prefheads.stats import Estimate


def test_differences_of_texts_are_paired_by_sample(eval_run: Path) -> None:
    pair = ("dps-cluster:routing=hard", "dps-cluster")
    found = {d.metric: d for d in evaluated.differences(Evaluation.read(eval_run), [pair])}
    accuracy = found["accuracy"].paired
    assert accuracy.mean == pytest.approx(0.2)
    assert accuracy.low < 0.2 < accuracy.high  # 8 of 10 samples do not differ at all
    assert accuracy.high - accuracy.low < 1


def test_differences_of_likelihood_are_paired_by_sample(eval_run: Path, tmp_path: Path) -> None:
    """Samples differ by nats, which no interval of unpaired means could tell 0.6 from 0 in."""
    found = Evaluation.read(eval_run)
    (nll,) = [
        d.paired
        for d in evaluated.differences(found, [("dps", "random-heads")])
        if d.metric == evaluated.NLL
    ]
    expected = -0.6 - np.linspace(-0.1, 0.1, N)  # dps is method 1, random-heads method 7
    users = [f"u{i}" for i in range(N)]
    assert astuple(nll) == pytest.approx(astuple(Estimate.of(expected, users)), abs=1e-9)
    assert -0.7 < nll.low < -0.6 < nll.high < -0.5
    (entry,) = [e for e in steering.evaluation_entries(found, "") if e.name == "eval-controls-dps"]
    assert "LaMP-2, dps - random-heads: accuracy +0.600 [" in entry.shows
    assert f"change of NLL -0.600 [{nll.low:+.3f}, {nll.high:+.3f}]" in entry.shows
    assert "no interval" not in entry.shows and "Results keep no" not in entry.shows

    bare = tmp_path / "bare"  # only the tables were kept
    bare.mkdir()
    (bare / "results.json").write_bytes((eval_run / "results.json").read_bytes())
    (alone,) = [
        d.paired
        for d in evaluated.differences(Evaluation.read(bare), [("dps", "random-heads")])
        if d.metric == evaluated.NLL
    ]
    assert alone.mean == pytest.approx(-0.6) and np.isnan(alone.low)


def test_a_damaged_likelihood_is_told(eval_run: Path, tmp_path: Path) -> None:
    (tmp_path / "LaMP-2").mkdir()
    (tmp_path / "LaMP-2" / "likelihood.json").write_text('{"nll": 3}')
    found = replace(Evaluation.read(eval_run), folder=tmp_path)
    with pytest.raises(ArtifactError, match=r"likelihood\.json: damaged"):
        found.likelihood("LaMP-2")


def test_an_unfinished_or_damaged_evaluation_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        Evaluation.read(tmp_path)
    (tmp_path / "results.json").write_text('{"cells": [{"task": 1}]}')
    with pytest.raises(ArtifactError, match="damaged"):
        Evaluation.read(tmp_path)
