"""Finding a task's files in a folder of benchmark data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefheads.errors import DataError
from prefheads.tasks.lamp import OUTPUTS, QUESTIONS, TASKS, task_name

PREFERRED = ("dev", "validation", "test")


def find_tasks(data: Path) -> list[str]:
    """The tasks that a data folder has a folder for."""
    found = [name for name in TASKS if _folder(data, name) is not None]
    if not found:
        raise DataError(f"{data}: holds no task's folder such as LaMP_4; name one with --task")
    return found


def questions_file(data: Path, task: str, split: str | None) -> Path:
    """The questions of a task's split.

    Looks in ``data/LaMP_4`` and in ``data`` itself, for ``<split>_questions.json`` there or in a
    folder of the split's name. Without a split: the development split, or the only one there is.

    Raises:
        DataError: No such file, or several to choose from.
    """
    folder = _folder(data, task_name(task)) or data
    if folder.is_file():
        return folder
    found = sorted({*folder.glob(f"*{QUESTIONS}"), *folder.glob(f"*/*{QUESTIONS}")})
    names = {_split(path): path for path in found}
    if split is not None:
        if split not in names:
            raise DataError(f"{folder}: no split {split!r}; there is {', '.join(names) or 'none'}")
        return names[split]
    for name in PREFERRED:
        if name in names:
            return names[name]
    if len(names) != 1:
        raise DataError(f"{folder}: name the split; there is {', '.join(names) or 'none'}")
    return found[0]


def has_split(data: Path, task: str, split: str) -> bool:
    """Whether a task has a split, with its golds."""
    try:
        path = questions_file(data, task, split)
    except DataError:
        return False
    return path.with_name(path.name.removesuffix(QUESTIONS) + OUTPUTS).is_file()


def _split(path: Path) -> str:
    return path.name.removesuffix(QUESTIONS)


def _folder(data: Path, task: str) -> Path | None:
    spellings: Sequence[str] = (task, task.replace("-", "_"))
    return next((data / name for name in spellings if (data / name).is_dir()), None)
