"""Finding a task's samples in a folder of benchmark data."""

from __future__ import annotations

from pathlib import Path

from prefheads.data.formats import find_sources, format_of
from prefheads.data.task import task_name
from prefheads.errors import DataError
from prefheads.models.bundled import NAME

PREFERRED = ("dev", "validation", "val", "test")


def find_tasks(data: Path) -> list[str]:
    """The tasks of which a data folder has samples with golds.

    Raises:
        DataError: There are none.
    """
    if data == Path(NAME):
        raise DataError("the bundled people belong to no benchmark task; give LaMP or LongLaMP")
    formats = ((format_of(path), path) for path in find_sources(data))
    found = sorted({t for f, path in formats if (t := f.task(path)) and f.has_golds(path)})
    if not found:
        raise DataError(f"{data}: holds no task's folder such as LaMP_4; name one with --task")
    return found


def find_samples(data: Path, task: str, split: str | None) -> Path:
    """What to load for a task's split, from anywhere under a data folder.

    Without a split: the development split, or the only one there is; of equal splits, such as
    ``LaMP_4/dev`` and ``time/LaMP_4/dev``, the one less deep.

    Raises:
        DataError: No such samples, or several splits to choose from.
    """
    found = find_sources(data)
    own = [path for path in found if format_of(path).task(path) == task_name(task)]
    if not own and len(found) == 1 and format_of(found[0]).task(found[0]) is None:
        own = found  # a file whose name says nothing; what it holds will be checked
    splits: dict[str, Path] = {}
    for path in sorted(own, key=lambda p: len(p.parts)):
        other = splits.setdefault(split_name(path), path)
        if other != path and len(other.parts) == len(path.parts):
            raise DataError(f"{data}: holds {other} and {path}; name the one of them with --data")
    names = ", ".join(sorted(splits)) or "none"
    if split is None:
        known = [
            name for name in PREFERRED
            if name in splits and format_of(splits[name]).has_golds(splits[name])
        ]  # fmt: skip
        split = next(iter(known or splits), None) if known or len(splits) == 1 else None
        if split is None:
            raise DataError(f"{data}: name the split of {task} to evaluate; there is {names}")
    if split not in splits:
        raise DataError(f"{data}: no split {split!r} of {task}; there is {names}")
    return splits[split]


def find_sibling(evaluated: Path, split: str) -> Path | None:
    """Another split with golds of the same data (not of another setting), if there is one."""
    places = (evaluated.parent, evaluated.parent.parent / split)
    sources = (path for place in places if place.is_dir() for path in find_sources(place))
    alike = (p for p in sources if format_of(p) is format_of(evaluated) and split_name(p) == split)
    return next((p for p in alike if p != evaluated and format_of(p).has_golds(p)), None)


def split_name(path: Path) -> str:
    """The name of a split, such as ``dev``."""
    return format_of(path).split(path)
