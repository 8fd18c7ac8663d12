"""Hints name the model as its user did, and say where the work is long."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefheads.cli import session
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.prepare import find_tasks
from prefheads.models.bundled import cache_dir, model_name
from prefheads.report.hints import HOURS, Hints
from prefheads.storage import write_json

CONVERTED = str(cache_dir() / "SmolLM2-135M-Instruct-0.1.2-1")


def test_the_bundled_models_folder_is_called_bundled() -> None:
    assert model_name(CONVERTED) == "bundled"
    for name in ("org/model", "/models/mine", "."):
        assert model_name(name) == name
    assert model_name(None) == "another model"


@pytest.mark.parametrize("named", ["bundled", CONVERTED])  # as runs say now, and said before
def test_commands_name_the_model_and_the_data(named: str) -> None:
    about = {"command": "discover", "model": named, "options": {"data": "bundled"}}
    hints = Hints(Path("runs/heads"), about)
    fit = "prefheads fit --model bundled --data bundled --out OTHER_RUN"
    assert hints.fit() == fit + HOURS
    validate = "prefheads validate --model bundled --run OTHER_RUN --data bundled"
    assert hints.validate() == f"{fit} && {validate}{HOURS}"
    # The made-up people belong to no task that could be evaluated.
    assert "prefheads eval --model bundled --data LAMP_FOLDER " in hints.evaluate()
    assert hints.evaluate().endswith(HOURS)
    with pytest.raises(DataError, match="the bundled people belong to no benchmark task"):
        find_tasks(Path("bundled"))


def test_a_run_of_another_model_is_named_as_it_was_typed(tmp_path: Path) -> None:
    before = {"command": "fit", "model": CONVERTED, "fingerprint": "a", "options": {}}
    write_json(tmp_path / "run.json", before)
    now = before | {"model": "org/other", "source": "org/other", "fingerprint": "b"}
    with pytest.raises(ArtifactError, match=r"another model \(bundled\), not of org/other;"):
        session.require_same_run(tmp_path, now)
    # A run of before models were recorded as typed goes on.
    session.require_same_run(tmp_path, before | {"model": "bundled", "source": CONVERTED})
