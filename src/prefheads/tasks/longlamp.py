"""LongLaMP: its four tasks, and reading its files.

There is one table for each task, setting and split, as Parquet, JSON or JSONL.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from prefheads.data.formats import DataFormat
from prefheads.data.stream import read_json_items, read_json_lines, starts_with_list
from prefheads.data.task import Task, task_name
from prefheads.errors import DataError
from prefheads.optional import require
from prefheads.tasks.answers import TextAnswer
from prefheads.tasks.lamp import OUTPUTS, QUESTIONS

FOLDERS = {
    "LongLaMP-1": "email_completion",
    "LongLaMP-2": "abstract_generation",
    "LongLaMP-3": "product_review",
    "LongLaMP-4": "topic_writing",
}
"""What the data set calls its tasks; ``_user`` or ``_temporal`` names the setting."""


_FORMS = (
    Task("LongLaMP-1", '"{title}" is the title for "{text}" ', "text", ("text",)),
    Task(
        "LongLaMP-2", '"{abstract}" is the abstract for the title "{title}"', "abstract",
        ("title", "abstract"), query="items:", dated=False,
        closing=". Use the above abstracts as context to understand the style and language of the "
        "user and, ",
    ),
    Task(
        "LongLaMP-3",
        '"{overall}" is a rating for the product with description "{description}". '
        '"{summary}" is summary for "{reviewText}" ',
        "reviewText", ("overall", "summary", "description", "reviewText"),
        closing=". Following the given patterns ", query="", dated=False,
    ),
    Task(
        "LongLaMP-4", '"{summary}" is a summary for "{content}" ', "content",
        ("summary", "content"), closing=". Following the given patterns, ", query="", dated=False,
    ),
)  # fmt: skip
LONGLAMP = tuple(
    replace(
        form,
        aliases=tuple(FOLDERS[form.name] + setting for setting in ("", "_user", "_temporal")),
        answers=TextAnswer(new_tokens=512),
    )
    for form in _FORMS
)

# A split is one file, `test.json`, or several: `test-00000-of-00002.parquet` and so on.
_FILE = re.compile(r"(.+?)(?:-\d+-of-\d+)?\.(?:parquet|jsonl?)")
_TASK = re.compile(rf"longlamp[-_]?\d|({'|'.join(FOLDERS.values())})(_user|_temporal)?")
# Each task calls its users something else.
_USER_FIELDS = ("user_id", "reviewerId", "author", "name")
ABSTRACT_WORDS = 750
"""Words of an abstract that the benchmark shows."""


class LongLampFormat(DataFormat):
    """Tables in a folder that is called as the task, a file or several for each split."""

    name = "LongLaMP"
    holds = "split of LongLaMP"

    def reads(self, source: Path) -> bool:
        """What lies in a folder of a task, but no file of LaMP's questions."""
        return not source.name.endswith(QUESTIONS) and self.task(source) is not None

    def rows(
        self, source: Path, outputs: Path | None, require_output: bool
    ) -> Iterator[tuple[str, Any]]:
        if outputs is not None:
            raise DataError(f"outputs belong to a LaMP *{QUESTIONS}; {source} holds its own golds")
        index, task = count(), self.task(source)
        split, files = _files(source)
        for path in files:
            for where, row in _records(path):
                yield where, _row(row, where, f"{split}-{next(index)}") | {"task": task}

    def sources(self, folder: Path, files: Sequence[str]) -> Iterable[Path]:
        """The splits of a task's folder."""
        return () if self.task(folder) is None else [folder / name for name in splits_in(folder)]

    def task(self, source: Path) -> str | None:
        """What the name of a file or of a folder above it says."""
        for part in reversed(source.resolve().parts[-3:]):
            name = part.partition(".")[0].lower()
            if _TASK.fullmatch(name):
                return task_name(name)
        return None


FORMAT = LongLampFormat()


def splits_in(folder: Path) -> dict[str, list[Path]]:
    """The files of each split in a folder, in the order of their numbers."""
    splits: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        match = _FILE.fullmatch(path.name)
        if match and path.is_file() and not path.name.endswith((QUESTIONS, OUTPUTS)):
            splits[match[1]].append(path)
    return dict(splits)


def _files(source: Path) -> tuple[str, list[Path]]:
    """The name and the files of a split: a file, a folder of its files, or its name in a folder."""
    if source.is_file():
        match = _FILE.fullmatch(source.name)
        if match is None:
            raise DataError(f"{source}: must be a .parquet, .json or .jsonl file")
        return match[1], [source]
    if not source.is_dir():
        files = splits_in(source.parent).get(source.name)
        if files is None:
            raise DataError(f"no such file, folder or split: {source}")
        return source.name, files
    splits = splits_in(source)
    if len(splits) != 1:
        names = ", ".join(splits) or "none"
        raise DataError(
            f"{source}: needs the files of one split ({names} found); name it, as in {source}/test"
        )
    return next(iter(splits.items()))


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        rows = _parquet(path)
    elif starts_with_list(path):
        rows = read_json_items(path, "item")
    else:
        yield from read_json_lines(path)
        return
    yield from ((f"{path}[{index}]", row) for index, row in enumerate(rows))


def _parquet(path: Path) -> Iterator[Any]:
    arrow = require("pyarrow.parquet", "parquet")
    try:
        file = arrow.ParquetFile(path)
        for batch in file.iter_batches(batch_size=16):  # profiles are long
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: cannot be read as Parquet ({reason})") from None


def _row(row: Any, where: str, key: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be an object")
    user = next((row[field] for field in _USER_FIELDS if row.get(field) is not None), None)
    if user is None:
        raise DataError(f"{where}: has none of the fields {', '.join(_USER_FIELDS)}")
    profile = row.get("profile")
    if isinstance(profile, list):
        profile = [_item(item) for item in profile]
    known = {"id": str(row.get("id", key)), "user_id": str(user), "profile": profile}
    return known | {field: row.get(field) for field in ("input", "output")}


def _item(item: Any) -> Any:
    """A profile item with empty text for what is not known, and abstracts as long as shown."""
    if not isinstance(item, dict):
        return item
    known = {field: "" if value is None else value for field, value in item.items()}
    if isinstance(known.get("abstract"), str):
        known["abstract"] = " ".join(known["abstract"].split()[:ABSTRACT_WORDS])
    return known
