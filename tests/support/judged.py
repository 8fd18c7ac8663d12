"""Made-up runs for judges: two methods, one of which writes better texts by a known rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefheads.data.example import Example
from prefheads.evaluation.records import Record, Records, write_samples
from prefheads.judge.llm import DIMENSIONS

TASK, METHODS = "LaMP-7", ("cad", "dps:gamma=0.5")
GOOD, BAD = "lovely", "dull"


def write_run(
    root: Path, n: int = 20, same: int = 0, task: str = TASK, good: int | None = None
) -> Path:
    """A run with ``n`` samples of as many users, and ``same`` more with equal texts.

    The second method's text is the good one for the first ``good`` samples (three in four if
    None), the first method's for the rest.
    """
    good = n * 3 // 4 if good is None else good
    folder = root / task
    folder.mkdir(parents=True, exist_ok=True)
    examples, records = [], []
    for i in range(n + same):
        item = {"id": f"{i}-0", "text": f"what <b>user {i}</b> & co wrote", "title": "kept out"}
        examples.append(Example(f"s{i}", f"u{i}", (item,), f"Ask <i>{i}</i>?", f"gold {i}", task))
        texts = [f"{BAD} text {i}", f"{GOOD} text {i}"]
        if i >= n:
            texts = [f"equal text {i}"] * 2
        elif i >= good:
            texts.reverse()
        for method, text in zip(METHODS, texts, strict=True):
            records.append(record(f"s{i}", method, text, task))
    Records(folder / "records.jsonl").add(records)
    write_samples(folder, examples)
    return root


def record(key: str, method: str, text: str, task: str = TASK) -> Record:
    """A record of which judges read the id, the method and the text."""
    return Record(task, key, f"u{key}", method, "hash", text, "gold", "", 0.5, 9, 3, 0.1, 0.1, 1)


def verdict(first: int, second: int) -> str:
    scores = ({name: score for name in DIMENSIONS} for score in (first, second))
    return json.dumps(dict(zip(("first", "second"), scores, strict=True)))


def scored(body: dict[str, Any]) -> str:
    """4 for a good text and 2 for another, and one more for standing first."""
    material = json.loads(body["messages"][1]["content"])
    first, second = (4 if GOOD in material[k] else 2 for k in ("first", "second"))
    return verdict(first + 1, second)
