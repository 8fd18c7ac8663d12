"""Are head sets user-specific (Fig. 4)? Overlap of top sets between users and between clusters.

A low overlap can come from users who differ or from sets that noise picks. So every overlap stands
beside the one expected by chance, and :mod:`prefheads.report.statistics.reliability` asks how far
a set agrees with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores
from prefheads.report.wording import columns
from prefheads.stats import Array, Estimate, pairs_jackknife, user_means, user_totals
from prefheads.users import Clusters

Sets = NDArray[np.bool_]
FRACTIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
N_PERMUTATIONS = 1000


def sizes(n_heads: int) -> list[int]:
    """Numbers of heads that are these shares of all, as :meth:`HeadScores.top` rounds them."""
    return sorted({max(1, round(f * n_heads)) for f in FRACTIONS})


def top_sets(maps: Array, k: int) -> Sets:
    """The top ``k`` heads with a positive score of each map: ``(..., n_heads)`` to booleans.

    Raises:
        DataError: ``k`` out of range.
    """
    if not 1 <= k <= maps.shape[-1]:
        raise DataError(f"k={k}: choose between 1 and {maps.shape[-1]} heads")
    chosen = np.zeros(maps.shape, dtype=bool)
    best = np.argsort(-maps, axis=-1, kind="stable")[..., :k]
    np.put_along_axis(chosen, best, True, axis=-1)
    return chosen & (maps > 0)


def jaccard(a: Sets, b: Sets) -> Array:
    """Overlap of every set of ``a`` with every set of ``b``: ``(..., n, h), (..., m, h)`` to
    ``(..., n, m)``; 1 if both are empty."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    both = left @ np.swapaxes(right, -1, -2)
    union = left.sum(-1)[..., :, None] + right.sum(-1)[..., None, :] - both
    return np.asarray(np.divide(both, union, out=np.ones_like(both), where=union > 0))


@cache
def chance(k_a: int, k_b: int, n_heads: int) -> float:
    """Expected overlap of two random sets of so many heads of ``n_heads``, exactly.

    The number of common heads is hypergeometric.
    """
    if k_a == k_b == 0:
        return 1.0
    shared = np.arange(min(k_a, k_b) + 1)
    likely = hypergeom.pmf(shared, n_heads, k_a, k_b)
    return float((likely * shared / (k_a + k_b - shared)).sum())


def chance_of(a: Sets, b: Sets) -> Array:
    """:func:`chance` for every pair of two lists of sets ``(n, h)``, ``(m, h)``."""
    (rows, row), (columns, column) = (np.unique(s.sum(-1), return_inverse=True) for s in (a, b))
    table = [[chance(x, y, a.shape[-1]) for y in columns.tolist()] for x in rows.tolist()]
    return np.asarray(np.array(table)[row[:, None], column[None, :]])


@dataclass(frozen=True)
class UserOverlap:
    """Pairwise overlap of users' top sets.

    Attributes:
        users: In the order of the matrix.
        k: Heads of a set, at most: those with a positive PCS.
        values: ``(n_users, n_users)`` Jaccard overlaps.
        mean: Over pairs of different users, with its 95 % interval over users.
        chance: Expected of random sets of the same sizes.
    """

    users: tuple[str, ...]
    k: int
    values: Array
    mean: Estimate
    chance: float

    @property
    def pairs(self) -> Array:
        """The overlaps of all pairs of different users."""
        return np.asarray(self.values[np.triu_indices(len(self.users), 1)])

    def summary(self) -> dict[str, Any]:
        """One line of a table over numbers of heads."""
        return {
            "heads": self.k,
            **columns(self.mean, "overlap"),
            "chance": self.chance,
            "above_chance": (self.mean.mean - self.chance) / (1 - self.chance),
            "pairs_without_a_common_head": float((self.pairs == 0).mean()),
            "users": len(self.users),
            "pairs": len(self.pairs),
        }

    def rows(self) -> list[dict[str, Any]]:
        """The matrix, a line a user."""
        named = zip(self.users, self.values.tolist(), strict=True)
        return [{"user": user, **dict(zip(self.users, row, strict=True))} for user, row in named]


def user_maps(scores: HeadScores) -> tuple[tuple[str, ...], Array]:
    """Users in sorted order and the mean PCS of each, ``(n_users, n_layers * n_heads)``."""
    maps = user_means(scores.values.numpy(), scores.user_ids)
    return tuple(sorted(set(scores.user_ids))), maps.reshape(len(maps), -1)


def range_of(draws: Sequence[float] | Any) -> Estimate:
    """The mean of random draws, with the range that holds 95 % of them."""
    return Estimate(float(np.mean(draws)), *np.quantile(draws, [0.025, 0.975]).tolist())


def head_totals(scores: HeadScores) -> tuple[Array, NDArray[np.int64]]:
    """Sums of PCS over each user's samples, ``(n_users, n_layers * n_heads)``, and their number."""
    totals, counts = user_totals(scores.values.numpy(), scores.user_ids)
    return totals.reshape(len(totals), -1), counts


def pooled(totals: Array, counts: Any, groups: Sequence[Any]) -> Array:
    """Mean PCS of the samples of groups of users, by their places: ``(n_groups, n_heads)``."""
    return np.stack([totals[g].sum(0) / counts[g].sum() for g in groups])


def user_overlap(scores: HeadScores, k: int, clusters: Clusters | None = None) -> UserOverlap:
    """Overlap of the top ``k`` heads that are found for each user alone.

    Args:
        clusters: Puts users of one cluster side by side.

    Raises:
        DataError: Fewer than two users.
    """
    users, maps = user_maps(scores)
    if len(users) < 2:
        raise DataError("overlap between users needs at least two of them")
    if clusters is not None:
        order = sorted(range(len(users)), key=lambda i: clusters.assignment.get(users[i], -1))
        users, maps = tuple(users[i] for i in order), maps[order]
    sets = top_sets(maps, k)
    values = jaccard(sets, sets)
    expected = chance_of(sets, sets)
    mean = Estimate.from_jackknife(pairs_jackknife(values)).within(0, 1)
    return UserOverlap(users, k, values, mean, float(pairs_jackknife(expected).value))


@dataclass(frozen=True)
class ClusterOverlap:
    """Whether clusters of users have heads of their own.

    Attributes:
        names: Of the clusters.
        k: Heads of a set.
        values: ``(C, C)`` overlap of the clusters' top sets.
        chance: Expected of random sets of heads.
        between: Mean overlap between clusters.
        random: The same for users dealt at random into groups of these sizes, which differ by
            noise alone: mean and the range of 95 % of the deals.
        within: Mean overlap of users of one cluster minus that of users of different clusters.
        random_within: ``(N_PERMUTATIONS,)`` the same for users dealt at random.
        p: Share of those with as large a difference.
    """

    names: tuple[str, ...]
    k: int
    values: Array
    chance: float
    between: float
    random: Estimate
    within: float
    random_within: Array
    p: float

    def rows(self) -> list[dict[str, Any]]:
        """One line."""
        return [
            {
                "heads": self.k,
                "clusters": len(self.names),
                "overlap_between_clusters": self.between,
                **columns(self.random, "random_groups", "random_groups_"),
                "chance": self.chance,
                "users_within_minus_across": self.within,
                "p": self.p,
            }
        ]


def cluster_overlap(
    scores: HeadScores, clusters: Clusters, k: int, seed: int = 0
) -> ClusterOverlap:
    """Compare the clusters' top sets with each other, and their users' sets within and across.

    The test is on the users: two groups that share out the users have different top sets even
    where they were dealt at random, since what one has more of the other has less of.

    Raises:
        DataError: Fewer than two clusters, a user without one, a cluster without scores, or none
            with two users.
    """
    users, own = user_maps(scores)
    if strangers := [user for user in users if user not in clusters.assignment]:
        raise DataError(f"user {strangers[0]!r} has scores but belongs to no cluster")
    labels = np.array([clusters.assignment[user] for user in users])
    groups = sorted(set(labels.tolist()))
    if clusters.n_clusters < 2 or len(groups) < clusters.n_clusters:
        raise DataError("overlap between clusters needs two or more, each with scores")
    if len(users) == len(groups):
        raise DataError("overlap within clusters needs one of two users or more")
    totals, counts = head_totals(scores)
    single = top_sets(own, k)
    alike = jaccard(single, single)

    def sets_of(labels: Any) -> Sets:
        return top_sets(pooled(totals, counts, [labels == g for g in groups]), k)

    found = sets_of(labels)
    values = jaccard(found, found)
    rng = np.random.default_rng(seed)
    dealt = [rng.permutation(labels) for _ in range(N_PERMUTATIONS)]
    between = [_off_diagonal(jaccard(s, s)) for s in map(sets_of, dealt)]
    within, random_within = _within(alike, labels), np.array([_within(alike, d) for d in dealt])
    return ClusterOverlap(
        names=tuple(f"cluster {c + 1} ({int((labels == c).sum())})" for c in groups),
        k=k,
        values=values,
        chance=_off_diagonal(chance_of(found, found)),
        between=_off_diagonal(values),
        random=range_of(between),
        within=within,
        random_within=random_within,
        p=(1 + int((random_within >= within - 1e-12).sum())) / (1 + len(dealt)),
    )


def _off_diagonal(values: Array) -> float:
    return float(values[~np.eye(len(values), dtype=bool)].mean())


def _within(alike: Array, labels: Any) -> float:
    same = labels[:, None] == labels[None, :]
    others = ~np.eye(len(labels), dtype=bool)
    inside = alike[same & others]
    return float((inside.mean() if inside.size else np.nan) - alike[~same].mean())
