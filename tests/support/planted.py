"""Scores with planted answers."""

from __future__ import annotations

import torch

from prefheads.heads.scores import HeadScores, Provenance

SHAPE = (10, 8)


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
