"""How many users and instances a task has, and how long its texts are (the paper's Table 5)."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from prefheads.data.example import Example, marks_of, parse_example
from prefheads.data.formats import NAMELESS, find_sources, format_of, read_rows
from prefheads.data.people import People
from prefheads.tasks.answers import Kind, answers_of


class Spread(NamedTuple):
    """Mean and median of a count over the instances."""

    mean: float
    median: float


@dataclass(frozen=True)
class TaskStatistics:
    """What one task holds in one setting.

    Attributes:
        setting: ``"user"``: other users in each split; ``"time"``: later texts of the same users.
        splits: The splits counted together.
        users: Different users; where files name none, instances that share a text are one's.
        input_words, output_words: Split at whitespace; ``None`` where no output is known.
    """

    task: str | None
    setting: str
    kind: Kind
    splits: tuple[str, ...]
    users: int
    instances: int
    profile_items: Spread
    input_words: Spread
    output_words: Spread | None


def task_statistics(paths: Iterable[str | Path]) -> list[TaskStatistics]:
    """Count what files and folders hold, a row for each task and setting.

    Files are read piece by piece: a few numbers are kept of each example.

    Args:
        paths: Sources of examples, or folders with several (all splits of a task, or all tasks).

    Raises:
        DataError: No data under a path, or malformed files.
    """
    counts: dict[tuple[str | None, str], _Counts] = {}
    sources = [source for path in paths for source in find_sources(Path(path))]
    for source in dict.fromkeys(source.resolve() for source in sources):
        # Only folders tell the setting; the last four hold all those of a download.
        nearby = source.parts[-4:]
        timed = "time" in nearby or any(part.endswith("_temporal") for part in nearby)
        setting = "time" if timed else "user"
        split = format_of(source).split(source).partition("-")[0].partition(".")[0]
        for where, row in read_rows(source, require_output=False):
            example = parse_example(row, where)
            found = counts.setdefault((example.task, setting), _Counts())
            found.add(example)
            found.splits[split] = None
            if NAMELESS in row:  # samples with a common text are one person's
                found.unnamed.append(f"{source}:{example.id}")
                found.people.add(found.unnamed[-1], marks_of(example))
            else:
                found.users.add(example.user_id)
    # Official names sort as they should; what has no task comes last.
    ordered = sorted(counts.items(), key=lambda item: (item[0][0] is None, str(item[0])))
    return [found.summary(*key) for key, found in ordered]


@dataclass
class _Counts:
    users: set[str] = field(default_factory=set)
    unnamed: list[str] = field(default_factory=list)
    people: People = field(default_factory=People)
    splits: dict[str, None] = field(default_factory=dict)
    profile_items: array[int] = field(default_factory=lambda: array("l"))
    input_words: array[int] = field(default_factory=lambda: array("l"))
    output_words: array[int] = field(default_factory=lambda: array("l"))

    def add(self, example: Example) -> None:
        self.profile_items.append(len(example.profile))
        self.input_words.append(len(example.input.split()))
        if example.output is not None:
            self.output_words.append(len(example.output.split()))

    def summary(self, task: str | None, setting: str) -> TaskStatistics:
        return TaskStatistics(
            task=task,
            setting=setting,
            kind=answers_of(task).kind,
            splits=tuple(self.splits),
            users=len(self.users) + len({self.people.of(sample) for sample in self.unnamed}),
            instances=len(self.profile_items),
            profile_items=_spread(self.profile_items),
            input_words=_spread(self.input_words),
            output_words=_spread(self.output_words) if self.output_words else None,
        )


def _spread(counts: Sequence[Any]) -> Spread:
    return Spread(statistics.fmean(counts), float(statistics.median(counts)))
