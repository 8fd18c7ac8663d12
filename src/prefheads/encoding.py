"""From an example to tokens: chat template, exact span of the profile, cutting to the context."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import BoolTensor, LongTensor, Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from prefheads.errors import DataError, ModelError
from prefheads.examples import Example, without_profile
from prefheads.tasks.prompts import Count, Cut, Prompt, build_prompt, shorten, shorten_to

# Private-use characters: no template has a reason to write, strip or change them.
PLACEHOLDER = "\ue000\ue001"


class TruncationWarning(UserWarning):
    """A profile was cut so that prompt and response fit the context."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """The very tokens that are scored and steered.

    Attributes:
        prompt_ids: ``(P,)``, with everything the chat template adds.
        response_ids: ``(T,)``; empty if the example has no output.
        profile_mask: ``(P,)``, true at the tokens of the profile.
        text: The prompt as it was rendered.
        truncated: Whether the profile was cut.
        example_id: The example's id.
        user_id: The example's user.
    """

    prompt_ids: LongTensor
    response_ids: LongTensor
    profile_mask: BoolTensor
    text: str
    truncated: bool
    example_id: str
    user_id: str


@dataclass(frozen=True, eq=False)
class Batch:
    """Encoded examples side by side: prompts end, and responses begin, in the same column.

    Attributes:
        prompt_ids: ``(B, P)``, padded on the left.
        prompt_mask: ``(B, P)``, false at padding.
        profile_mask: ``(B, P)``.
        response_ids: ``(B, T)``, padded on the right.
        response_mask: ``(B, T)``, false at padding.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    profile_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor


def encode(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    *,
    max_length: int | None = None,
    end_of_turn: bool = False,
) -> Encoded:
    """Encode an example: its prompt as the user's turn, and its output as the response to it.

    Without a chat template, the response continues the prompt after one space. The profile's tokens
    are all those whose characters overlap the profile block.

    Args:
        tokenizer: A fast tokenizer (it must tell where in the text each token comes from).
        example: The example; without a profile its mask is all false.
        max_length: Tokens for prompt and response together; by default what the tokenizer says. If
            they are more, the profile is cut (:func:`prefheads.tasks.prompts.shorten`) with a
            ``TruncationWarning``.
        end_of_turn: Whether the response includes the token that ends it.

    Raises:
        DataError: Input and response alone do not fit, or the profile lacks a field.
        ModelError: The tokenizer is not fast, or its template changes what it is given.
    """
    _require_fast(tokenizer)
    text, ids, mask = _tokenize(tokenizer, build_prompt(example))
    if not len(ids):
        raise DataError(f'example {example.id!r}: the prompt has no tokens; fill "input"')
    response = _response_ids(tokenizer, text, ids, example.output, end_of_turn)
    limit = max_length if max_length is not None else _default_length(tokenizer)
    truncated = limit is not None and len(ids) + len(response) > limit
    if limit is not None and truncated:
        text, ids, mask = _fit(tokenizer, example, mask, limit, len(response))
        message = f"example {example.id!r}: the profile was cut to fit {limit} tokens"
        warnings.warn(message, TruncationWarning, stacklevel=2)
    return Encoded(
        prompt_ids=torch.LongTensor(ids),
        response_ids=torch.LongTensor(response),
        profile_mask=torch.BoolTensor(mask),
        text=text,
        truncated=truncated,
        example_id=example.id,
        user_id=example.user_id,
    )


def shorten_prompt(
    tokenizer: PreTrainedTokenizerBase, example: Example, max_tokens: int
) -> Example:
    """Cut an example's profile as the LaMP benchmark does for prompts of ``max_tokens`` tokens.

    The tokens are those of the prompt before any chat template, counted as the benchmark counts
    them: with the special tokens that the tokenizer adds to every text
    (:func:`prefheads.tasks.prompts.shorten_to`).

    Args:
        tokenizer: A fast tokenizer.
        example: The example, with the profile items that retrieval chose.
        max_tokens: Tokens that the prompt may have; the paper's experiments allow 2,048.

    Returns:
        The example with the long text of its items cut; the input is left as it is. Without a
        profile where not even the frames of its items would fit.

    Raises:
        DataError: ``max_tokens`` below 1, or an item without a needed field.
        ModelError: The tokenizer is not fast.
    """
    _require_fast(tokenizer)
    count, cut = _measures(tokenizer, special=True)
    return shorten_to(example, max_tokens, count=count, cut=cut)


def pad_batch(encodeds: Sequence[Encoded], pad_id: int) -> Batch:
    """Put encoded examples into one batch.

    Args:
        encodeds: At least one.
        pad_id: The token id to pad with.

    Raises:
        DataError: Nothing to batch.
    """
    if not encodeds:
        raise DataError("a batch needs at least one example")
    prompts = [e.prompt_ids for e in encodeds]
    responses = [e.response_ids for e in encodeds]

    def left(rows: Sequence[Tensor], value: float) -> Tensor:
        return pad_sequence(list(rows), True, value, padding_side="left")

    def right(rows: Sequence[Tensor], value: float) -> Tensor:
        return pad_sequence(list(rows), True, value)

    return Batch(
        prompt_ids=left(prompts, pad_id),
        prompt_mask=left([torch.ones_like(ids, dtype=torch.bool) for ids in prompts], 0),
        profile_mask=left([e.profile_mask for e in encodeds], 0),
        response_ids=right(responses, pad_id),
        response_mask=right([torch.ones_like(ids, dtype=torch.bool) for ids in responses], 0),
    )


def _require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ModelError(
            "the tokenizer must be a fast one: only those tell a token's place in the text"
        )


def _measures(tokenizer: PreTrainedTokenizerBase, special: bool) -> tuple[Count, Cut]:
    """How many tokens a text has, and its beginning of so many, with or without special tokens."""
    added = tokenizer.num_special_tokens_to_add() if special else 0

    def count(text: str) -> int:
        return len(_ids(tokenizer, text)) + added

    def cut(text: str, n: int) -> str:
        encoding = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ends = [end for _, end in encoding["offset_mapping"]]
        kept = max(n - added, 0)
        return text if len(ends) <= kept else text[: ends[kept - 1] if kept else 0]

    return count, cut


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt
) -> tuple[str, list[int], list[bool]]:
    """The rendered prompt, its token ids, and which of them belong to the profile."""
    text, start = _render(tokenizer, prompt)
    end = start + len(prompt.profile)
    encoding = tokenizer(
        text,
        # A template writes its own special tokens; adding them again would double BOS.
        add_special_tokens=not tokenizer.chat_template,
        return_offsets_mapping=True,
        verbose=False,
    )
    mask = [start < end and a < end and b > start for a, b in encoding["offset_mapping"]]
    return text, list(encoding["input_ids"]), mask


def _render(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[str, int]:
    """The prompt as the user's turn, and the position of its profile block in it.

    The position follows from where the template puts a placeholder: looking for the profile's text
    instead could find it in the input or in the template.
    """
    content, start = prompt.text, len(prompt.before)
    if not tokenizer.chat_template:
        return content, start
    prefix, *rest = _chat(tokenizer, PLACEHOLDER).split(PLACEHOLDER)
    if len(rest) != 1:
        raise ModelError(f"the chat template writes the user's turn {len(rest)} times, not once")
    rendered = _chat(tokenizer, content)
    stripped = len(content) - len(content.lstrip())
    for kept, lost in (
        (content, 0),
        (content.strip(), stripped),
        (content.lstrip(), stripped),
        (content.rstrip(), 0),
    ):
        if rendered == prefix + kept + rest[0]:
            return rendered, len(prefix) + start - lost
    raise ModelError("the chat template changes the user's text, so the profile cannot be located")


def _chat(tokenizer: PreTrainedTokenizerBase, user: str, assistant: str | None = None) -> str:
    messages = [{"role": "user", "content": user}]
    if assistant is not None:
        messages.append({"role": "assistant", "content": assistant})
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=assistant is None
            )
        )
    except Exception as error:  # a template is code of its own and may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the chat template cannot render a user's turn: {reason}") from error


def _response_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    prompt_ids: list[int],
    output: str | None,
    end_of_turn: bool,
) -> list[int]:
    if output is None:
        return []
    templated = bool(tokenizer.chat_template)
    response = output if templated else " " + output
    # A tokenizer that begins every text with a space of its own (SentencePiece) must not do so in
    # the middle, so the response is taken from the whole, unless a token would span the border.
    whole = _ids(tokenizer, prompt + response, special=not templated)
    border = len(prompt_ids)
    ids = whole[border:] if whole[:border] == prompt_ids else _ids(tokenizer, response)
    return [*ids, _end_id(tokenizer)] if end_of_turn else ids


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends the assistant's turn in the template, else the end of the text."""
    if tokenizer.chat_template:
        tail = _chat(tokenizer, "", PLACEHOLDER).rpartition(PLACEHOLDER)[2].strip()
        ids = _ids(tokenizer, tail)
        if len(ids) == 1 and ids[0] in tokenizer.added_tokens_decoder:
            return ids[0]
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end token; score without the end of the turn")
    return int(tokenizer.eos_token_id)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _default_length(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The tokenizer's context; tokenizers that know none say a huge number."""
    length = int(tokenizer.model_max_length)
    return length if length < 1_000_000 else None


def _fit(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    mask: list[bool],
    limit: int,
    response: int,
) -> tuple[str, list[int], list[bool]]:
    """The prompt with its profile cut so that it fits, tokenised as in :func:`_tokenize`."""
    _, bare, _ = _tokenize(tokenizer, build_prompt(without_profile(example)))
    named = f"example {example.id!r}"
    if response >= limit:
        raise DataError(
            f"{named}: the response alone ({response} tokens) is longer than the context ({limit})"
        )
    if len(bare) > limit:
        raise DataError(
            f"{named}: the input alone ({len(bare)} tokens) is longer than the context ({limit})"
        )
    if len(bare) + response > limit:
        raise DataError(
            f"{named}: input ({len(bare)} tokens) and response ({response} tokens) together are "
            f"longer than the context ({limit})"
        )

    count, cut = _measures(tokenizer, special=False)
    room = limit - response
    budget = room - (len(mask) - sum(mask))
    while True:
        short = shorten(example, budget, count=count, cut=cut)
        text, ids, cut_mask = _tokenize(tokenizer, build_prompt(short))
        if len(ids) <= room:
            return text, ids, cut_mask
        # Tokens may split differently at the joints than they were counted.
        budget -= len(ids) - room
