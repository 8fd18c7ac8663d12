"""The LaMP benchmark: one table of what its tasks look like, and its official files.

``TASKS`` holds every difference between the tasks (Salemi et al., "LaMP: When Large Language Models
Meet Personalization"), so that prompts and retrieval are plain functions of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from prefheads.errors import DataError

Item = Mapping[str, str]
QUESTIONS = "_questions.json"
OUTPUTS = "_outputs.json"


@dataclass(frozen=True)
class Task:
    """How one task writes its prompt and finds the profile items that matter.

    Attributes:
        item: Pattern of one profile item.
        long: The field of an item that may be cut to fit a context.
        closing: What stands between the profile and the input.
        corpus: The fields of an item that retrieval reads.
        query: Retrieval asks for what follows this in the input; ``None``: for its two candidates.
        inside: The profile follows this word of the input, instead of preceding the whole input.
    """

    item: str
    long: str
    closing: str
    corpus: tuple[str, ...]
    query: str | None = ":"
    inside: str | None = None

    @property
    def fields(self) -> list[str]:
        """The fields that an item needs for the prompt."""
        return [field for _, field, _, _ in Formatter().parse(self.item) if field]


# The spaces before commas and full stops are the benchmark's own.
TASKS = {
    "LaMP-1": Task('"{title}"', "title", "", ("title", "abstract"), None, inside="title"),
    "LaMP-2": Task(
        'the tag for the movie: "{description}" is "{tag}" ',
        "description",
        ". ",
        ("description",),
        "description:",
    ),
    "LaMP-3": Task('{score} is the score for "{text}" ', "text", ". ", ("text",), "review:"),
    "LaMP-4": Task(
        '"{title}" is the title for "{text}" ', "text", ". ", ("title", "text"), "article:"
    ),
    "LaMP-5": Task(
        '"{title}" is a title for "{abstract}" ',
        "abstract",
        ". Following the given patterns ",
        ("title", "abstract"),
        "paper:",
    ),
    "LaMP-6": Task('"{title}" is the title for "{text}" ', "text", ". ", ("text",)),
    "LaMP-7": Task(
        '"{text}" ',
        "text",
        " are written by a person. Following the given patterns ",
        ("text",),
    ),
}
GENERIC = Task('"{text}"', "text", " are written by a person. ", ("text",))


def task_name(name: str) -> str:
    """The usual spelling of a task's name: ``LaMP_7`` is ``LaMP-7``; other names stay as they are.

    Raises:
        DataError: A LaMP task that does not exist.
    """
    match = re.fullmatch(r"lamp[-_ ]?(.+)", name, re.IGNORECASE)
    if match is None:
        return name
    known = f"LaMP-{match[1]}"
    if known not in TASKS:
        raise DataError(f"unknown task {name!r}: the LaMP tasks are {', '.join(TASKS)}")
    return known


def task_of(name: str | None) -> Task:
    """The task of that name; examples of no LaMP task share the generic form."""
    return TASKS.get(name, GENERIC) if name else GENERIC


def require_fields(profile: Sequence[Item], fields: Sequence[str], where: str) -> None:
    """Raise a ``DataError`` that begins with ``where`` unless every item has all the fields."""
    for index, item in enumerate(profile):
        for field in fields:
            if field not in item:
                raise DataError(f'{where}: profile[{index}] lacks the field "{field}"')


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (a byte order mark is dropped).

    Raises:
        DataError: No such file, not readable, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); convert the file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_lamp(
    source: Path, outputs: Path | None, require_output: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows in the example format from a pair of official files, each with the place it came from.

    Args:
        source: A ``*_questions.json``, or a folder that holds one.
        outputs: The golds; by default the ``*_outputs.json`` beside the questions.
        require_output: Whether every question needs a gold.

    Yields:
        ``(place, row)``; each sample is a user of its own.

    Raises:
        DataError: Files that are missing or malformed, or a question without a gold.
    """
    questions = _questions_in(source) if source.is_dir() else source
    rows = _read_json(questions)
    if not isinstance(rows, list):
        raise DataError(f"{questions}: must be a list of questions")
    golds: dict[str, str] = {}
    golds_at = outputs or questions.with_name(questions.name.removesuffix(QUESTIONS) + OUTPUTS)
    if outputs is None and not require_output and not golds_at.exists():
        task = _task_in_path(questions)
    else:
        task, golds = _read_golds(golds_at)
    for index, question in enumerate(rows):
        where = f"{questions}[{index}]"
        if not isinstance(question, dict) or not isinstance(question.get("id"), str):
            raise DataError(f'{where}: must be an object with a string "id"')
        key = question["id"]
        if require_output and key not in golds:
            raise DataError(f"{golds_at}: no gold for id {key!r}")
        yield where, {**question, "user_id": key, "output": golds.get(key), "task": task}


def _questions_in(folder: Path) -> Path:
    found = sorted(folder.glob("*" + QUESTIONS))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{folder}: needs exactly one *{QUESTIONS} ({names} found); name the file")
    return found[0]


def _task_in_path(questions: Path) -> str:
    """Test questions come without golds, so without a task name: the official folders carry it."""
    match = re.search(r"LaMP[-_]\d", f"{questions.resolve().parent.name}/{questions.name}")
    if match is None:
        raise DataError(f"{questions}: no *{OUTPUTS} names its task; call the folder LaMP_<n>")
    return task_name(match[0])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None


def _read_golds(path: Path) -> tuple[str, dict[str, str]]:
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("task"), str):
        raise DataError(f'{path}: must be an object with "task" and "golds"')
    if not isinstance(content.get("golds"), list):
        raise DataError(f'{path}: "golds" must be a list')
    golds: dict[str, str] = {}
    for index, gold in enumerate(content["golds"]):
        if not isinstance(gold, dict) or not all(
            isinstance(gold.get(field), str) for field in ("id", "output")
        ):
            raise DataError(f'{path}: golds[{index}] must have a string "id" and "output"')
        golds[gold["id"]] = gold["output"]
    return task_name(content["task"]), golds
