"""Small made-up tasks in the official files of the benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

THINGS = ("bread", "the sea", "old clocks", "rain", "trains", "a garden", "chess", "maps")
TAGS = ("comedy", "classic", "action")


def _tweet(i: int, k: int) -> dict[str, str]:
    return {"id": f"{i}-{k}", "text": f"so happy with {THINGS[(i + k) % 8]} today {i}"}


def _movie(i: int, k: int) -> dict[str, str]:
    text = f"A film about {THINGS[(i + 3 * k) % 8]}."
    return {"id": f"{i}-{k}", "description": text, "tag": TAGS[(i + k) % 3]}


def _review(i: int, k: int) -> dict[str, str]:
    text = f"I bought {THINGS[(i + k) % 8]} and kept it."
    return {"id": f"{i}-{k}", "text": text, "score": str(1 + (i + k) % 5)}


_Make = Callable[[int], tuple[str, str]]
TASKS: dict[str, tuple[Callable[[int, int], dict[str, str]], _Make]] = {
    "LaMP_7": (
        _tweet,
        lambda i: (f"Paraphrase the following tweet: I like {THINGS[i % 8]}.", f"me and {i}"),
    ),
    "LaMP_2": (
        _movie,
        lambda i: (f"Which tag? description: A film about {THINGS[i % 8]}.", TAGS[i % 3]),
    ),
    "LaMP_3": (_review, lambda i: (f"Which score? review: {THINGS[i % 8]}!", str(1 + i % 5))),
}


def write_task(root: Path, task: str, n: int, split: str = "dev", first: int = 0) -> Path:
    """A task's questions and golds: ``n`` users, two profile items each."""
    item, sample = TASKS[task]
    folder = root / task
    folder.mkdir(parents=True, exist_ok=True)
    questions: list[dict[str, Any]] = []
    golds = []
    for i in range(first, first + n):
        text, gold = sample(i)
        questions.append({"id": f"{i}", "input": text, "profile": [item(i, k) for k in range(2)]})
        golds.append({"id": f"{i}", "output": gold})
    (folder / f"{split}_questions.json").write_text(json.dumps(questions))
    (folder / f"{split}_outputs.json").write_text(json.dumps({"task": task, "golds": golds}))
    return folder
