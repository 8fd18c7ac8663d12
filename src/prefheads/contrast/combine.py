"""Combining two opinions about the next token (paper, Eq. 8). Pure functions on logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def combine(
    personalised: Tensor,
    generic: Tensor,
    gamma: Tensor | float,
    *,
    active: Tensor | None = None,
    plausibility: float | None = None,
) -> Tensor:
    """``(1 + gamma) * personalised - gamma * generic`` (Eq. 8).

    Args:
        personalised: Logits ``(..., vocab)`` of the model as it is.
        generic: Logits ``(..., vocab)`` of the depersonalised branch.
        gamma: Strength, non-negative, broadcastable to ``(..., 1)``. Where it is 0 the result is
            ``personalised`` exactly.
        active: Rows to combine, bool, broadcastable to ``(..., 1)``; the others are
            ``personalised`` exactly.
        plausibility: If given, tokens whose personalised probability is below this share of the
            likeliest one's are ruled out, as in contrastive decoding.

    Returns:
        Combined logits ``(..., vocab)`` in float32.
    """
    p, g = personalised.float(), generic.float()
    gamma = torch.as_tensor(gamma, dtype=p.dtype, device=p.device)
    result = torch.where(p.isneginf(), p, p + gamma * (p - g))  # ruled out stays ruled out
    if plausibility is not None:
        floor = p.amax(-1, keepdim=True) + math.log(plausibility)
        result = result.masked_fill(p < floor, float("-inf"))
    use = gamma > 0 if active is None else (gamma > 0) & active
    return torch.where(use, result, p)


def entropy_strength(
    personalised: Tensor, gamma: Tensor | float, cap: float | None = None
) -> Tensor:
    """Strength that follows the model's doubt: ``gamma`` times the entropy of its distribution, at
    most ``cap``.

    Args:
        personalised: Logits ``(..., vocab)``.
        gamma: Scale, broadcastable to ``(..., 1)``.
        cap: Largest strength, in the unit of gamma.

    Returns:
        Strengths ``(..., 1)``, for :func:`combine`.
    """
    entropy = torch.special.entr(personalised.float().softmax(-1)).sum(-1, keepdim=True)  # in nats
    strength: Tensor = torch.as_tensor(gamma, dtype=entropy.dtype, device=entropy.device) * entropy
    return strength if cap is None else strength.clamp(max=cap)
