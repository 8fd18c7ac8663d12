"""What a benchmark task is, and how tasks are found by name.

A task says how its prompt is written and which profile items matter for an input. To add one, make
a :class:`Task` in a module of your own, and either call :func:`register_task` or name it in your
package's entry points, group ``prefheads.tasks``. Tasks are looked for when a name is first asked
for, so that work without tasks imports none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

from prefheads.errors import DataError
from prefheads.registry import Registry

Item = Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """One benchmark task.

    Attributes:
        name: What results call it. A name may be typed in small letters, and with ``_``, a space or
            nothing for ``-``.
        item: Pattern of one profile item in the prompt, such as ``'"{title}" by "{author}"'``.
        long: The field of an item that may be cut to fit a context.
        corpus: The fields of an item that retrieval reads.
        closing: What stands between the profile and the input.
        query: Retrieval asks for what follows this in the input; ``""``: for the whole input; a
            function takes the query out of the input itself.
        inside: The profile follows this word of the input, instead of preceding the whole input.
        dated: Items have a ``date``; otherwise they stand in the order of time.
        frame: What the benchmark counts as an item without its long text: a pattern, a number of
            tokens, or ``None`` for ``item`` with a space as its text.
        counted: What the benchmark counts of ``closing``, besides one token for a full stop.
        personal: Items are texts of one person alone, so who shares one is the same person (movies
            and papers have many people).
        answers: How answers are scored, extracted and how long they are: a
            :class:`prefheads.tasks.answers.AnswerType`. ``None``: they are texts of any form.
        aliases: Other names, to be typed exactly.
    """

    name: str
    item: str
    long: str
    corpus: tuple[str, ...]
    closing: str = ". "
    query: str | Callable[[str], str] = ":"
    inside: str | None = None
    dated: bool = True
    frame: str | int | None = None
    counted: str = ""
    personal: bool = False
    answers: object = None
    aliases: tuple[str, ...] = ()

    @property
    def fields(self) -> list[str]:
        """The fields that an item needs for the prompt."""
        return [field for _, field, _, _ in Formatter().parse(self.item) if field]

    def asked(self, input: str) -> str:
        """What retrieval asks for.

        Raises:
            DataError: The input has no such part.
        """
        if callable(self.query):
            return self.query(input)
        if not self.query:
            return input
        _, marker, query = input.partition(self.query)
        if not marker:
            raise DataError(f'the input has no "{self.query}", so nothing to retrieve for')
        return query


GENERIC = Task("", '"{text}"', "text", ("text",), " are written by a person. ")
"""The form of examples that belong to no task."""

TASKS = Registry(
    "prefheads.tasks", Task, ("prefheads.tasks.lamp:LAMP", "prefheads.tasks.longlamp:LONGLAMP")
)
register_task = TASKS.register
"""Make a task known in this process, for instance in a notebook."""


def task_name(name: str) -> str:
    """The usual spelling of a task's name; names that are no task's stay as they are.

    ``LaMP_7`` is ``LaMP-7``; ``longlamp_4``, ``topic_writing`` and ``topic_writing_user`` are
    ``LongLaMP-4``.

    Raises:
        DataError: A number that a benchmark does not have, such as ``LaMP-9``.
    """
    known = TASKS.all()
    if name in known:
        return name
    typed = _letters(name)
    for task in known.values():
        if name in task.aliases or typed == _letters(task.name):
            return task.name
    number = re.compile(r"\d+$")
    families = {number.sub("", key) for key in map(_letters, known) if number.search(key)}
    if any(typed.startswith(family) and typed[len(family) :][:1].isdigit() for family in families):
        raise DataError(f"unknown task {name!r}: the tasks are {', '.join(known)}")
    return name


def find_task(name: str | None) -> Task | None:
    """The task of that name, or ``None``; fails as :func:`task_name` does."""
    return TASKS.all().get(task_name(name)) if name else None


def task_of(name: str | None) -> Task:
    """The task of that name; examples of no known task share the generic form."""
    return find_task(name) or GENERIC


def require_fields(profile: Sequence[Item], fields: Sequence[str], where: str) -> None:
    """Raise a ``DataError`` that begins with ``where`` unless every item has all the fields."""
    for index, item in enumerate(profile):
        for field in fields:
            if field not in item:
                raise DataError(f'{where}: profile[{index}] lacks the field "{field}"')


def _letters(name: str) -> str:
    return re.sub("[-_ ]", "", name).lower()
