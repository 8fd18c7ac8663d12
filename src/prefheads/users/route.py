"""Route a user to clusters, and mix the clusters' maps into the user's (5.3, Algorithm 1)."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from prefheads.errors import SteeringError
from prefheads.heads.scores import HeadWeights
from prefheads.types import Routing
from prefheads.users.embed import unit_rows


def route(
    embedding: NDArray[Any],
    centroids: NDArray[Any],
    mode: Routing = "hard",
    temperature: float = 0.1,
) -> NDArray[np.float64]:
    """Weights of the clusters for a user, by cosine similarity to the centroids (5.3).

    Args:
        embedding: ``(d,)`` for one user or ``(n, d)`` for several.
        centroids: ``(C, d)``.
        mode: "hard" gives the nearest cluster everything (of equally near ones, the first);
            "soft" is a softmax of similarity / temperature.
        temperature: above 0, for "soft"; towards 0 it becomes "hard".

    Returns:
        ``(C,)`` or ``(n, C)``, each row non-negative with sum 1.

    Raises:
        SteeringError: unknown mode, temperature out of range, or embeddings that do not fit.
    """
    embedding, centroids = np.asarray(embedding), np.asarray(centroids)
    if mode not in get_args(Routing):
        raise SteeringError(f"routing is 'hard' or 'soft', not {mode!r}")
    if not (0 < temperature < float("inf")):
        raise SteeringError(f"temperature={temperature}: it must be above 0")
    if embedding.ndim not in (1, 2) or centroids.ndim != 2 or not len(centroids):
        raise SteeringError(f"cannot route shape {embedding.shape} to {centroids.shape}")
    if embedding.shape[-1] != centroids.shape[1]:
        raise SteeringError(
            f"profile embeddings have {embedding.shape[-1]} dimensions, the clusters "
            f"{centroids.shape[1]}; embed with the encoder the clusters were made with"
        )
    if not (np.isfinite(embedding).all() and np.isfinite(centroids).all()):
        raise SteeringError("NaN or infinity in the profile embeddings or the centroids")
    similarity = unit_rows(embedding) @ unit_rows(centroids).T
    if mode == "hard":
        return np.asarray(np.eye(len(centroids))[similarity.argmax(axis=-1)])
    # Subtract the largest before dividing: a tiny temperature then cannot overflow.
    weights = np.exp((similarity - similarity.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def mix(weights: NDArray[Any], maps: Sequence[HeadWeights]) -> HeadWeights:
    """The clusters' maps in one: ``sum_c w_c * map_c`` (Algorithm 1, line 17).

    Args:
        weights: ``(C,)``, non-negative, with sum 1, as ``route`` gives them for one user.
        maps: one map per cluster, of equal shape.

    Raises:
        SteeringError: weights that are no such mixture, or do not match the maps.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(maps),) or not len(maps):
        raise SteeringError(f"{len(maps)} maps cannot be mixed with weights of {weights.shape}")
    if not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-4:
        raise SteeringError("mixing weights must be non-negative with sum 1")
    if shapes := {m.shape for m in maps} - {maps[0].shape}:
        raise SteeringError(f"maps of shape {maps[0].shape} and {shapes.pop()} cannot be mixed")
    stacked = torch.stack([m.values for m in maps]).double()
    mixed = torch.einsum("c,clh->lh", torch.from_numpy(weights / weights.sum()), stacked)
    info = maps[0].info
    for other in maps[1:]:
        info = info.common(other.info)
    return HeadWeights(mixed, info)
