"""Rows in the example format, from whatever file or folder holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefheads.data.stream import read_json_lines
from prefheads.errors import DataError
from prefheads.models.bundled import NAME, people_path
from prefheads.tasks.lamp import QUESTIONS, read_lamp
from prefheads.tasks.longlamp import longlamp_task, read_longlamp, splits_in


def read_rows(
    source: Path, outputs: Path | None = None, require_output: bool = True
) -> Iterator[tuple[str, Any]]:
    """The rows of a LaMP or LongLaMP source or of a JSONL file, one at a time, with their places.

    Args:
        source: As for :func:`prefheads.load_examples`; "bundled" are the example people.
        outputs: The golds of a LaMP file that are not beside it.
        require_output: Whether every question of LaMP needs a gold.

    Raises:
        DataError: Files that are missing or malformed.
    """
    if source == Path(NAME):
        source = people_path()
    longlamp = None if source.name.endswith(QUESTIONS) else longlamp_task(source)
    if longlamp is None and (source.is_dir() or source.name.endswith(QUESTIONS)):
        yield from read_lamp(source, outputs, require_output)
        return
    if outputs is not None:
        raise DataError(f"outputs belong to a LaMP *{QUESTIONS}; other examples hold their own")
    if longlamp is None:
        yield from read_json_lines(source)
    else:
        yield from read_longlamp(source, longlamp)


def find_sources(path: Path) -> list[Path]:
    """Everything under a path that :func:`read_rows` takes; a file or split is found itself.

    Raises:
        DataError: A folder without data.
    """
    if path == Path(NAME):
        return [people_path()]
    if not path.is_dir():
        return [path]
    found: set[Path] = set()
    for folder, files in _folders(path):
        found |= {folder / name for name in files if name.endswith(QUESTIONS)}
        if longlamp_task(folder) is not None:
            found |= {folder / split for split in splits_in(folder)}
    if not found:
        raise DataError(f"{path}: holds no *{QUESTIONS} and no split of LongLaMP")
    return sorted(found)


def _folders(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all below it with the names of their files, behind links too, each once."""
    seen: set[str] = set()
    for folder, below, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        yield Path(folder), files
