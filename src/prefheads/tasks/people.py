"""Who wrote what, where a file names nobody."""

from __future__ import annotations

from collections.abc import Iterable

LEAST = 40
"""Characters of a text below which two people may well have written the same."""


class People:
    """Joins samples that share a text that one person wrote.

    Files of LaMP name no users, and some (LaMP-4's) hold several samples of one author: split
    apart, discovery would see texts of those it is judged on.
    """

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._first: dict[int, str] = {}

    def add(self, sample: str, texts: Iterable[str]) -> None:
        """Add a sample with the texts of its user."""
        self._parent.setdefault(sample, sample)
        for text in texts:
            if len(text := text.strip()) >= LEAST:
                self._join(sample, self._first.setdefault(hash(text), sample))

    def of(self, sample: str) -> str:
        """The person of a sample: the smallest id among that person's samples."""
        while self._parent[sample] != sample:
            self._parent[sample] = self._parent[self._parent[sample]]
            sample = self._parent[sample]
        return sample

    def _join(self, a: str, b: str) -> None:
        first, second = sorted((self.of(a), self.of(b)))
        self._parent[second] = first
