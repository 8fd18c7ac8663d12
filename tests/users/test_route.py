"""From a user's vector to clusters, and from clusters to one map of heads."""

from typing import Any

import numpy as np
import pytest
import torch

from prefheads.errors import SteeringError
from prefheads.heads.scores import HeadWeights
from prefheads.users import mix, route


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


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
