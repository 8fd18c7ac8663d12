"""Attention of many rows that share one prompt: its keys and values are read once for all.

The rows lie side by side in the query axis, and each sees the prompt and its own tokens. Where the
backend tells the normaliser of its softmax, the two parts are computed apart and merged: exact,
and no row's queries meet another row's keys. Elsewhere they go through the backend as one row
under a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache

from prefheads.masks import as_bias
from prefheads.observer import AttentionFunction, layer_index

Once = Callable[[Callable[[], Any]], Any]


class ReadOnly(Cache):
    """A filled cache that tells its lengths and keeps nothing: new keys and values pass through."""

    def __init__(self, filled: Cache) -> None:
        super().__init__(layers=filled.layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new keys and values unchanged; :func:`attend_shared` adds the prompt's."""
        return key_states, value_states


def shared_keys(prompt: Cache, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Any, Any]:
    """Keys and values of the prompt in one layer, ``(1, kv_heads, n_prompt, d)``; maybe none."""
    layers: list[Any] = prompt.layers
    index = layer_index(module)
    held = layers[index] if index < len(layers) else None
    if held is None or held.get_seq_length() == 0:
        return key[:1, :, :0], value[:1, :, :0]
    return held.keys, held.values


def attend_shared(
    inner: AttentionFunction,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    prompt: tuple[Tensor, Tensor],
    once: Once,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The attention function ``inner`` for rows of one shared prompt.

    Args:
        query: ``(rows, heads, T, d)``; ``key`` and ``value`` alike, with their number of heads.
        mask: Of any form, ``(1 or rows, 1 or heads, T, n_prompt + T)``.
        prompt: Keys and values of :func:`shared_keys`.
        once: Computes what follows from the mask and the shape alone, or remembers it.

    Returns:
        ``(rows, T, heads, d)``, and what ``inner`` returns beside it.
    """
    rows, _, n_query, _ = query.shape
    past = prompt[0].shape[2]
    n_key = past + key.shape[2]
    if past and _tells_normaliser(inner, query, kwargs):
        seen = once(lambda: _split_mask(mask, query, key.shape[1], past, n_key))
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return _in_two_parts(query, key, value, seen, prompt, scale), None
    folded = once(lambda: _fold_mask(mask, query, n_key, past))
    keys, values = (torch.cat([p, _fold(x)], 2) for p, x in zip(prompt, (key, value), strict=True))
    out, weights = inner(module, _fold(query), keys, values, folded, **kwargs)
    return out.reshape(rows, n_query, *out.shape[2:]), weights


# -- in two parts --


def _tells_normaliser(inner: AttentionFunction, query: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the attention is sdpa's on a CPU, whose kernel returns it (without gradient)."""
    return (
        inner is AttentionInterface()["sdpa"]
        and query.device.type == "cpu"
        and not torch.is_grad_enabled()
        and all(kwargs.get(name) is None for name in ("softcap", "position_bias", "cache"))
    )


def _split_mask(
    mask: Tensor | None, query: Tensor, groups: int, past: int, n_key: int
) -> tuple[Tensor | None, Tensor]:
    """The mask of the prompt's keys ``(1, groups, rows * heads / groups * T, past)``, None where
    all are seen, and of the own ones ``(rows or 1, groups or 1, heads / groups or 1, T, T)``."""
    rows, heads = query.shape[:2]
    bias = as_bias(mask, query, past, n_key)
    own = bias[..., past:]
    own = own[:, :, None] if own.shape[1] == 1 else own.unflatten(1, (groups, -1))
    before = bias[..., :past]
    if not before.any():
        return None, own
    before = before.expand(rows, heads, -1, -1).unflatten(1, (groups, -1)).transpose(0, 1)
    return before.reshape(1, groups, -1, past), own


def _in_two_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: tuple[Tensor | None, Tensor],
    prompt: tuple[Tensor, Tensor],
    scale: float,
) -> Tensor:
    (rows, heads, n_query, d), groups = query.shape, key.shape[1]
    fine = torch.promote_types(query.dtype, torch.float32)
    # Heads that share keys lie side by side too: (rows, groups, heads / groups * T, d).
    query = query.reshape(rows, groups, -1, d)
    before, log_before = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _fold(query), *prompt, attn_mask=masks[0], scale=scale
    )  # (1, groups, rows * heads / groups * T, d) and its logarithmic normaliser
    before = before.reshape(groups, rows, -1, d).transpose(0, 1).to(fine)
    log_before = log_before.reshape(groups, rows, -1).transpose(0, 1)[..., None]

    scores = (query @ key.transpose(2, 3)).to(fine) * scale
    own = scores.unflatten(2, (-1, n_query)) + masks[1]
    own = own.flatten(2, 3)  # (rows, groups, heads / groups * T, T)
    top = torch.maximum(own.amax(-1, keepdim=True), log_before)
    own, weight = (own - top).exp_(), (log_before - top).exp_()
    out: Tensor = (before * weight + own @ value.to(fine)) / (weight + own.sum(-1, keepdim=True))
    return out.reshape(rows, heads, n_query, d).transpose(1, 2).to(query.dtype)


# -- as one row --


def _fold_mask(mask: Tensor | None, query: Tensor, n_key: int, past: int) -> Tensor:
    """Mask ``(1, heads, rows * T, past + rows * T)``: a row sees the prompt and its own tokens."""
    rows, _, n_query, _ = query.shape
    bias = as_bias(mask, query, n_key - n_query, n_key).expand(rows, -1, -1, -1)
    heads = bias.shape[1]
    folded = query.new_full(
        (heads, rows, n_query, past + rows * n_query), torch.finfo(query.dtype).min
    )
    folded[..., :past] = bias[..., :past].transpose(0, 1)
    own = folded[..., past:].unflatten(-1, (rows, n_query)).diagonal(dim1=1, dim2=3)
    own.copy_(bias[..., past:].permute(1, 2, 3, 0))
    return folded.reshape(1, heads, rows * n_query, -1)


def _fold(x: Tensor) -> Tensor:
    """``(rows, heads, n, d)`` as one row of ``(1, heads, rows * n, d)``."""
    return x.transpose(0, 1).reshape(1, x.shape[1], -1, x.shape[3])
