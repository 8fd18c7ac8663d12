"""From an example to tokens: chat template, exact span of the profile, cutting to the context."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import BoolTensor, LongTensor, Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from prefheads.data.chat import PLACEHOLDER, Span, Turn, apply_template, opening, render, tokenize
from prefheads.data.example import Example, without_profile
from prefheads.data.prompts import Count, Cut, Prompt, build_prompt, shorten, shorten_to
from prefheads.errors import DataError, ModelError

Tokenized = tuple[str, list[int], list[bool]]


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
        example_id, user_id: Of the example.
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
    """Encoded examples side by side: prompts ``(B, P)`` end, and responses ``(B, T)`` begin, in the
    same column; the masks are false at padding."""

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
    before: Sequence[Turn] = (),
    templated: bool = True,
) -> Encoded:
    """Encode an example: its prompt as the user's turn, and its output as the response to it.

    Without a chat template, the response continues the prompt after one space, and the prompt
    begins with the special tokens that the tokenizer puts before a text; those that it puts after
    one are left out. The profile's tokens are all those whose characters overlap the profile block.

    Args:
        tokenizer: A fast tokenizer (it must tell where in the text each token comes from).
        example: The example; without a profile its mask is all false.
        max_length: Tokens for prompt and response together; by default what the tokenizer says. If
            they are more, the profile is cut (:func:`prefheads.data.prompts.shorten`) with a
            ``TruncationWarning``.
        end_of_turn: Whether the response includes the token that ends it.
        before: Turns of the chat before the user's.
        templated: Whether to use the chat template, if there is one.

    Raises:
        DataError: Input and response alone do not fit, or the profile lacks a field.
        ModelError: The tokenizer is not fast, or its template changes what it is given.
    """
    _require_fast(tokenizer)
    templated = templated and bool(tokenizer.chat_template)
    tokens = partial(_tokenize, tokenizer, before, templated)
    text, ids, mask = tokens(build_prompt(example))
    if not len(ids):
        raise DataError(f'example {example.id!r}: the prompt has no tokens; fill "input"')
    response = []
    if example.output is not None:
        output = example.output if templated else " " + example.output
        response = _continuation(tokenizer, text, ids, output, special=not templated)
        response += [_end_id(tokenizer)] if end_of_turn else []
    # Tokenizers that know no context say a huge number.
    limit = int(tokenizer.model_max_length) if max_length is None else max_length
    truncated = len(ids) + len(response) > limit
    if truncated:
        text, ids, mask = _fit(tokenizer, tokens, example, mask, limit, len(response))
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
    """Cut an example's profile as the LaMP benchmark does for prompts of ``max_tokens`` tokens
    before any chat template (:func:`prefheads.data.prompts.shorten_to`), by a fast tokenizer's
    count."""
    _require_fast(tokenizer)
    count, cut = _measures(tokenizer, special=True)
    return shorten_to(example, max_tokens, count=count, cut=cut)


def pad_batch(encodeds: Sequence[Encoded], pad_id: int) -> Batch:
    """Put encoded examples, at least one, into one batch; a ``DataError`` if there is none."""
    if not encodeds:
        raise DataError("a batch needs at least one example")

    def padded(rows: Sequence[Tensor], value: int, side: str) -> Tensor:
        return pad_sequence(list(rows), True, value, padding_side=side)

    def ids_and_mask(rows: Sequence[Tensor], side: str) -> tuple[Tensor, Tensor]:
        there = [torch.ones_like(ids, dtype=torch.bool) for ids in rows]
        return padded(rows, pad_id, side), padded(there, 0, side)

    prompts = ids_and_mask([e.prompt_ids for e in encodeds], "left")
    profiles = padded([e.profile_mask for e in encodeds], 0, "left")
    return Batch(*prompts, profiles, *ids_and_mask([e.response_ids for e in encodeds], "right"))


def _require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ModelError(
            "the tokenizer must be a fast one: only those tell a token's place in the text"
        )


def _measures(tokenizer: PreTrainedTokenizerBase, special: bool) -> tuple[Count, Cut]:
    """How many tokens a text has, and its beginning of so many, with or without special tokens."""
    added = tokenizer.num_special_tokens_to_add() if special else 0

    def tokens(text: str) -> tuple[list[int], list[Span]]:
        return tokenize(tokenizer, text, [(0, len(text))], special=False)

    def count(text: str) -> int:
        return len(tokens(text)[0]) + added

    def cut(text: str, n: int) -> str:
        ends = [end for _, end in tokens(text)[1]]
        kept = max(n - added, 0)
        return text if len(ends) <= kept else text[: ends[kept - 1] if kept else 0]

    return count, cut


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, before: Sequence[Turn], templated: bool, prompt: Prompt
) -> Tokenized:
    """The rendered prompt, its token ids, and which of them belong to the profile."""
    text, contents, lost = prompt.text, [(0, len(prompt.text))], 0
    if templated:
        text, contents = render(tokenizer, [*before, Turn("user", prompt.text)])
        if not text.startswith(prompt.text.rstrip(), contents[-1][0]):  # the template strips it
            lost = len(prompt.text) - len(prompt.text.lstrip())
    start = contents[-1][0] + len(prompt.before) - lost
    end = start + len(prompt.profile)
    # A template writes its own special tokens; adding them again would double BOS.
    ids, offsets = tokenize(tokenizer, text, contents, special=not templated)
    mask = [start < end and a < end and b > start for a, b in offsets]
    return text, ids, mask


def _continuation(
    tokenizer: PreTrainedTokenizerBase, prompt: str, prompt_ids: list[int], text: str, special: bool
) -> list[int]:
    """Token ids of a text that goes on after a prompt."""
    # A tokenizer that begins every text with a space of its own (SentencePiece) must not do so in
    # the middle, so the text is taken from the whole, unless a token would span the border.
    whole = [*(opening(tokenizer) if special else ()), *_ids(tokenizer, prompt + text)]
    border = len(prompt_ids)
    return whole[border:] if whole[:border] == prompt_ids else _ids(tokenizer, text)


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends the assistant's turn in the template, else the end of the text."""
    if tokenizer.chat_template:
        turns = [Turn("user", ""), Turn("assistant", PLACEHOLDER)]
        tail = apply_template(tokenizer, turns, answer=False).rpartition(PLACEHOLDER)[2].strip()
        ids = _ids(tokenizer, tail)
        if len(ids) == 1 and ids[0] in tokenizer.added_tokens_decoder:
            return ids[0]
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end token; score without the end of the turn")
    return int(tokenizer.eos_token_id)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _fit(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Callable[[Prompt], Tokenized],
    example: Example,
    mask: list[bool],
    limit: int,
    response: int,
) -> Tokenized:
    """The prompt with its profile cut so that it fits, tokenised by ``tokens``."""
    _, bare, _ = tokens(build_prompt(without_profile(example)))
    problem = ""
    if response >= limit:
        problem = f"the response alone ({response} tokens) is"
    elif len(bare) > limit:
        problem = f"the input alone ({len(bare)} tokens) is"
    elif len(bare) + response > limit:
        problem = f"input ({len(bare)} tokens) and response ({response} tokens) together are"
    if problem:
        raise DataError(f"example {example.id!r}: {problem} longer than the context ({limit})")
    count, cut = _measures(tokenizer, special=False)
    room = limit - response
    budget = room - (len(mask) - sum(mask))
    while True:
        short = shorten(example, budget, count=count, cut=cut)
        text, ids, cut_mask = tokens(build_prompt(short))
        if len(ids) <= room:
            return text, ids, cut_mask
        # Tokens may split differently at the joints than they were counted.
        budget -= len(ids) - room
