"""Scores and weights made up for tests, and errors of one line."""

from __future__ import annotations

import pytest
import torch

from prefheads.heads.scores import HeadScores, HeadWeights, Provenance

INFO = Provenance(model_id="tiny", task="LaMP-4", scope="all", seed=3)


def make_scores(n: int = 12, layers: int = 4, heads: int = 3, seed: int = 0) -> HeadScores:
    generator = torch.Generator().manual_seed(seed)
    return HeadScores(
        torch.randn(n, layers, heads, generator=generator),
        torch.rand(n, generator=generator) + 1,
        tuple(f"e{i}" for i in range(n)),
        tuple(f"u{i // 2}" for i in range(n)),
        INFO,
    )


def make_weights(seed: int = 0, layers: int = 4, heads: int = 3) -> HeadWeights:
    return HeadWeights(torch.rand(layers, heads, generator=torch.Generator().manual_seed(seed)))


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message
