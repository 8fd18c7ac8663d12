"""Who wrote what, where a file names nobody: people are known by texts that they wrote."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from prefheads.data.example import Example

LEAST = 40
"""Characters of a text below which two people may well have written the same."""


def mark(text: str) -> int | None:
    """A number that stands for a text, the same in every run; None for a short text."""
    text = text.strip()
    if len(text) < LEAST:
        return None
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


class People:
    """Joins samples that share a text that one person wrote, directly or over others.

    Files of LaMP name no users, and some (LaMP-4's) hold several samples of one author: split
    apart, discovery would see texts of those it is judged on. Give it all samples of a file: two of
    a person may be joined by a third alone.
    """

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._first: dict[int, str] = {}
        self._own: dict[str, array[int]] = {}

    def add(self, sample: str, marks: Iterable[int | None]) -> None:
        """Add a sample, known by its id, with the marks of its person's texts."""
        self._parent.setdefault(sample, sample)
        own = self._own.setdefault(sample, array("Q"))
        for number in marks:
            if number is not None:
                own.append(number)
                self._join(sample, self._first.setdefault(number, sample))

    def of(self, sample: str) -> str:
        """The person of a sample: the smallest id among that person's samples."""
        while self._parent[sample] != sample:
            self._parent[sample] = self._parent[self._parent[sample]]
            sample = self._parent[sample]
        return sample

    def marks(self, samples: Iterable[str]) -> dict[str, str]:
        """For the persons of these samples, the marks of all that they are known by: numbers in
        base 16, with spaces between them."""
        wanted: dict[str, set[int]] = {self.of(sample): set() for sample in samples}
        for sample, own in self._own.items():
            if (person := self.of(sample)) in wanted:
                wanted[person].update(own)
        return {person: " ".join(f"{m:016x}" for m in sorted(ms)) for person, ms in wanted.items()}

    def _join(self, a: str, b: str) -> None:
        first, second = sorted((self.of(a), self.of(b)))
        self._parent[second] = first


@dataclass(frozen=True)
class Seen:
    """What a run has seen: its samples, their users, and the marks of texts that users without a
    name are known by."""

    samples: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()

    @classmethod
    def of(cls, samples: Iterable[Example]) -> Self:
        """What these samples show."""
        samples = list(samples)
        return cls(
            frozenset(s.id for s in samples),
            frozenset(s.user_id for s in samples),
            frozenset(m for s in samples for m in s.marks.split()),
        )

    def unseen(self, samples: Sequence[Example]) -> list[Example]:
        """The samples of people of whom nothing was seen, whatever they are called there.

        A user of a file without names is another's in another file, so people are the same where
        they share a text, or are joined to one who does by others among ``samples``.
        """
        people, known, seen = People(), "", set[str]()
        people.add(known, (int(m, 16) for m in self.marks))
        for sample in samples:
            people.add(f"user {sample.user_id}", (int(m, 16) for m in sample.marks.split()))
            if sample.id in self.samples or sample.user_id in self.users:
                seen.add(sample.user_id)
        persons = {people.of(f"user {user}") for user in seen} | {people.of(known)}
        return [s for s in samples if people.of(f"user {s.user_id}") not in persons]

    def to_dict(self) -> dict[str, list[str]]:
        """As JSON-serialisable data."""
        return {name: sorted(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            TypeError, KeyError, ValueError: It is damaged.
        """
        parts = [data[one.name] for one in fields(cls)]
        if not all(isinstance(p, list) and all(isinstance(x, str) for x in p) for p in parts):
            raise TypeError("must hold lists of strings")
        for number in parts[2]:
            int(number, 16)
        return cls(*map(frozenset, parts))
