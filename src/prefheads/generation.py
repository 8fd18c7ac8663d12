"""Text for users with given profiles, under a setting: encode, steer, generate, decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefheads.attention import input_device
from prefheads.calibrate import Setting
from prefheads.encoding import encode, pad_batch
from prefheads.errors import DataError, ModelError
from prefheads.examples import Example
from prefheads.heads import HeadWeights
from prefheads.scoring import context_length
from prefheads.steering import Scope, steer


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    heads: Sequence[HeadWeights],
    setting: Setting,
    scope: Scope,
    *,
    max_new_tokens: int,
    **options: Any,
) -> list[str]:
    """One text for each example, all in one batch, each steered with its own map.

    Args:
        options: Go to ``model.generate`` as they are.

    Raises:
        DataError: No room for new tokens, or an input longer than the context.
        ModelError: The logits are not finite.
    """
    limit = context_length(model)
    if limit is not None and max_new_tokens >= limit:
        raise DataError(
            f"max_new_tokens is {max_new_tokens}, but the context has {limit} tokens in all"
        )
    room = None if limit is None else limit - max_new_tokens
    encoded = [encode(tokenizer, e, max_length=room) for e in examples]
    batch = pad_batch(encoded, tokenizer.pad_token_id or 0)
    device = input_device(model)
    processors = [*options.pop("logits_processor", ()), _NoNaN()]
    generator: Any = model
    with steer(
        model,
        torch.stack([h.values for h in heads]),
        setting.gamma,
        mode=setting.mode,
        target=setting.target,
        suppression=setting.suppression,
        scope=scope,
        profile_mask=batch.profile_mask,
    ):
        ids = generator.generate(
            input_ids=batch.prompt_ids.to(device),
            attention_mask=batch.prompt_mask.long().to(device),
            max_new_tokens=max_new_tokens,
            logits_processor=LogitsProcessorList(processors),
            **options,
        )
    new = ids[:, batch.prompt_ids.shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


class _NoNaN(LogitsProcessor):
    """Broken weights would give some text all the same."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if scores.isnan().any():
            raise ModelError("the model's logits are not finite; its weights may be damaged")
        return scores
