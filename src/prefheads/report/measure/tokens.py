"""A given text read token by token, plain and steered: what steering changes, and how far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.data.encoding import Encoded
from prefheads.interventions.layout import input_device, positions
from prefheads.report.measure.effects import token_text
from prefheads.steering.response import response_from


@dataclass(frozen=True)
class Token:
    """A token of a text, as the model expects it after all that comes before.

    Attributes:
        text: Its part of the text; empty where a character takes several tokens.
        plain, steered: Its probability.
        plain_rank, steered_rank: 1 for the likeliest token.
        plain_first, steered_first: The likeliest token.
    """

    text: str
    plain: float
    steered: float
    plain_rank: int
    steered_rank: int
    plain_first: str
    steered_first: str

    @property
    def changed(self) -> bool:
        """Whether steering makes another token the likeliest here."""
        return self.plain_first != self.steered_first


@dataclass(frozen=True)
class PromptTexts:
    """One prompt with its texts.

    Attributes:
        user_id: Whose profile it is.
        prompt: What was asked.
        texts: By whose they are: written plainly, written steered, and the user's own; as tokens
            where they were read.
    """

    user_id: str
    prompt: str
    texts: Mapping[str, tuple[Token, ...] | str]

    @property
    def differs(self) -> bool:
        """Whether the steered text is another one."""
        plain, steered = (
            text if isinstance(text, str) else "".join(token.text for token in text)
            for text in (self.texts["plain"], self.texts["steered"])
        )
        return plain != steered

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``dataclasses.asdict`` gives, after JSON."""
        texts = {name: tuple(Token(**t) for t in found) for name, found in data["texts"].items()}
        return cls(data["user_id"], data["prompt"], texts)


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Encoded,
    steered: Callable[[], AbstractContextManager[Any]],
) -> tuple[Token, ...]:
    """Read a response without and with steering.

    Args:
        encoded: The prompt, and the text to read as its response.
        steered: Makes the context in which the model is steered.
    """
    plain = response_logits(model, encoded)
    with steered():
        changed = response_logits(model, encoded)
    sides = [_read(logits, encoded.response_ids) for logits in (plain, changed)]
    texts = pieces(tokenizer, encoded.response_ids.tolist())
    return tuple(
        Token(text, p, q, p_rank, q_rank, *(token_text(tokenizer, i) for i in (p_first, q_first)))
        for text, (p, p_rank, p_first), (q, q_rank, q_first) in zip(texts, *sides, strict=True)
    )


@torch.no_grad()
def response_logits(model: PreTrainedModel, encoded: Encoded) -> Tensor:
    """Logits ``(T, vocab)`` of a response, under whatever steering is active; float32, on the
    CPU."""
    ids = torch.cat([encoded.prompt_ids, encoded.response_ids])[:-1]
    where = positions(model, 0, len(ids))
    with response_from(len(encoded.prompt_ids), profile_mask=encoded.profile_mask):
        out = model(
            input_ids=ids[None].to(input_device(model)),
            logits_to_keep=len(encoded.response_ids),
            use_cache=False,
            **where,
        )
    logits: Tensor = out.logits[0]
    return logits.float().cpu()


def _read(logits: Tensor, tokens: Tensor) -> list[tuple[float, int, int]]:
    """Probability and rank of each token, and the likeliest token in its place."""
    p = logits.softmax(-1)
    own = p.gather(-1, tokens[:, None])
    ranks = (p > own).sum(-1) + 1
    return list(zip(own[:, 0].tolist(), ranks.tolist(), p.argmax(-1).tolist(), strict=True))


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Each token's part of the text; joined they are the whole."""
    parts, done = [], ""
    for i in range(len(ids)):
        text = str(tokenizer.decode(list(ids[: i + 1]), clean_up_tokenization_spaces=False))
        half = text.endswith("\ufffd") and i + 1 < len(ids)  # a character's first bytes
        parts.append("" if half else text[len(done) :])
        done = done if half else text
    return parts


@dataclass(frozen=True)
class Readings:
    """Texts of some samples side by side, read token by token unless that takes too long.

    Attributes:
        method: How the steered texts were made, as typed or in words.
        setting: How heads were steered.
        differing, total: Of the run's samples, those whose steered text is another one, and all.
        traces: Of some samples, differing ones first.
    """

    method: str
    setting: str
    differing: int
    total: int
    traces: tuple[PromptTexts, ...]

    @property
    def by_token(self) -> bool:
        """Whether the texts were read, or are as they were written."""
        return not any(isinstance(text, str) for t in self.traces for text in t.texts.values())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``dataclasses.asdict`` gives, after JSON."""
        return cls(**{**data, "traces": tuple(PromptTexts.from_dict(t) for t in data["traces"])})
