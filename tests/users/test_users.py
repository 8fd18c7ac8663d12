"""Profiles to vectors, vectors to clusters, clusters to one map of heads."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prefheads.errors import ArtifactError, DataError, ModelError, PrefheadsError, SteeringError
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.storage import load_tensors, save_tensors
from prefheads.users import Clusters, ProfileEncoder, cluster_heads, fit_clusters, mix, route


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


# --- clustering


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


# --- heads of clusters


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


# --- routing and mixing


def test_hard_routing_takes_the_nearest_by_angle() -> None:
    centroids = np.array([[1.0, 0.0], [0.0, 5.0], [3.0, 3.0]])
    users = np.array([[9.0, 1.0], [0.1, 0.2], [0.01, 1.0]])
    assert route(users, centroids).argmax(axis=1).tolist() == [0, 2, 1]
    for row in route(users, centroids):
        assert sorted(row) == [0, 0, 1]
    assert route(users[0], centroids).shape == (3,)


def test_soft_routing_is_a_softmax_of_cosines_and_hardens_when_cold() -> None:
    rng = np.random.default_rng(0)
    users, centroids = rng.normal(size=(7, 5)), rng.normal(size=(4, 5))
    weights = route(users, centroids, "soft", temperature=0.3)
    for u, user in enumerate(users):
        cosines = [user @ c / np.sqrt((user @ user) * (c @ c)) for c in centroids]
        powers = np.exp(np.array(cosines) / 0.3)
        assert np.allclose(weights[u], powers / powers.sum())
    hard = route(users, centroids, "hard")
    distances = [
        np.abs(route(users, centroids, "soft", t) - hard).max() for t in (1.0, 0.1, 0.01, 1e-6)
    ]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-12
    assert np.allclose(route(users, centroids, "soft", 1e6), 0.25, atol=1e-5)


def test_routing_refuses_bad_arguments() -> None:
    e, c = np.ones(3), np.eye(3)
    bad: list[tuple[tuple[Any, ...], str]] = [
        ((e, c, "warm"), "warm"),
        ((e, c, "soft", 0.0), "temperature"),
        ((e, c, "soft", -1.0), "temperature"),
        ((e, c, "soft", float("nan")), "temperature"),
        ((np.ones(4), c), "4 dimensions"),
        ((np.full(3, np.nan), c), "NaN"),
        ((e, np.zeros((0, 3))), "shape"),
    ]
    for arguments, word in bad:
        with pytest.raises(SteeringError, match=word) as error:
            route(*arguments)
        one_line(error)


def test_mixed_map_is_the_convex_combination() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [HeadWeights(torch.rand(3, 4, generator=generator)) for _ in range(16)]
    weights = np.random.default_rng(0).dirichlet(np.ones(16))
    by_hand = weights[0] * maps[0]
    for w, m in zip(weights[1:], maps[1:], strict=True):
        by_hand = by_hand + float(w) * m
    assert torch.allclose(mix(weights, maps).values, by_hand.values, atol=1e-6)
    assert mix(np.eye(16)[5], maps) == maps[5]
    ones = [HeadWeights(torch.ones(3, 4))] * 16
    assert torch.equal(mix(weights, ones).values, torch.ones(3, 4))


def test_mix_refuses_what_is_no_mixture() -> None:
    maps = [HeadWeights(torch.ones(2, 2))] * 2
    other = HeadWeights(torch.ones(2, 3))
    for weights, chosen in (
        ([0.5, 0.2], maps),
        ([1.5, -0.5], maps),
        ([np.nan, 1.0], maps),
        ([1.0], maps),
        ([], []),
        ([0.5, 0.5], [maps[0], other]),
    ):
        with pytest.raises(SteeringError) as error:
            mix(np.array(weights), chosen)
        one_line(error)


# --- embedding, with a stand-in for the sentence encoder


class Letters:
    """Counts vowels, scaled to length 1, like an encoder with normalised embeddings."""

    def __init__(self, name: str, **_: Any) -> None:
        if "missing" in name:
            raise OSError("no such encoder\nand a long story")

    def encode(self, texts: list[str], **options: Any) -> NDArray[np.float32]:
        assert options["normalize_embeddings"]
        counts = np.array([[text.count(v) for v in "aeiou"] for text in texts], dtype=np.float32)
        return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True))


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> ProfileEncoder:
    stand_in = SimpleNamespace(SentenceTransformer=Letters)
    monkeypatch.setitem(sys.modules, "sentence_transformers", stand_in)
    monkeypatch.setattr("prefheads.users.embed.no_hub", lambda source: "")
    return ProfileEncoder("letters")


def test_profile_is_the_unit_mean_of_its_items(letters: ProfileEncoder) -> None:
    profiles: list[list[dict[str, Any]]] = [
        [{"text": "aaaa"}, {"text": "e"}, {"text": "  "}],
        [{"id": "uuu", "date": "uuu", "title": "i", "text": "o", "score": 5}],
    ]
    expected = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]) / np.sqrt(2)
    embedded = letters.embed(profiles)
    assert embedded.dtype == np.float32
    assert np.allclose(embedded, expected)
    assert np.array_equal(embedded, letters.embed(profiles))
    assert np.allclose(letters.embed(profiles[1:]), embedded[1:])


def test_profile_without_text_is_named(letters: ProfileEncoder) -> None:
    empty: list[list[dict[str, Any]]] = [[], [{"text": " "}], [{"id": "7", "score": 3}]]
    for profile in empty:
        with pytest.raises(DataError, match="profile 1") as error:
            letters.embed([[{"text": "a"}], profile])
        one_line(error)
    with pytest.raises(DataError):
        letters.embed([])


def test_missing_encoder_and_missing_extra_are_one_line(
    letters: ProfileEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="'missing'") as error:
        ProfileEncoder("missing")
    assert one_line(error).endswith("no such encoder")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(PrefheadsError, match=r"prefheads\[cluster\]") as absent:
        ProfileEncoder("letters")
    one_line(absent)
