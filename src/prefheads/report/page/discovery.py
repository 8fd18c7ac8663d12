"""What the analyses of one discovery of heads share: its scores, and how they are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefheads.heads.scores import HeadScores
from prefheads.report.measure.effects import HeadRoles
from prefheads.report.page.entry import Entry
from prefheads.report.wording import counted, named
from prefheads.users import Clusters

FRACTION = 0.04  # of all heads: the size of a set where one is shown
TARGETS = {"head": "whole heads removed", "profile": "profile hidden from the head"}


@dataclass(frozen=True)
class Discovery:
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
class TargetScores:
    """The scores of one target of a discovery, and how its analyses are named."""

    discovery: Discovery
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

    def members(self) -> dict[str, HeadScores]:
        """The scores of each cluster's users, by its name; empty with fewer than two clusters."""
        clusters = self.discovery.clusters
        return {} if clusters is None else cluster_scores(self.scores, clusters)

    def title(self, text: str) -> str:
        """Of a figure."""
        return f"{self.discovery.where}{text}\n({TARGETS.get(self.target, self.target)})"

    def entry(self, name: str, title: str, paper: str, **parts: Any) -> Entry:
        """An entry under this target's names; ``parts`` as :class:`Entry` takes them."""
        files = named(self.discovery.name, name, self.target)
        return Entry(files, self.title(title).replace("\n", " "), paper, **parts)


def cluster_scores(scores: HeadScores, clusters: Clusters) -> dict[str, HeadScores]:
    """The scores of each cluster's users, by its name; empty with fewer than two clusters."""
    found = {}
    for c in range(clusters.n_clusters if clusters.n_clusters > 1 else 0):
        if own := set(scores.user_ids).intersection(clusters.members(c)):
            name = f"cluster {c + 1} ({counted(len(own), 'user')})"
            found[name] = scores.select(users=own)
    return found


def set_size(scores: HeadScores) -> int:
    """``FRACTION`` of all heads, as :meth:`HeadScores.top` rounds it."""
    return max(1, round(FRACTION * scores.mean.numel()))
