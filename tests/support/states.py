"""What is left behind in a process."""

from __future__ import annotations

from typing import Any

import torch
from support.steered import PROMPTS, step_logits
from transformers import AttentionInterface, cache_utils, modeling_utils
from transformers.masking_utils import AttentionMaskInterface


def steps_of(model, prompt=PROMPTS[0], **options) -> torch.Tensor:
    """Logits (n_new, vocab) of each step of a generation."""
    return step_logits(model, prompt, **options)[1][0]


def registries() -> list[Any]:
    """What transformers holds for all models: kinds of attention, of masks, of cache layers."""
    functions = modeling_utils.ALL_ATTENTION_FUNCTIONS
    found = [
        dict(functions),
        dict(functions._local_mapping),
        dict(vars(functions)),
        dict(vars(AttentionInterface)),
        dict(AttentionInterface._global_mapping),
        dict(AttentionMaskInterface._global_mapping),
        dict(cache_utils.DYNAMIC_LAYER_TYPE_MAPPING),
        dict(cache_utils.STATIC_LAYER_TYPE_MAPPING),
    ]
    files = {str(getattr(x, "__module__", "")) for registry in found for x in registry.values()}
    assert not any(file.startswith("prefheads") for file in files)
    return found
