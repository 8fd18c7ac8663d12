"""The tasks of LaMP and LongLaMP: how each builds a prompt; reading the files of LaMP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from prefheads.data.stream import read_json_items, starts_with_list
from prefheads.errors import DataError

Item = Mapping[str, str]
QUESTIONS = "_questions.json"
OUTPUTS = "_outputs.json"
Kind = Literal["Gen.", "Cls.", "Reg."]
NAMELESS = object()
"""The key of a row whose user the file does not name; no field of a file has it."""


@dataclass(frozen=True)
class Task:
    """How one task writes its prompt and finds the profile items that matter.

    Attributes:
        item: Pattern of one profile item.
        long: The field of an item that may be cut to fit a context.
        closing: What stands between the profile and the input.
        corpus: The fields of an item that retrieval reads.
        query: Retrieval asks for what follows this in the input; ``""``: for the whole input;
            ``None``: for its two candidates.
        inside: The profile follows this word of the input, instead of preceding the whole input.
        kind: Generation, classification or regression.
        dated: Items have a ``date``; otherwise they stand in the order of time.
        frame: What the benchmark counts as an item without its long text: a pattern, a number of
            tokens, or ``None`` for ``item`` with a space as its text.
        counted: What the benchmark counts of ``closing``, besides one token for a full stop.
        personal: Items are texts of one person alone, so who shares one is the same person (movies
            and papers have many people).
    """

    item: str
    long: str
    closing: str
    corpus: tuple[str, ...]
    query: str | None = ":"
    inside: str | None = None
    kind: Kind = "Gen."
    dated: bool = True
    frame: str | int | None = None
    counted: str = ""
    personal: bool = False

    @property
    def fields(self) -> list[str]:
        """The fields that an item needs for the prompt."""
        return [field for _, field, _, _ in Formatter().parse(self.item) if field]


# The spaces before commas and full stops are the benchmarks' own.
TASKS = {
    "LaMP-1": Task(
        '"{title}"',
        "title",
        "",
        ("title", "abstract"),
        query=None,
        inside="title",
        kind="Cls.",
        frame=2,
    ),
    "LaMP-2": Task(
        'the tag for the movie: "{description}" is "{tag}" ',
        "description",
        ". ",
        ("description",),
        "description:",
        kind="Cls.",
    ),
    "LaMP-3": Task(
        '{score} is the score for "{text}" ',
        "text",
        ". ",
        ("text",),
        "review:",
        kind="Reg.",
        personal=True,
    ),
    "LaMP-4": Task(
        '"{title}" is the title for "{text}" ',
        "text",
        ". ",
        ("title", "text"),
        "article:",
        personal=True,
    ),
    "LaMP-5": Task(
        '"{title}" is a title for "{abstract}" ',
        "abstract",
        ". Following the given patterns ",
        ("title", "abstract"),
        "paper:",
        frame='"{title}" is a title " " ',
        counted="Following the given patterns",
    ),
    "LaMP-6": Task('"{title}" is the title for "{text}" ', "text", ". ", ("text",), personal=True),
    "LaMP-7": Task(
        '"{text}" ',
        "text",
        " are written by a person. Following the given patterns ",
        ("text",),
        frame='"" ',
        counted="are written by user. Following the given patterns",
        personal=True,
    ),
    "LongLaMP-1": Task('"{title}" is the title for "{text}" ', "text", ". ", ("text",)),
    "LongLaMP-2": Task(
        '"{abstract}" is the abstract for the title "{title}"',
        "abstract",
        ". Use the above abstracts as context to understand the style and language of the user "
        "and, ",
        ("title", "abstract"),
        "items:",
        dated=False,
    ),
    "LongLaMP-3": Task(
        '"{overall}" is a rating for the product with description "{description}". '
        '"{summary}" is summary for "{reviewText}" ',
        "reviewText",
        ". Following the given patterns ",
        ("overall", "summary", "description", "reviewText"),
        query="",
        dated=False,
    ),
    "LongLaMP-4": Task(
        '"{summary}" is a summary for "{content}" ',
        "content",
        ". Following the given patterns, ",
        ("summary", "content"),
        query="",
        dated=False,
    ),
}
GENERIC = Task('"{text}"', "text", " are written by a person. ", ("text",))

LONGLAMP_NAMES = {
    "LongLaMP-1": "email_completion",
    "LongLaMP-2": "abstract_generation",
    "LongLaMP-3": "product_review",
    "LongLaMP-4": "topic_writing",
}
"""What the data set of LongLaMP calls its tasks; ``_user`` or ``_temporal`` names the setting."""


def task_name(name: str) -> str:
    """The usual spelling of a task's name; names that are no task's stay as they are.

    ``LaMP_7`` is ``LaMP-7``; ``longlamp_4``, ``topic_writing`` and ``topic_writing_user`` are
    ``LongLaMP-4``.

    Raises:
        DataError: A task that LaMP or LongLaMP does not have.
    """
    plain = re.sub("_(user|temporal)$", "", name)
    for task, alias in LONGLAMP_NAMES.items():
        if plain == alias:
            return task
    match = re.fullmatch(r"(long)?lamp[-_ ]?(.+)", name, re.IGNORECASE)
    if match is None:
        return name
    known = f"{'Long' if match[1] else ''}LaMP-{match[2]}"
    if known not in TASKS:
        raise DataError(f"unknown task {name!r}: the tasks are {', '.join(TASKS)}")
    return known


def task_of(name: str | None) -> Task:
    """The task of that name; examples of no known task share the generic form."""
    return TASKS.get(name, GENERIC) if name else GENERIC


def require_fields(profile: Sequence[Item], fields: Sequence[str], where: str) -> None:
    """Raise a ``DataError`` that begins with ``where`` unless every item has all the fields."""
    for index, item in enumerate(profile):
        for field in fields:
            if field not in item:
                raise DataError(f'{where}: profile[{index}] lacks the field "{field}"')


def read_lamp(
    source: Path, outputs: Path | None, require_output: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows in the example format from a pair of official files, each with the place it came from.

    The questions are read one at a time, so memory does not grow with the file.

    Args:
        source: A ``*_questions.json``, or a folder that holds one.
        outputs: The golds; by default the ``*_outputs.json`` beside the questions.
        require_output: Whether every question needs a gold.

    Yields:
        ``(place, row)``; a sample without a ``user_id`` has the key :data:`NAMELESS`.

    Raises:
        DataError: Files that are missing or malformed, or a question without a gold.
    """
    questions = _questions_in(source) if source.is_dir() else source
    if not starts_with_list(questions):
        raise DataError(f"{questions}: must be a list of questions")
    golds: dict[str, str] = {}
    golds_at = outputs or questions.with_name(questions.name.removesuffix(QUESTIONS) + OUTPUTS)
    if outputs is None and not require_output and not golds_at.exists():
        task = _task_in_path(questions)
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
    """The task and the outputs by id of an official ``*_outputs.json``.

    Raises:
        DataError: Missing or malformed.
    """
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


def _questions_in(folder: Path) -> Path:
    found = sorted(folder.glob("*" + QUESTIONS))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{folder}: needs exactly one *{QUESTIONS} ({names} found); name the file")
    return found[0]


def _task_in_path(questions: Path) -> str:
    """Test questions come without golds, so without a task name: the official folders carry it."""
    found = re.findall(r"(?<!Long)LaMP[-_]\d", "/".join(questions.resolve().parts[-3:]))
    if not found:
        raise DataError(f"{questions}: no *{OUTPUTS} names its task; call the folder LaMP_<n>")
    return task_name(found[-1])
