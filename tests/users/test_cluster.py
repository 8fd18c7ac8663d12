"""Vectors to clusters, and the heads of each cluster."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prefheads.errors import ArtifactError, DataError, SteeringError
from prefheads.heads.scores import HeadScores
from prefheads.storage import load_tensors, save_tensors
from prefheads.users import Clusters, cluster_heads, fit_clusters, route


def blobs(sizes: list[int], seed: int = 0) -> tuple[NDArray[np.float64], list[str], list[int]]:
    """Users around well separated directions, in shuffled order."""
    rng = np.random.default_rng(seed)
    truth = [c for c, size in enumerate(sizes) for _ in range(size)]
    rng.shuffle(truth)
    points = np.eye(8)[truth] + rng.normal(0, 0.05, (len(truth), 8))
    return points, [f"u{i:03d}" for i in range(len(truth))], truth


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("n_clusters", [3, None])
def test_blobs_are_recovered_the_largest_first(n_clusters: int | None) -> None:
    points, users, truth = blobs([12, 30, 18])
    clusters = fit_clusters(points, users, n_clusters, min_samples=5)
    assert clusters.sizes == [30, 18, 12]
    expected = {0: 2, 1: 0, 2: 1}
    assert clusters.assignment == {u: expected[t] for u, t in zip(users, truth, strict=True)}
    assert clusters.members(0) == [u for u, t in zip(users, truth, strict=True) if t == 1]
    assert np.allclose(np.linalg.norm(clusters.centroids, axis=1), 1)


def test_order_of_users_does_not_matter() -> None:
    points, users, _ = blobs([10, 10, 10])
    forward = fit_clusters(points, users, 3)
    backward = fit_clusters(points[::-1], users[::-1], 3)
    assert forward.assignment == backward.assignment
    assert np.array_equal(forward.centroids, backward.centroids)
    # Equal sizes: the cluster of the first user comes first.
    assert forward.assignment["u000"] == 0


def test_training_users_are_routed_to_their_own_cluster() -> None:
    points = np.random.default_rng(1).normal(size=(60, 4))  # no structure: many borderline users
    users = [f"u{i:02d}" for i in range(60)]
    clusters = fit_clusters(points, users, 5, min_samples=1)
    nearest = route(points, clusters.centroids).argmax(axis=1)
    assert [clusters.assignment[user] for user in users] == nearest.tolist()


def test_number_of_clusters_respects_samples() -> None:
    points, users, truth = blobs([30, 18, 4])
    assert fit_clusters(points, users, min_samples=3).n_clusters == 3
    assert fit_clusters(points, users, min_samples=10).n_clusters == 2
    assert fit_clusters(points, users, min_samples=27).n_clusters == 1
    # Samples count, not users.
    samples = {u: 5 if t == 2 else 1 for u, t in zip(users, truth, strict=True)}
    chosen = fit_clusters(points, users, samples_per_user=samples, min_samples=10)
    assert chosen.n_clusters == 3


def test_clusters_that_cannot_be_had_are_refused() -> None:
    points, users, _ = blobs([10, 10])
    same = np.ones((6, 3))
    cases: list[tuple[Any, ...]] = [
        (points, users, 0),
        (points, users, 21),
        (points, users, 7),  # too few samples each
        (same, users[:6], 2),  # one of them empty
        (points[:5], users, 2),
        (points, ["a"] * 20, 2),
        (np.full((20, 8), np.nan), users, 2),
    ]
    for case in cases:
        with pytest.raises(DataError) as error:
            fit_clusters(*case, min_samples=5 if case[2] != 2 else 0)
        one_line(error)
    assert fit_clusters(points[:1], users[:1], 1).sizes == [1]
    assert fit_clusters(same, users[:6]).n_clusters == 1


def test_clusters_survive_a_file(tmp_path: Path) -> None:
    points, users, _ = blobs([10, 12])
    clusters = fit_clusters(points, users, 2)
    tensors, meta = clusters.to_tensors()
    save_tensors(tmp_path / "clusters", tensors, "clusters", meta)
    loaded = Clusters.from_tensors(*load_tensors(tmp_path / "clusters", "clusters"))
    assert loaded.assignment == clusters.assignment and loaded.sizes == clusters.sizes
    assert np.array_equal(loaded.centroids, clusters.centroids)
    cases: list[tuple[Any, Any]] = [({}, meta), (tensors, {}), (tensors, {"assignment": {"u": 2}})]
    for bad in cases:
        with pytest.raises(ArtifactError) as error:
            Clusters.from_tensors(*bad)
        one_line(error)


def scores_of(user_ids: list[str], values: torch.Tensor) -> HeadScores:
    ids = tuple(f"e{i}" for i in range(len(user_ids)))
    return HeadScores(values, torch.ones(len(ids)), ids, tuple(user_ids))


def test_cluster_heads_come_from_their_own_users() -> None:
    clusters = Clusters(np.eye(2, dtype=np.float32), {"a": 0, "b": 1, "c": 0, "unscored": 1})
    values = torch.zeros(4, 2, 2)
    values[[0, 2], 0, 1] = torch.tensor([0.2, 0.6])  # users a, c
    values[[0, 2], 1, 1] = torch.tensor([0.1, 0.1])
    values[[1, 3], 1, 0] = 0.3  # user b
    scores = scores_of(["a", "b", "c", "b"], values)
    first, second = cluster_heads(scores, clusters)
    assert torch.allclose(first.values, torch.tensor([[0.0, 1.0], [0.0, 0.25]]))
    assert second.heads == [(1, 0)]
    assert first.info.n_examples == second.info.n_examples == 2
    assert [m.heads for m in cluster_heads(scores, clusters, k=1)] == [[(0, 1)], [(1, 0)]]
    with pytest.raises(SteeringError):
        cluster_heads(scores, clusters, k=1, fraction=0.5)


def test_cluster_without_samples_and_user_without_cluster_are_refused() -> None:
    scores = scores_of(["a", "a"], torch.rand(2, 2, 2))
    centroids = np.eye(2, dtype=np.float32)
    with pytest.raises(DataError, match="cluster 1 has no"):
        cluster_heads(scores, Clusters(centroids, {"a": 0, "b": 1}))
    with pytest.raises(DataError, match="'a'"):
        cluster_heads(scores, Clusters(centroids, {"b": 0}))
