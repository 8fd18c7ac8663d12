"""A chat as text and tokens: control tokens come from the template, never from people's words."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefheads.errors import DataError, ModelError

# Private-use characters: no template has a reason to write, strip or change them.
PLACEHOLDER = "\ue000{}\ue001"
Span = tuple[int, int]


@dataclass(frozen=True)
class Turn:
    """One turn of a chat."""

    role: str  # "system", "user" or "assistant", as the template knows them
    content: str


def apply_template(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], answer: bool = True
) -> str:
    """The chat as the tokenizer's template writes it, up to where the ``answer`` begins; a
    ``ModelError`` if it does not take these turns."""
    messages = [asdict(turn) for turn in turns]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        )
    except Exception as error:  # a template is code of its own and may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the chat template cannot render these turns: {reason}") from error


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
    """The chat as text, and where each turn's content lies in it.

    The places follow from where the template puts placeholders: looking for the contents instead
    could find them in one another or in the template. Where a template strips a content, its span
    covers what is left.

    Raises:
        ModelError: The template does not take these turns, or changes them.
    """
    marks = [PLACEHOLDER.format(i) for i in range(len(turns))]
    marked = apply_template(
        tokenizer, [Turn(t.role, mark) for t, mark in zip(turns, marks, strict=True)]
    )
    text, spans = apply_template(tokenizer, turns), []
    before, start = marked, 0
    for i, (turn, mark) in enumerate(zip(turns, marks, strict=True)):
        if marked.count(mark) != 1:
            raise ModelError(
                f"the chat template writes the {turn.role}'s turn {marked.count(mark)} times, "
                "not once"
            )
        head, _, before = before.partition(mark)
        after = before.partition(marks[i + 1])[0] if i + 1 < len(turns) else before
        start += len(head)
        content = turn.content
        for kept in (content, content.strip(), content.lstrip(), content.rstrip()):
            end = start + len(kept)
            last = i + 1 < len(turns) or len(text) == end + len(after)
            if text.startswith(kept + after, start) and last:
                break
        else:
            raise ModelError(
                f"the chat template changes the {turn.role}'s text, so the profile cannot be "
                "located"
            )
        spans.append((start, end))
        start = end
    return text, spans


def tokenize(
    tokenizer: PreTrainedTokenizerBase, text: str, contents: Sequence[Span], special: bool
) -> tuple[list[int], list[Span]]:
    """Token ids of a text and where each lies in it; what people wrote holds no control tokens.

    A control token that somebody spelled out is cut in two before the tokenizer sees it, so it
    stays the letters that it is.

    Args:
        contents: Spans of what people wrote, ascending.
        special: Whether to begin with what the tokenizer puts before a text (:func:`opening`).

    Raises:
        DataError: A content becomes a control token all the same.
    """
    control, spelled = _control(tokenizer)
    cuts: list[int] = []
    if control:
        cuts = [match.start() + 1 for a, b in contents for match in spelled.finditer(text, a, b)]
    ids = opening(tokenizer) if special else []
    offsets: list[Span] = [(0, 0)] * len(ids)
    for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
        encoding = tokenizer(
            text[a:b], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids += encoding["input_ids"]
        offsets += [(start + a, end + a) for start, end in encoding["offset_mapping"]]
    if cuts and any(
        id in control and start < b and end > a
        for id, (start, end) in zip(ids, offsets, strict=True)
        for a, b in contents
    ):
        raise DataError("the text spells a control token of the tokenizer; take it out")
    return ids, offsets


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text.

    Some put one after it, too, which says that the text is over: no place for a response.
    """
    known = (token.content for token in tokenizer.added_tokens_decoder.values())
    encoding = tokenizer(next(known, "a"), return_special_tokens_mask=True, verbose=False)
    special = encoding["special_tokens_mask"]
    return list(encoding["input_ids"][: special.index(0) if 0 in special else 0])


def _control(tokenizer: PreTrainedTokenizerBase) -> tuple[frozenset[int], re.Pattern[str]]:
    """Ids of the tokenizer's control tokens, and a pattern that matches before each of them."""
    size, *known = _known.get(tokenizer, (-1,))
    if size != len(tokenizer):
        found = {
            id: token.content
            for id, token in tokenizer.added_tokens_decoder.items()
            if len(token.content.strip()) > 1 and id != tokenizer.unk_token_id
        }
        # Looking ahead finds those that overlap, too.
        spelled = re.compile(f"(?={'|'.join(map(re.escape, found.values()))})")
        known = [frozenset(found), spelled]
        _known[tokenizer] = (len(tokenizer), *known)
    return known[0], known[1]


_known: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, ...]] = (
    weakref.WeakKeyDictionary()
)
