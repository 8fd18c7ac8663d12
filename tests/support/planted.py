"""Scores with planted answers."""

from __future__ import annotations

import numpy as np
import torch

from prefheads.heads.scores import HeadScores, Provenance
from prefheads.users import Clusters

SHAPE = (10, 8)
N_HEADS = SHAPE[0] * SHAPE[1]


def scores_of(maps, each=1, noise=0.0, seed=0):
    """``each`` samples of every user whose map is given, ``(n_users, n_layers, n_heads)``."""
    maps = torch.as_tensor(maps, dtype=torch.float32)
    values = maps.repeat_interleave(each, 0)
    values = values + noise * torch.randn(
        values.shape, generator=torch.Generator().manual_seed(seed)
    )
    ids = tuple(f"e{i}" for i in range(len(values)))
    users = tuple(f"u{i // each:03d}" for i in range(len(values)))
    return HeadScores(values, torch.ones(len(values)), ids, users, Provenance())


def noise_maps(n_users, seed=0):
    return torch.randn(n_users, *SHAPE, generator=torch.Generator().manual_seed(seed))


def planted(n_users, heads, strength=1.0):
    """The same heads for everybody."""
    maps = torch.zeros(n_users, *SHAPE)
    for layer, head in heads:
        maps[:, layer, head] = strength
    return maps


def groups(assignment):
    n = max(assignment.values()) + 1
    return Clusters(np.eye(n, 4, dtype=np.float32), assignment)
