"""Finding a task's samples in a folder of benchmark data."""

from __future__ import annotations

import re
from pathlib import Path

from prefheads.errors import DataError
from prefheads.tasks.data import find_sources
from prefheads.tasks.lamp import OUTPUTS, QUESTIONS, task_name
from prefheads.tasks.longlamp import longlamp_task

PREFERRED = ("dev", "validation", "val", "test")


def find_tasks(data: Path) -> list[str]:
    """The tasks of which a data folder has samples with golds."""
    found = sorted({t for p in find_sources(data) if (t := _task(p)) and _has_golds(p)})
    if not found:
        raise DataError(f"{data}: holds no task's folder such as LaMP_4; name one with --task")
    return found


def find_samples(data: Path, task: str, split: str | None) -> Path:
    """What to load for a task's split, from anywhere under a data folder.

    Without a split: the development split, or the only one there is.

    Raises:
        DataError: No such samples, or several splits to choose from.
    """
    found = find_sources(data)
    own = [path for path in found if _task(path) == task_name(task)]
    if not own and len(found) == 1 and _task(found[0]) is None:
        own = found  # a file whose name says nothing; what it holds will be checked
    splits: dict[str, Path] = {}
    for path in sorted(own, key=lambda p: (len(p.parts), p), reverse=True):
        splits[_split(path)] = path  # of equal splits, such as time/LaMP_4's, the outermost stays
    names = ", ".join(sorted(splits)) or "none"
    if split is None:
        known = [name for name in PREFERRED if name in splits and _has_golds(splits[name])]
        split = next(iter(known or splits), None) if known or len(splits) == 1 else None
        if split is None:
            raise DataError(f"{data}: name the split of {task} to evaluate; there is {names}")
    if split not in splits:
        raise DataError(f"{data}: no split {split!r} of {task}; there is {names}")
    return splits[split]


def has_split(data: Path, task: str, split: str) -> bool:
    """Whether a task has a split, with its golds."""
    try:
        return _has_golds(find_samples(data, task, split))
    except DataError:
        return False


def _task(path: Path) -> str | None:
    if (task := longlamp_task(path)) is not None:
        return task
    for part in reversed(path.resolve().parts):
        if match := re.search(r"LaMP[-_]\d", part):
            return task_name(match[0])
    return None


def _split(path: Path) -> str:
    return path.name.removesuffix(QUESTIONS)


def _has_golds(path: Path) -> bool:
    if not path.name.endswith(QUESTIONS):
        return True  # LongLaMP's rows hold their own
    return path.with_name(_split(path) + OUTPUTS).is_file()
