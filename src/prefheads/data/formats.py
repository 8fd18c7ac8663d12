"""Files of examples: their formats, and where under a folder they lie.

Files of JSON lines are read here. Further formats are found in a registry when a file is first
read; a package offers its own in the group ``prefheads.formats`` of its entry points.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefheads.data.stream import read_json_lines
from prefheads.data.task import find_task
from prefheads.errors import DataError
from prefheads.models.bundled import NAME, people_path
from prefheads.registry import Registry

NAMELESS = object()
"""The key of a row whose user the file does not name; no field of a file has it."""


class DataFormat:
    """A format of files with examples. This one is JSON lines; others override what differs.

    Attributes:
        name: Of the format.
        holds: What a folder with data of this format holds, for messages.
    """

    name = "JSON lines"
    holds = ""

    def reads(self, source: Path) -> bool:
        """Whether a file, folder or split is of this format."""
        return True

    def rows(
        self, source: Path, outputs: Path | None, require_output: bool
    ) -> Iterator[tuple[str, Any]]:
        """The rows of a source in the example format, as :func:`read_rows` gives them."""
        if outputs is not None:
            raise DataError(
                f"outputs belong to files of questions alone; {source} holds its own golds"
            )
        yield from read_json_lines(source)

    def sources(self, folder: Path, files: Sequence[str]) -> Iterable[Path]:
        """The sources of this format in a folder of files with these names."""
        return ()

    def task(self, source: Path) -> str | None:
        """The task that the names of a file and its folders say; ``None`` if they say none."""
        for part in reversed(source.resolve().parts[-3:]):
            try:
                if (task := find_task(part.partition(".")[0])) is not None:
                    return task.name
            except DataError:  # a number that the benchmark does not have
                continue
        return None

    def split(self, source: Path) -> str:
        """The name of the split, such as ``dev``."""
        return source.name

    def has_golds(self, source: Path) -> bool:
        """Whether its examples have golds."""
        return True


JSON_LINES = DataFormat()
FORMATS = Registry(
    "prefheads.formats",
    DataFormat,
    ("prefheads.tasks.longlamp:FORMAT", "prefheads.tasks.lamp:FORMAT"),
)


def format_of(source: Path) -> DataFormat:
    """The format of a file, folder or split: JSON lines where no other format claims it."""
    return next((f for f in FORMATS.all().values() if f.reads(source)), JSON_LINES)


def read_rows(
    source: Path, outputs: Path | None = None, require_output: bool = True
) -> Iterator[tuple[str, Any]]:
    """The rows of a source in whatever format, one at a time, each with its place; arguments as for
    :func:`prefheads.load_examples`. A ``DataError`` if files are missing or malformed."""
    source = people_path() if source == Path(NAME) else source
    yield from format_of(source).rows(source, outputs, require_output)


def find_sources(path: Path) -> list[Path]:
    """Everything under a path that :func:`read_rows` takes; a file or split is found itself. A
    ``DataError`` if a folder has no data."""
    if path == Path(NAME):
        return [people_path()]
    if not path.is_dir():
        return [path]
    formats, found, seen = FORMATS.all().values(), set[Path](), set[str]()
    for folder, below, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # by another link
            below.clear()
            continue
        seen.add(real)
        found.update(source for f in formats for source in f.sources(Path(folder), files))
    if not found:
        raise DataError(f"{path}: holds no {' and no '.join(f.holds for f in formats if f.holds)}")
    return sorted(found)
