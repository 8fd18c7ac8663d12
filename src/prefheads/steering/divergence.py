"""How far one distribution over tokens is from another, also where one of them rules tokens out."""

from __future__ import annotations

from torch import Tensor

from prefheads.errors import ModelError


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
