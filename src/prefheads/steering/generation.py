"""Text for users with given profiles, under a setting: encode, steer, generate, decode."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    Cache,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefheads.data.encoding import Batch, encode, pad_batch
from prefheads.data.example import Example
from prefheads.errors import DataError, ModelError
from prefheads.heads.scores import HeadWeights
from prefheads.interventions.layout import input_device
from prefheads.models.limits import context_length
from prefheads.steering.context import steer_with
from prefheads.steering.setting import Setting


@dataclass(frozen=True)
class Completion:
    """What a model wrote: the text, and how many tokens it took (the end of the turn included)."""

    text: str
    n_tokens: int


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    heads: Sequence[HeadWeights],
    setting: Setting,
    *,
    max_new_tokens: int,
    **options: Any,
) -> list[str]:
    """One text for each example, all in one batch, each steered with its own map; ``options`` go to
    ``model.generate`` as they are."""
    room = room_for_prompt(model, max_new_tokens)
    encoded = [encode(tokenizer, e, max_length=room) for e in examples]
    batch = pad_batch(encoded, tokenizer.pad_token_id or 0)
    weights = torch.stack([h.values for h in heads])
    with steer_with(model, weights, setting, batch.profile_mask):
        done = complete(model, tokenizer, batch, max_new_tokens=max_new_tokens, **options)
    return [completion.text for completion in done]


def room_for_prompt(model: PreTrainedModel, max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have, or None where the model's context is not known; a DataError if
    no room is left."""
    limit = context_length(model)
    if limit is not None and max_new_tokens >= limit:
        raise DataError(f"max_new_tokens={max_new_tokens}: the context has only {limit} tokens")
    return None if limit is None else limit - max_new_tokens


@torch.no_grad()
def encode_prompt(model: PreTrainedModel, batch: Batch) -> Cache | None:
    """Keys and values of the prompts but for their last token, for :func:`complete`; ``None`` if
    there is no more."""
    if batch.prompt_ids.shape[1] < 2:
        return None
    device = input_device(model)
    mask = batch.prompt_mask[:, :-1].long().to(device)
    cache = DynamicCache(config=model.config)
    model(
        input_ids=batch.prompt_ids[:, :-1].to(device),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
        past_key_values=cache,
        logits_to_keep=1,
    )
    return cache


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Batch,
    *,
    max_new_tokens: int,
    prompt: Cache | None = None,
    **options: Any,
) -> list[Completion]:
    """What the model writes after each prompt of a batch, under whatever steering is active.

    Args:
        prompt: Of :func:`encode_prompt`, left as it is.
        options: Go to ``model.generate`` as they are.
    """
    device = input_device(model)
    processors = [*options.pop("logits_processor", ()), _NoNaN()]
    if prompt is not None:
        options["past_key_values"] = copy.deepcopy(prompt)
    generator: Any = model
    ids = generator.generate(
        input_ids=batch.prompt_ids.to(device),
        attention_mask=batch.prompt_mask.long().to(device),
        max_new_tokens=max_new_tokens,
        logits_processor=LogitsProcessorList(processors),
        **options,
    )
    new = ids[:, batch.prompt_ids.shape[1] :]
    ends = end_tokens(model, options.get("eos_token_id"))
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    # Tokens up to the first end token, that one included; the rest is padding.
    lengths = [
        next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        for row in new.tolist()
    ]
    return [Completion(text.strip(), n) for text, n in zip(texts, lengths, strict=True)]


def end_tokens(model: PreTrainedModel, chosen: int | Sequence[int] | None = None) -> frozenset[int]:
    """The tokens that end an answer: those chosen, or else the model's own."""
    ends = getattr(model.generation_config, "eos_token_id", None) if chosen is None else chosen
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)


class _NoNaN(LogitsProcessor):
    """Broken weights would give some text all the same."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if scores.isnan().any():
            raise ModelError("the model's logits are not finite; its weights may be damaged")
        return scores
