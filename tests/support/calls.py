"""Calls of an attention function without a model."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import AttentionInterface

from prefheads.interventions.hooks import LAYER, AttentionCall

SDPA = AttentionInterface()["sdpa"]


def attention_call(
    query: Tensor, key: Tensor, value: Tensor, mask=None, layer=0, function=SDPA, **kwargs
) -> AttentionCall:
    """The call of a causal layer, with as many groups of heads as the keys have."""
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = query.shape[1] // key.shape[1], True
    setattr(module, LAYER, layer)
    return AttentionCall(function, module, query, key, value, mask, kwargs)
