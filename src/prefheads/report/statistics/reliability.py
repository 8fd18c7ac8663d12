"""How far a set of heads agrees with itself: the ceiling that overlap between users can reach.

Where users have several samples, halves of one user's samples are compared with halves of two
users' samples, so that both suffer from the same noise. With one sample a user that cannot be
known; then only the agreement of groups of users can, and how it grows with their number.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefheads.heads.scores import HeadScores
from prefheads.report.statistics.overlap import (
    chance,
    chance_of,
    head_totals,
    jaccard,
    pooled,
    range_of,
    sizes,
    top_sets,
)
from prefheads.report.wording import columns
from prefheads.stats import Array, Estimate, Jackknife, pair_means, pairs_jackknife

N_SPLITS = 200
MIN_USERS = 4


@dataclass(frozen=True)
class UserReliability:
    """Split-half agreement of users' own sets.

    Attributes:
        k: Heads of a set.
        within: Overlap of the sets of two halves of one user's samples.
        between: Overlap of the sets of halves of two users.
        difference: within - between: above 0 if sets are the user's own.
        chance: Expected of random sets.
        n_users: Users with at least two samples.
    """

    k: int
    within: Estimate
    between: Estimate
    difference: Estimate
    chance: float
    n_users: int

    def rows(self) -> list[dict[str, Any]]:
        """A line each."""
        lines = {"two halves of one user": self.within, "halves of two users": self.between}
        lines["difference"] = self.difference
        return [
            {"compared": name, "heads": self.k, **columns(e, "overlap")}
            | {"chance": self.chance if name != "difference" else 0.0, "users": self.n_users}
            for name, e in lines.items()
        ]


def own_reliability(scores: HeadScores, k: int, seed: int = 0) -> UserReliability | None:
    """Split every user's samples at random, again and again, and compare the halves' top sets.

    Returns:
        None where fewer than two users have two samples: then it cannot be known.
    """
    counts = Counter(scores.user_ids)
    users = sorted(user for user, n in counts.items() if n >= 2)
    if len(users) < 2:
        return None
    ids = np.array(scores.user_ids)
    rows = [np.flatnonzero(ids == user) for user in users]
    values = scores.values.double().numpy().reshape(scores.n_examples, -1)
    rng = np.random.default_rng(seed)
    n = len(users)
    within, between, expected = np.zeros(n), np.zeros((n, n)), 0.0
    for _ in range(N_SPLITS):
        halves = [np.array_split(rng.permutation(own), 2) for own in rows]
        first, second = (
            top_sets(np.stack([values[h[side]].mean(0) for h in halves]), k) for side in (0, 1)
        )
        overlaps = jaccard(first, second)
        within += np.diagonal(overlaps) / N_SPLITS
        between += overlaps / N_SPLITS
        expected += chance_of(first, second).mean() / N_SPLITS
    return UserReliability(
        k,
        Estimate.of(within, users).within(0, 1),
        Estimate.from_jackknife(pairs_jackknife(between)).within(0, 1),
        Estimate.from_jackknife(_difference(within, between)).within(-1, 1),
        float(expected),
        n,
    )


def _difference(within: Array, between: Array) -> Jackknife:
    """Of the mean of users ``(n,)`` and that of pairs of users ``(n, n)``, which go together."""
    n = len(within)
    mean, without = pair_means(between)
    one_less = (within.sum() - within) / (n - 1)
    return Jackknife.of(within.mean() - mean, one_less - without, np.ones(n))


@dataclass(frozen=True)
class GroupReliability:
    """Agreement of the pooled sets of two groups of different users, by the size of a group.

    Attributes:
        k: Heads of a set.
        group_sizes: Users in each of the two groups.
        overlap: Mean over random groups, with the range that holds 95 % of them.
        chance: Expected of random sets.
    """

    k: int
    group_sizes: tuple[int, ...]
    overlap: tuple[Estimate, ...]
    chance: float

    def rows(self) -> list[dict[str, Any]]:
        """A line a size."""
        return [
            {"users_in_each_group": m, "heads": self.k, **columns(e, "overlap", "range_")}
            | {"chance": self.chance}
            for m, e in zip(self.group_sizes, self.overlap, strict=True)
        ]


def group_reliability(scores: HeadScores, k: int, seed: int = 0) -> GroupReliability | None:
    """Draw two disjoint groups of users and compare the top sets of their pooled scores.

    Returns:
        None with fewer than ``MIN_USERS`` users.
    """
    totals, counts = head_totals(scores)
    half = len(totals) // 2
    if len(totals) < MIN_USERS:
        return None
    group_sizes = tuple(sorted({2**i for i in range(half.bit_length())} | {half}))
    rng = np.random.default_rng(seed)
    found = []
    for m in group_sizes:
        draws = [_two_groups(totals, counts, m, rng) for _ in range(N_SPLITS)]
        sets = top_sets(np.array(draws), k)
        overlaps = jaccard(sets[:, :1], sets[:, 1:]).ravel()
        found.append(range_of(overlaps))
    return GroupReliability(k, group_sizes, tuple(found), chance(k, k, totals.shape[1]))


def _two_groups(totals: Array, counts: Any, size: int, rng: np.random.Generator) -> Array:
    order = rng.permutation(len(totals))
    return pooled(totals, counts, [order[:size], order[size : 2 * size]])


@dataclass(frozen=True)
class ScaleOverlap:
    """Overlap of sets of different sizes K (Fig. 7).

    Attributes:
        heads: The sizes.
        same: ``(n, n)`` sets of one ranking: the smaller lies within the larger, so that the
            overlap is the quotient of their sizes whatever the scores are.
        halves: ``(n, n)`` sets of two disjoint halves of the users, mean over random halves;
            NaN with fewer than ``MIN_USERS`` users.
        low, high: ``(n, n)`` range that holds 95 % of the halves.
        chance: ``(n, n)`` expected of random sets.
    """

    heads: tuple[int, ...]
    same: Array
    halves: Array
    low: Array
    high: Array
    chance: Array

    def rows(self) -> list[dict[str, Any]]:
        """A line a pair of sizes."""
        columns = {"same_ranking": self.same, "halves_of_users": self.halves}
        columns |= {"range_low": self.low, "range_high": self.high, "chance": self.chance}
        return [
            {"heads_a": a, "heads_b": b}
            | {name: float(values[i, j]) for name, values in columns.items()}
            for i, a in enumerate(self.heads)
            for j, b in enumerate(self.heads)
        ]


def scale_overlap(scores: HeadScores, seed: int = 0) -> ScaleOverlap:
    """Compare top sets of different sizes, of the same and of independent measurements."""
    mean = scores.mean.double().numpy().ravel()
    heads = tuple(sizes(mean.size))
    same = _sets(mean, heads)
    totals, counts = head_totals(scores)
    rng = np.random.default_rng(seed)
    drawn = np.full((1, len(heads), len(heads)), np.nan)
    if len(totals) >= MIN_USERS:
        pairs = [_two_groups(totals, counts, len(totals) // 2, rng) for _ in range(N_SPLITS)]
        drawn = np.array([jaccard(_sets(a, heads), _sets(b, heads)) for a, b in pairs])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    expected = np.array([[chance(a, b, mean.size) for b in heads] for a in heads])
    return ScaleOverlap(heads, jaccard(same, same), drawn.mean(0), low, high, expected)


def _sets(mean: Array, heads: tuple[int, ...]) -> Any:
    return np.stack([top_sets(mean, k) for k in heads])
