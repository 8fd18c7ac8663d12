"""LaMP: its seven tasks, and reading its files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefheads.data.formats import NAMELESS, DataFormat
from prefheads.data.stream import read_json_items, starts_with_list
from prefheads.data.task import Task, task_name
from prefheads.errors import DataError
from prefheads.tasks.answers import LabelAnswer, RatingAnswer, TextAnswer
from prefheads.tasks.extract import only_one

QUESTIONS = "_questions.json"
OUTPUTS = "_outputs.json"


def _candidates(input: str) -> str:
    """The titles of the two papers to choose between, which the input quotes."""
    quoted = re.findall(r'"([^"]*)"', input)
    if len(quoted) < 3:
        raise DataError("the input must quote a title and two candidates")
    return f"{quoted[1]} {quoted[2]}"


TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy",
    "classic", "psychology", "fantasy", "romance", "thought-provoking", "social commentary",
    "violence", "true story",
)  # fmt: skip
_LINE = TextAnswer(one_line=True)
# The spaces before commas and full stops are the benchmark's own.
LAMP = (
    Task(
        "LaMP-1", '"{title}"', "title", ("title", "abstract"), closing="", query=_candidates,
        inside="title", frame=2, answers=LabelAnswer(("[1]", "[2]"), only_one),
    ),
    Task(
        "LaMP-2", 'the tag for the movie: "{description}" is "{tag}" ', "description",
        ("description",), query="description:", answers=LabelAnswer(TAGS),
    ),
    Task(
        "LaMP-3", '{score} is the score for "{text}" ', "text", ("text",), query="review:",
        personal=True, answers=RatingAnswer(1, 5),
    ),
    Task(
        "LaMP-4", '"{title}" is the title for "{text}" ', "text", ("title", "text"),
        query="article:", personal=True, answers=_LINE,
    ),
    Task(
        "LaMP-5", '"{title}" is a title for "{abstract}" ', "abstract", ("title", "abstract"),
        closing=". Following the given patterns ", query="paper:",
        frame='"{title}" is a title " " ', counted="Following the given patterns", answers=_LINE,
    ),
    Task(
        "LaMP-6", '"{title}" is the title for "{text}" ', "text", ("text",), personal=True,
        answers=_LINE,
    ),
    Task(
        "LaMP-7", '"{text}" ', "text", ("text",), frame='"" ', personal=True, answers=_LINE,
        closing=" are written by a person. Following the given patterns ",
        counted="are written by user. Following the given patterns",
    ),
)  # fmt: skip


class LampFormat(DataFormat):
    """A file of questions, with its golds in another file beside it."""

    name = "LaMP"
    holds = f"*{QUESTIONS}"

    def reads(self, source: Path) -> bool:
        """Files of questions, and folders of no other format."""
        return source.name.endswith(QUESTIONS) or source.is_dir()

    def rows(
        self, source: Path, outputs: Path | None, require_output: bool
    ) -> Iterator[tuple[str, Any]]:
        return read_lamp(source, outputs, require_output)

    def sources(self, folder: Path, files: Sequence[str]) -> Iterable[Path]:
        """The files of questions."""
        return [folder / name for name in files if name.endswith(QUESTIONS)]

    def task(self, source: Path) -> str | None:
        """What the nearest folder says, such as ``LaMP_4``."""
        for part in reversed(source.resolve().parts):
            if match := re.search(r"(?<!Long)LaMP[-_]\d", part):
                return task_name(match[0])
        return None

    def split(self, source: Path) -> str:
        """What the file's name begins with."""
        return source.name.removesuffix(QUESTIONS)

    def has_golds(self, source: Path) -> bool:
        """Whether the other file is there; the test split comes without."""
        return source.with_name(self.split(source) + OUTPUTS).is_file()


FORMAT = LampFormat()


def read_lamp(
    source: Path, outputs: Path | None, require_output: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows in the example format from a file of questions, or a folder with one, and its golds (by
    default beside it), each with its place; a sample without a ``user_id`` has the key
    :data:`NAMELESS`. One at a time, so memory does not grow with the file. A ``DataError`` if
    something is missing or malformed."""
    questions = source
    if source.is_dir():
        found = sorted(source.glob("*" + QUESTIONS))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise DataError(
                f"{source}: needs exactly one *{QUESTIONS} ({names} found); name the file"
            )
        questions = found[0]
    if not starts_with_list(questions):
        raise DataError(f"{questions}: must be a list of questions")
    golds: dict[str, str] = {}
    task: str | None
    golds_at = outputs or questions.with_name(questions.name.removesuffix(QUESTIONS) + OUTPUTS)
    if outputs is None and not require_output and not golds_at.exists():
        task = FORMAT.task(questions)  # the official folders carry the name
        if task is None:
            raise DataError(f"{questions}: no *{OUTPUTS} names its task; call the folder LaMP_<n>")
    else:
        task, golds = read_golds(golds_at)
    for index, question in enumerate(read_json_items(questions, "item")):
        where = f"{questions}[{index}]"
        key = _id(question, "id")
        if key is None:
            raise DataError(f'{where}: must be an object with an "id"')
        if require_output and key not in golds:
            raise DataError(f"{golds_at}: no gold for id {key!r}")
        user = _id(question, "user_id")
        known = {"id": key, "user_id": user or key, "output": golds.get(key), "task": task}
        yield where, question | known | ({NAMELESS: True} if user is None else {})


def read_golds(path: Path) -> tuple[str, dict[str, str]]:
    """The task and the outputs by id of an official ``*_outputs.json``; a ``DataError`` if it is
    missing or malformed."""
    task = next(iter(read_json_items(path, "task")), None)
    if not isinstance(task, str):
        raise DataError(f'{path}: must be an object with "task" and "golds"')
    golds: dict[str, str] = {}
    for index, gold in enumerate(read_json_items(path, "golds.item")):
        key = _id(gold, "id")
        if key is None or not isinstance(gold.get("output"), str):
            raise DataError(f'{path}: golds[{index}] must have an "id" and a string "output"')
        golds[key] = gold["output"]
    if not golds:
        raise DataError(f'{path}: "golds" must be a list with at least one gold')
    return task_name(task), golds


def _id(row: Any, field: str) -> str | None:
    """An id, which some files write as a number; ``None`` if there is none."""
    value = row.get(field) if isinstance(row, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None
