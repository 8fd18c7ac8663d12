"""Attention backends that take explicit masks, and masks of any form as additive biases."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.errors import ModelError
from prefheads.interventions.intercept import attention_backend

MASKABLE = ("sdpa", "eager")


def masked_backend(model: PreTrainedModel) -> str:
    """The backend to use where a profile gain or a shared prompt needs explicit masks.

    Returns:
        The model's own backend, or for flex attention one that computes the same.

    Raises:
        ModelError: The model uses a backend (flash attention, a kernel) that takes no bias.
    """
    backend = attention_backend(model)
    if backend in MASKABLE:
        return backend
    if backend == "flex_attention":
        softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
        return "eager" if softcap else "sdpa"
    raise ModelError(
        f"{backend} attention takes no bias on single tokens; load the model with sdpa, "
        "eager or flex"
    )


def as_bias(mask: Tensor | None, query: Tensor, past: int, n_key: int) -> Tensor:
    """An attention mask of any form as an additive bias.

    Args:
        mask: Boolean or additive; ``None`` means causal, ``past`` keys coming before the queries'.
        query: ``(batch, heads, n_query, head_dim)``.

    Returns:
        ``(1 or batch, 1 or heads, n_query, n_key)``.
    """
    low = torch.finfo(query.dtype).min
    if mask is None:
        seen = torch.ones(query.shape[2], n_key, dtype=torch.bool, device=query.device)
        mask = seen.tril(past)[None, None]
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, low)
    # Minus infinity, which others may have written, leaves no softmax where a row sees nothing.
    return mask[..., :n_key].to(query.dtype).clamp_min(low)
