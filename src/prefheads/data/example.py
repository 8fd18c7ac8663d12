"""Examples: an input and a response of a user, with the user's profile; loading and splitting."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from prefheads.data.formats import NAMELESS, read_rows
from prefheads.data.people import People, mark
from prefheads.data.retrieve import retrieve
from prefheads.data.task import Item, find_task, require_fields, task_name, task_of
from prefheads.errors import DataError
from prefheads.types import Retrieval


@dataclass(frozen=True)
class Example:
    """One thing a user wrote, or is to get, together with what is known of the user.

    Attributes:
        id: Unique among the examples loaded together.
        user_id: Whose it is; one user may have several examples.
        profile: Earlier texts of the user, most relevant first; empty for the no-profile reference.
        input: What is asked.
        output: The response; ``None`` where it is not known.
        task: Name of a LaMP or LongLaMP task, which decides the form of the prompt; otherwise the
            generic form.
        marks: What a user without a name is known by, in this file and in others
            (:mod:`prefheads.data.people`).
    """

    id: str
    user_id: str
    profile: tuple[Item, ...]
    input: str
    output: str | None
    task: str | None = None
    marks: str = field(default="", repr=False)

    def with_profile(self, profile: Iterable[Item]) -> Example:
        """The same example with other profile items."""
        return replace(self, profile=tuple(profile))


def load_examples(
    source: str | Path | Sequence[Mapping[str, Any] | Example],
    *,
    outputs: str | Path | None = None,
    items: int = 5,
    retrieval: Retrieval = "bm25",
    seed: int = 0,
    encoder: str = "bundled",
    limit: int | None = None,
    select: Callable[[list[Example]], Iterable[Example]] | None = None,
    require_output: bool = True,
) -> list[Example]:
    """Load examples from a JSONL file, files of LaMP or LongLaMP, or objects at hand.

    The example format is ``{"id", "user_id", "profile": [{"text"}], "input", "output"}``, and
    ``"task"`` if it has one. Profiles of LaMP and LongLaMP tasks are reduced to the items that
    retrieval finds, best first; other profiles, and those of ``Example`` objects, are kept whole.
    Files are read piece by piece, and twice, so that retrieval looks for nothing that is not kept:
    what is held in memory is what is kept.

    LaMP's files name no users. Samples that share a text which one person wrote are one person's,
    called by the smallest id among theirs in the whole file, whatever is loaded of it.

    Args:
        source: A JSONL file; a ``*_questions.json`` of LaMP or a folder with one; a file, folder or
            split of LongLaMP, such as ``topic_writing_user/test``; or a list of dicts in the
            example format or of examples.
        outputs: The golds of a LaMP file; by default the ``*_outputs.json`` beside the questions.
        items: Profile items to keep where there is retrieval.
        retrieval: ``"bm25"``, ``"dense"``, ``"recent"``, ``"random"`` or ``"all"``, as in
            :func:`prefheads.data.retrieve.retrieve`.
        seed: Seed of ``"random"``; what it draws for an example depends on that and on the id.
        encoder: Sentence encoder of ``"dense"``: ``"bundled"``, a folder or a hub id.
        limit: Load only the first so many.
        select: Chooses what to load from all that there is, given with empty profiles.
        require_output: Whether an example without a response is an error.

    Raises:
        DataError: Anything that cannot be used, with its file and line, or index, and field.
        PrefheadsError: ``"dense"`` without the extra ``cluster`` or with an unknown encoder.
    """
    if items < 1 or (limit is not None and limit < 1):
        raise DataError("items and limit must be at least 1")

    def rows(require: bool) -> Iterator[tuple[str, Any]]:
        if isinstance(source, str | Path):
            return read_rows(Path(source), None if outputs is None else Path(outputs), require)
        if outputs is not None:
            raise DataError("outputs belong to a file of LaMP questions; a list holds its own")
        return ((f"example [{index}]", row) for index, row in enumerate(source))

    known = _survey(rows, limit, require_output)
    if not known:
        named = source if isinstance(source, str | Path) else "the list"
        raise DataError(f"{named}: holds no examples")
    wanted = set(known) if select is None else {e.id for e in select(list(known.values()))}
    how: dict[str, Any] = {"method": retrieval, "seed": seed, "encoder": encoder}
    examples: list[Example] = []
    for where, row in rows(require_output):
        if isinstance(row, Example):
            examples += [row] if row.id in wanted else []
        elif (key := str(row["id"])) in wanted:
            whole = parse_example(row, where)
            profile = whole.profile
            if find_task(whole.task) is not None:
                try:
                    kept = retrieve(whole.task, whole.input, profile, items, key=key, **how)
                except DataError as error:
                    raise DataError(f"{where}: {error}") from None
                profile = tuple(kept)
            examples.append(known[key].with_profile(profile))
        if len(examples) == len(wanted):
            break
    return examples


def _survey(
    rows: Callable[[bool], Iterator[tuple[str, Any]]], limit: int | None, require_output: bool
) -> dict[str, Example]:
    """The first ``limit`` examples by id, checked, without their profiles."""
    known: dict[str, Example] = {}
    people, nameless = People(), list[str]()

    def identify(example: Example, row: Any) -> None:
        if isinstance(row, Mapping) and NAMELESS in row:
            people.add(example.id, marks_of(example))
            nameless.append(example.id)

    for where, row in islice(rows(require_output), limit):
        example = row if isinstance(row, Example) else parse_example(row, where)
        _check(example, where, require_output)
        if example.id in known:
            raise DataError(f"{where}: id {example.id!r} is there twice; ids must be unique")
        known[example.id] = example.with_profile(())
        identify(example, row)
    named = list(nameless)
    if nameless and limit is not None:  # any of the others may tell that two are one person's
        for where, row in islice(rows(False), limit, None):
            identify(parse_example(row, where), row)
    marks = people.marks(named)
    for key in named:
        person = people.of(key)
        known[key] = replace(known[key], user_id=person, marks=marks[person])
    return known


def split_users(
    examples: Iterable[Example],
    fractions: Sequence[float] = (0.5, 0.25, 0.25),
    seed: int = 0,
) -> tuple[list[Example], ...]:
    """Split examples by user, so that nobody is in two parts.

    Which users go where depends on their ids and the seed alone, not on the order of the examples;
    within a part that order is kept.

    Args:
        fractions: Share of the users in each part; positive, with sum 1. No part stays empty.

    Raises:
        DataError: Fractions that are no shares, or fewer users than parts.
    """
    if not (len(fractions) and min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-6):
        raise DataError(f"fractions must be positive and sum to 1, not {tuple(fractions)}")
    examples = list(examples)
    users = _shuffled_users(examples, seed)
    parts = len(fractions)
    if len(users) < parts:
        raise DataError(f"{len(users)} users cannot be split into {parts} parts; add users")
    part_of: dict[str, int] = {}
    end = 0
    for part in range(parts):
        start, wanted = end, round(sum(fractions[: part + 1]) * len(users))
        end = min(max(wanted, start + 1), len(users) - (parts - 1 - part))
        part_of |= dict.fromkeys(users[start:end], part)
    return tuple([e for e in examples if part_of[e.user_id] == part] for part in range(parts))


def spread(examples: Sequence[Example], limit: int | None, seed: int = 0) -> list[Example]:
    """At most ``limit`` samples, taken in turn from each user in a seeded order."""
    if limit is None or limit >= len(examples):
        return list(examples)
    by_user: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_user[example.user_id].append(example)
    users = sorted(by_user)
    random.Random(seed).shuffle(users)
    turns = chain.from_iterable(zip_longest(*(by_user[u] for u in users)))
    chosen = {e.id for e in [e for e in turns if e is not None][:limit]}
    return [e for e in examples if e.id in chosen]


def other_profiles(examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """Each example with the profile of another user of the same task (is it *this* user's?). Users
    are put in a circle and each takes the next one's profile, so all are used alike; a
    ``DataError`` if a task has a single one."""
    by_task: dict[str | None, list[Example]] = defaultdict(list)
    for example in examples:
        by_task[example.task].append(example)
    donor: dict[tuple[str | None, str], tuple[Item, ...]] = {}
    for task, members in by_task.items():
        users = _shuffled_users(members, seed)
        if len(users) < 2:
            raise DataError("another user's profile needs at least two users; add examples")
        # Reversed, so that of a user's profiles the one with the smallest id is what stays.
        ordered = sorted(members, key=lambda e: e.id, reverse=True)
        profile_of = {example.user_id: example.profile for example in ordered}
        for user, other in zip(users, users[1:] + users[:1], strict=True):
            donor[task, user] = profile_of[other]
    return [example.with_profile(donor[example.task, example.user_id]) for example in examples]


def without_profile(example: Example) -> Example:
    """The example with its profile taken away (is it a profile at all?)."""
    return example.with_profile(())


def _shuffled_users(examples: Sequence[Example], seed: int) -> list[str]:
    users = sorted({example.user_id for example in examples})
    random.Random(seed).shuffle(users)
    return users


def parse_example(row: Any, where: str) -> Example:
    """An example from a row in the example format, its profile whole; a ``DataError`` that begins
    with ``where`` says what is wrong."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: must be an object in the example format")
    profile = row.get("profile")
    if not isinstance(profile, list | tuple):
        problem = "must be a list of objects" if "profile" in row else "is missing"
        raise DataError(f'{where}: "profile" {problem}')
    task, output = row.get("task"), row.get("output")
    return Example(
        id=_text(row, "id", where),
        user_id=_text(row, "user_id", where),
        profile=tuple(_item(item, f"{where}: profile[{i}]") for i, item in enumerate(profile)),
        input=_text(row, "input", where),
        output=None if output is None else _text(row, "output", where),
        task=None if task is None else task_name(_text(row, "task", where)),
        marks=_marks_in(row),
    )


def marks_of(example: Example) -> Iterator[int | None]:
    """Marks of what the user wrote: the profile's texts, and the one that the input asks about.

    Of tasks whose texts have many people, the whole example stands for its user.
    """
    form = task_of(example.task)
    if form.personal:
        yield from (mark(item[form.long]) for item in example.profile if form.long in item)
        marker = form.query if isinstance(form.query, str) and form.query else ":"
        yield mark(example.input.partition(marker)[2])
    else:
        items = sorted(repr(sorted(item.items())) for item in example.profile)
        yield mark("\n".join([example.input, *items]))


def _marks_in(row: Mapping[str, Any]) -> str:
    """The marks that an example was written with; a field of that name may be a user's own."""
    marks = row.get("marks")
    known = isinstance(marks, str) and re.fullmatch(r"([0-9a-f]{16}( |$))*", marks)
    return str(marks) if known else ""


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise DataError(f'{where}: "{field}" is missing')
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f'{where}: "{field}" must be a string, not {type(value).__name__}')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f'{where}: "{field}" holds half a character (a lone surrogate)') from None
    return value


def _item(item: Any, where: str) -> dict[str, str]:
    if not isinstance(item, Mapping):
        raise DataError(f"{where} must be an object of strings")
    # Scores and years are often written as numbers; the prompt prints them alike.
    printed = {k: str(v) if isinstance(v, int | float) else v for k, v in item.items()}
    return {field: _text(printed, field, where) for field in printed}


def _check(example: Example, where: str, require_output: bool) -> None:
    named = f"{where}: example {example.id!r}"
    if not example.profile:
        raise DataError(f"{named} has an empty profile; give it at least one item")
    require_fields(example.profile, task_of(example.task).fields, named)
    if require_output and not (example.output or "").strip():
        raise DataError(f'{named} has no response; fill "output" or allow examples without it')
