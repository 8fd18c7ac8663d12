"""Divergences of distributions that rule tokens out."""

from __future__ import annotations

import math

import pytest
import torch

from prefheads.errors import ModelError
from prefheads.steering.combine import divergence, require_numbers

INF = math.inf


def of(p: list[float], q: list[float]) -> float:
    """The divergence of logits."""
    return float(divergence(torch.tensor(p).log_softmax(-1), torch.tensor(q).log_softmax(-1)))


def test_it_is_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = torch.randn(2, 3, 5, 7, generator=generator).log_softmax(-1)
    wanted = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    found = divergence(log_p, log_q)
    assert found.shape == (3, 5) and torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("theirs", [-INF, 0.0, -200.0])
def test_what_p_rules_out_adds_nothing(theirs: float) -> None:
    rest = math.log(1 + math.exp(theirs) / 2)  # what q spends on that token
    assert of([0, 0, -INF], [0, 0, theirs]) == pytest.approx(rest, abs=1e-6)


@pytest.mark.parametrize("mine", [0.0, -50.0, -300.0])  # the last one's probability rounds to 0
def test_what_q_alone_rules_out_is_infinitely_far(mine: float) -> None:
    assert of([0, 0, mine], [0, 0, -INF]) == INF


def test_numbers_that_are_none_are_told_with_the_example() -> None:
    require_numbers(torch.tensor([1.0, INF]), "7")
    with pytest.raises(ModelError, match="example '7' are not finite"):
        require_numbers(torch.tensor([1.0, math.nan]), "7")
