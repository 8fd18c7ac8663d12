"""Made-up runs that several tests of the report read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from support import results
from support.evaluated import METHODS, N, record, write_run

from prefheads.calibration.validate import Validation
from prefheads.evaluation.results import write_tables
from prefheads.evaluation.run import Measured
from prefheads.evaluation.tables import cells
from prefheads.steering.setting import PLAIN


@pytest.fixture(scope="session")
def eval_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LaMP-2 on ten samples, with a likelihood in which method i changes the NLL by i / 10."""
    out = write_run(tmp_path_factory.mktemp("runs") / "eval", "eval", fitted=["my fit"])
    texts = {m: [record("LaMP-2", m, i) for i in range(N)] for m in METHODS}
    names = tuple(f"{kind}{i}" for kind in "su" for i in range(N))
    nll = np.zeros((N, 3, len(METHODS))) + np.arange(len(METHODS)) / 10
    nll += np.arange(N)[:, None, None]  # users differ by nats, methods by tenths
    nll[:, :, METHODS.index("random-heads")] += np.linspace(-0.1, 0.1, N)[:, None]
    likelihood = Validation(PLAIN, METHODS, nll, names[:N], names[N:])
    measured = Measured("LaMP-2", texts, likelihood, {m: ["x"] for m in METHODS}, 1)
    (out / "LaMP-2").mkdir()
    lines = [json.dumps(asdict(r)) + "\n" for rows in texts.values() for r in rows]
    (out / "LaMP-2" / "records.jsonl").write_text("".join(lines) + '{"torn')
    (out / "LaMP-2" / "likelihood.json").write_text(json.dumps(likelihood.to_dict()))
    write_tables(out, [measured], [cells(measured)], {})
    return out


@pytest.fixture(scope="session")
def fit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "fit", "fit", data="people.jsonl")
    results.steerer().save(run)
    (run / "validation.json").write_text(json.dumps(results.validation().to_dict()))
    return run
