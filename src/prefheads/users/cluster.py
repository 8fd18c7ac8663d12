"""Groups of users with alike profiles (5.1), and the Preference Heads of each (5.2)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefheads.errors import ArtifactError, DataError
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.optional import require
from prefheads.users.embed import unit_rows
from prefheads.users.route import route

MAX_CLUSTERS = 16  # when the number is chosen; a given one may be larger


@dataclass(frozen=True, eq=False)
class Clusters:
    """Groups of users, the largest first.

    Attributes:
        centroids: ``(C, d)`` float32, unit rows.
        assignment: the cluster of each user, 0 .. C-1; always the nearest, as ``route`` finds it.
    """

    centroids: NDArray[np.float32]
    assignment: Mapping[str, int]

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(self.centroids)

    @property
    def sizes(self) -> list[int]:
        """Number of users in each cluster."""
        groups = np.fromiter(self.assignment.values(), dtype=np.int64)
        return [int(n) for n in np.bincount(groups, minlength=self.n_clusters)]

    def members(self, cluster: int) -> list[str]:
        """The users of one cluster."""
        return [user for user, own in self.assignment.items() if own == cluster]

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-serialisable metadata, as ``storage.save_tensors`` takes them."""
        tensors = {"centroids": torch.from_numpy(self.centroids)}
        return tensors, {"assignment": dict(self.assignment)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """The inverse of ``to_tensors``; ArtifactError if something is missing or does not fit."""
        try:
            centroids = tensors["centroids"].to("cpu", torch.float32)
            assignment = {str(user): int(own) for user, own in meta["assignment"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"damaged clusters: {error}") from error
        bad = [user for user, own in assignment.items() if not 0 <= own < len(centroids)]
        if centroids.ndim != 2 or not len(centroids) or not centroids.isfinite().all() or bad:
            raise ArtifactError("damaged clusters: their centroids and users do not fit")
        return cls(centroids.numpy(), assignment)


def fit_clusters(
    embeddings: NDArray[Any],
    user_ids: Sequence[str],
    n_clusters: int | None = None,
    *,
    samples_per_user: Mapping[str, int] | None = None,
    min_samples: int = 10,
    seed: int = 0,
) -> Clusters:
    """Cluster users by k-means on their unit profile embeddings (5.1).

    The result does not depend on the order of the users.

    Args:
        embeddings: ``(n_users, d)``.
        user_ids: one id per row, each once.
        n_clusters: how many; None chooses the number up to ``MAX_CLUSTERS`` with the best
            silhouette among those that leave every cluster ``min_samples``, and 1 if there is none.
        samples_per_user: discovery samples of each user; None counts each user as one sample.
        min_samples: discovery samples a cluster needs for heads of its own; a single cluster,
            which holds all there are, is exempt.
        seed: fixes the starting points.

    Raises:
        DataError: bad embeddings or ids, or a given number of clusters that cannot be had.
    """
    points, users = _sorted_users(embeddings, user_ids)
    per_user = dict.fromkeys(users, 1) if samples_per_user is None else samples_per_user
    counts = {user: per_user.get(user, 0) for user in users}
    needed = max(min_samples, 1)

    def smallest(clusters: Clusters) -> int:
        members = map(clusters.members, range(clusters.n_clusters))
        return min(sum(counts[user] for user in group) for group in members)

    if n_clusters is not None:
        if not 1 <= n_clusters <= len(users):
            raise DataError(
                f"{n_clusters} clusters of {len(users)} users: give 1 to {len(users)} clusters"
            )
        clusters = _k_means(points, users, n_clusters, seed)
        if n_clusters > 1 and smallest(clusters) < needed:
            raise DataError(
                f"with {n_clusters} clusters the smallest has {smallest(clusters)} discovery "
                f"samples of the {needed} it needs; ask for fewer clusters, give more samples, or "
                "lower min_samples"
            )
        return clusters

    best, best_score = _k_means(points, users, 1, seed), 0.0  # no better than 0: no groups at all
    most = min(MAX_CLUSTERS, len(users) - 1, sum(counts.values()) // needed)
    for k in range(2, most + 1):
        clusters = _k_means(points, users, k, seed)
        if smallest(clusters) >= needed:
            labels = [clusters.assignment[user] for user in users]
            score = require("sklearn.metrics", "cluster").silhouette_score(points, labels)
            if score >= best_score:
                best, best_score = clusters, score
    return best


def cluster_heads(
    scores: HeadScores,
    clusters: Clusters,
    *,
    k: int | None = None,
    fraction: float | None = None,
) -> list[HeadWeights]:
    """Preference Heads of each cluster, from the scores of its users alone (5.2).

    A head's weight is its PCS over the cluster's largest. Nothing is discovered again.

    Args:
        scores: of users that all belong to a cluster.
        clusters: the groups.
        k: heads per cluster; or
        fraction: share of all heads per cluster; with neither, all with a positive PCS.

    Returns:
        One map per cluster, in the order of the clusters.

    Raises:
        DataError: a user without a cluster, or a cluster without samples.
        SteeringError: ``k`` or ``fraction`` out of range.
    """
    scored = set(scores.user_ids)
    if strangers := sorted(scored.difference(clusters.assignment)):
        raise DataError(f"user {strangers[0]!r} has scores but belongs to no cluster")
    maps = []
    for cluster in range(clusters.n_clusters):
        users = scored.intersection(clusters.members(cluster))
        if not users:
            raise DataError(f"cluster {cluster} has no discovery samples; use fewer clusters")
        maps.append(scores.select(users=users).soft(k, fraction))
    return maps


def _sorted_users(
    embeddings: NDArray[Any], user_ids: Sequence[str]
) -> tuple[NDArray[np.float64], list[str]]:
    vectors = np.asarray(embeddings, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(user_ids) or not vectors.size:
        raise DataError(f"{len(user_ids)} users came with embeddings of shape {vectors.shape}")
    if len(set(user_ids)) < len(user_ids):
        raise DataError("a user occurs twice among those to cluster; give each user once")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise DataError(f"user {user_ids[row]!r}: NaN or infinity in the profile embedding")
    order = sorted(range(len(user_ids)), key=lambda row: user_ids[row])
    return unit_rows(vectors[order]), [user_ids[row] for row in order]


def _k_means(points: NDArray[np.float64], users: list[str], n_clusters: int, seed: int) -> Clusters:
    k_means = require("sklearn.cluster", "cluster").KMeans
    estimator = k_means(n_clusters, n_init=10, random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct profiles than clusters: the empty cluster is reported by the caller.
        warnings.simplefilter("ignore", require("sklearn.exceptions", "cluster").ConvergenceWarning)
        centroids = unit_rows(estimator.fit(points).cluster_centers_).astype(np.float32)
    # Training users go where routing would send them; k-means' own labels may differ at borders.
    labels = route(points, centroids).argmax(axis=1)
    sizes = np.bincount(labels, minlength=n_clusters)
    first = [int((labels == c).argmax()) for c in range(n_clusters)]
    order = sorted(range(n_clusters), key=lambda c: (-sizes[c], first[c]))
    assignment = {user: order.index(int(label)) for user, label in zip(users, labels, strict=True)}
    return Clusters(centroids[order], assignment)
