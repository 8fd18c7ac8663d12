"""Runs of `eval` and others as they lie in a folder, made up."""

from __future__ import annotations

import json
from pathlib import Path

from prefheads.evaluation.records import Record

METHODS = (
    "plain",
    "dps",
    "dps:fraction=0.08",
    "dps:fraction=0.02",
    "dps:gamma=0.5",
    "dps-cluster",
    "dps-cluster:routing=hard",
    "random-heads",
    "random-heads:seed=1",
    "random-mask:fraction=0.08",
)
RIGHT = {"dps": 8, "dps-cluster": 4, "dps-cluster:routing=hard": 6}  # of 10 samples
N = 10


def write_run(folder: Path, command: str, **options: object) -> Path:
    folder.mkdir(exist_ok=True)
    about = {"command": command, "model": "some model", "options": options}
    (folder / "run.json").write_text(json.dumps(about))
    return folder


def record(task: str, method: str, i: int) -> Record:
    text = "comedy" if i < RIGHT.get(method, 2) else "action"
    return Record(
        task, f"s{i}", f"u{i}", method, "", text, "comedy", method, 0.0, 1, 1, 1.0, 1.0, 1
    )
