"""Contrasts of two distributions over the next token, of branches (Eq. 8) and of layers (DoLa); and
how far one is from another."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from prefheads.errors import ModelError, SteeringError


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
    result = _plausible(result, p, plausibility)
    use = gamma > 0 if active is None else (gamma > 0) & active
    return torch.where(use, result, p)


def entropy_strength(
    personalised: Tensor, gamma: Tensor | float, cap: float | None = None
) -> Tensor:
    """Strengths ``(..., 1)`` that follow the model's doubt: ``gamma`` times the entropy in nats of
    the distribution of logits ``(..., vocab)``, at most ``cap``."""
    entropy = torch.special.entr(personalised.float().softmax(-1)).sum(-1, keepdim=True)
    strength: Tensor = torch.as_tensor(gamma, dtype=entropy.dtype, device=entropy.device) * entropy
    return strength if cap is None else strength.clamp(max=cap)


def contrast_layers(
    final: Tensor, early: Iterable[Tensor], plausibility: float | None = None
) -> Tensor:
    """``log p(final) - log p(early)`` for the early opinion farthest from the final one (DoLa).

    Farthest, at each position on its own, is by the divergence in the authors' code: Jensen and
    Shannon's with the arguments of both terms exchanged, ``(KL(m || p) + KL(m || q)) / 2``, where
    m is the mean of p and q. Theirs proper is at most log 2, which hidden states without the final
    norm reach in all layers, so that rounding would choose.

    Args:
        final: Logits ``(..., vocab)`` of the last layer.
        early: Logits ``(..., vocab)`` of each candidate; at least one. Held one at a time.
        plausibility: As in :func:`combine`, by the final distribution.

    Returns:
        Differences of log-probabilities ``(..., vocab)`` in float32.
    """
    log_p = final.float().log_softmax(-1)
    result, farthest = log_p, torch.full_like(log_p[..., :1], float("-inf"))
    for logits in early:
        log_q = logits.float().log_softmax(-1)
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        distance = ((divergence(log_m, log_p) + divergence(log_m, log_q)) / 2)[..., None]
        difference = torch.where(log_p.isneginf(), log_p, log_p - log_q)
        result = torch.where(distance > farthest, difference, result)
        farthest = torch.maximum(farthest, distance)
    return _plausible(result, log_p, plausibility)


def _plausible(result: Tensor, logits: Tensor, share: float | None) -> Tensor:
    """``result`` without tokens whose probability is below a share of the likeliest one's."""
    if share is None:
        return result
    floor = logits.amax(-1, keepdim=True) + math.log(share)
    return result.masked_fill(logits < floor, float("-inf"))


def require_plausibility(share: float | None) -> None:
    """Refuse a plausibility that is neither None nor in (0, 1]."""
    if share is not None and not 0 < share <= 1:
        raise SteeringError("plausibility must lie in (0, 1]")


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats: ``(..., vocab)`` log-probabilities of each to ``(...)``.

    Tokens that p rules out (log-probability of minus infinity) add nothing, whatever q says of
    them. Infinite, never NaN, where q rules out a token that p does not.
    """
    terms = log_p.exp() * (log_p - log_q)  # NaN where a p that rounds to 0 meets infinity
    terms = terms.masked_fill_(log_q.isneginf(), float("inf"))
    return terms.masked_fill_(log_p.isneginf(), 0.0).sum(-1)


def require_numbers(scores: Tensor, example_id: str) -> None:
    """Raise a ``ModelError`` that names the example if one of its scores is NaN."""
    if scores.isnan().any():
        raise ModelError(
            f"the model's logits for example {example_id!r} are not finite; try float32"
        )
