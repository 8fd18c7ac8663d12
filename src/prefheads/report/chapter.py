"""What the analyses of one measurement of heads share: its scores, names and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from prefheads.heads.scores import HeadScores
from prefheads.report.headroles import HeadRoles
from prefheads.report.index import Entry
from prefheads.stats import Estimate
from prefheads.users import Clusters

FRACTION = 0.04  # of all heads: the size of a set where one is shown
TARGETS = {"head": "whole heads removed", "profile": "profile hidden from the head"}


@dataclass(frozen=True)
class Part:
    """One discovery: its scores by target, and the clusters where there are some.

    Attributes:
        name: In titles and names of files; empty where a run holds one discovery only.
        fit: The command that finds clusters.
        roles: What its heads do; None if it was not measured.
        unmeasured: Why not, and how to measure it.
        copying: Copy scores of the same heads, where the run has them.
    """

    name: str
    scores: Mapping[str, HeadScores]
    clusters: Clusters | None
    fit: str
    roles: HeadRoles | None = None
    unmeasured: str = ""
    copying: HeadScores | None = None

    @property
    def where(self) -> str:
        """How titles begin."""
        return f"{self.name}: " if self.name else ""


@dataclass(frozen=True)
class Chapter:
    """The scores of one target, and how its analyses are named."""

    part: Part
    target: str
    scores: HeadScores
    seed: int

    @property
    def k(self) -> int:
        """Heads of a set."""
        return set_size(self.scores)

    @property
    def users(self) -> list[str]:
        """In sorted order."""
        return sorted(set(self.scores.user_ids))

    @property
    def measured(self) -> str:
        """What ablation took away."""
        return TARGETS.get(self.target, self.target)

    def members(self) -> dict[str, HeadScores]:
        """The scores of each cluster's users, by its name; empty with fewer than two clusters."""
        clusters = self.part.clusters
        if clusters is None or clusters.n_clusters < 2:
            return {}
        found = {}
        for c in range(clusters.n_clusters):
            if own := set(self.users).intersection(clusters.members(c)):
                name = f"cluster {c + 1} ({counted(len(own), 'user')})"
                found[name] = self.scores.select(users=own)
        return found

    def title(self, text: str) -> str:
        """Of a figure."""
        return f"{self.part.where}{text}\n({self.measured})"

    def entry(
        self,
        name: str,
        title: str,
        paper: str,
        *,
        shows: str = "",
        missing: str = "",
        figure: Any = None,
        tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> Entry:
        """An entry of the index, under this chapter's names."""
        title = f"{self.part.where}{title} ({self.measured})"
        files = named(self.part.name, name, self.target)
        return Entry(files, title, paper, shows, missing, figure, tables)


def set_size(scores: HeadScores) -> int:
    """``FRACTION`` of all heads, as :meth:`HeadScores.top` rounds it."""
    return max(1, round(FRACTION * scores.mean.numel()))


def show(e: Estimate, digits: int = 2, *, sign: bool = False) -> str:
    """A figure with its interval, where that is known; with its ``sign`` where it is a change."""
    form = f"{'+' if sign else ''}z.{digits}f"
    if isnan(e.low):
        return f"{e.mean:{form}} (no interval)"
    return f"{e.mean:{form}} [{e.low:{form}}, {e.high:{form}}]"


def named(*words: str) -> str:
    """A name of files: the words that are not empty, joined."""
    return "-".join(word for word in words if word)


def counted(n: int, what: str) -> str:
    """A number of things in words."""
    return f"{n} {what}{'' if n == 1 else 's'}"
