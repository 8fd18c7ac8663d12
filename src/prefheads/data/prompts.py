"""Prompts: an example in the form of its task, and its profile cut to a length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prefheads.data.example import Example, without_profile
from prefheads.data.task import require_fields, task_of
from prefheads.errors import DataError

Count = Callable[[str], int]
Cut = Callable[[str, int], str]

JOINER = ", and "
LEAST_TEXT = 8
"""Tokens of its text below which an item says too little to be worth its frame."""


@dataclass(frozen=True)
class Prompt:
    """A prompt in three parts; ``profile`` is one block without whitespace at its ends."""

    before: str
    profile: str
    after: str

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.before + self.profile + self.after


def build_prompt(example: Example) -> Prompt:
    """The prompt of an example in the form of its task; without a profile, the input alone. A
    ``DataError`` if an item lacks a field, or the input has no place for the profile."""
    if not example.profile:
        return Prompt("", "", example.input)
    form, where = task_of(example.task), f"example {example.id!r}"
    require_fields(example.profile, form.fields, where)
    before, after = "", form.closing + example.input
    if form.inside is not None:
        head, word, after = example.input.partition(form.inside)
        if not word:
            raise DataError(
                f'{where}: the input has no "{form.inside}" for the profile to stand after'
            )
        before = head + word + JOINER
    block = JOINER.join(form.item.format_map(item) for item in example.profile)
    inner = block.strip()
    start = block.index(inner)
    return Prompt(before + block[:start], inner, block[start + len(inner) :] + after)


def shorten(example: Example, budget: int, *, count: Count, cut: Cut) -> Example:
    """Cut the profile to a number of tokens; the input is never touched.

    The budget is split evenly over the items, and what an item leaves unused goes to the next one.
    Only an item's long text is cut. Where that would leave an item less than ``LEAST_TEXT`` tokens
    of it, the last (least relevant) item is dropped and the budget split anew.

    Args:
        budget: Tokens that the profile block may take.
        count: Number of tokens of a text.
        cut: ``cut(text, n)`` is the beginning of the text, at most ``n`` tokens long.

    Raises:
        DataError: Not even one item fits.
    """
    form, lengths = task_of(example.task), _lengths(example, count)
    frames = [count(form.item.format_map({**item, form.long: ""})) for item in example.profile]
    joiner = count(JOINER)
    for kept in range(len(frames), 0, -1):
        share = (budget - joiner * (kept - 1)) // kept
        rooms = _rooms(share, frames[:kept], lengths[:kept], LEAST_TEXT)
        if rooms is not None:
            return _cut_texts(example, rooms, cut)
    raise DataError(
        f"example {example.id!r}: no profile item fits into the {max(budget, 0)} tokens left for "
        "the profile; allow a longer context or shorten the input"
    )


def shorten_to(example: Example, max_tokens: int, *, count: Count, cut: Cut) -> Example:
    """Cut the profile by the rule of the LaMP benchmark for prompts of ``max_tokens`` tokens.

    The input is granted its own length, at most 0.6 of the tokens (it is not cut, so a longer one
    makes a longer prompt), and the items share the rest as in :func:`shorten`: with two tokens for
    a joiner, and no item dropped. Where an item would get less than an empty text needs, the 0.6
    falls by 0.1.

    Args:
        max_tokens: Tokens of the whole prompt, before any chat template.
        count, cut: As in :func:`shorten`, with the tokens that the tokenizer adds to every text.

    Returns:
        The example with its items cut; without a profile if no factor leaves room for it.

    Raises:
        DataError: ``max_tokens`` below 1, or an item without a needed field.
    """
    if max_tokens < 1:
        raise DataError(f"a prompt needs at least one token, not {max_tokens}")
    n = len(example.profile)
    if not n:
        return example
    form, lengths = task_of(example.task), _lengths(example, count)
    frame = form.frame or form.item  # tokens that the benchmark reckons besides the long text
    frames = [
        frame if isinstance(frame, int) else count(frame.format_map({**item, form.long: " "}))
        for item in example.profile
    ]
    fixed = 2 * (n - 1) + (1 if form.closing else 0) + (count(form.counted) if form.counted else 0)
    input_tokens = count(example.input)
    factor = 0.6
    while factor >= 0:
        rest = max_tokens - min(input_tokens, int(factor * max_tokens))
        rooms = _rooms((rest - fixed) // n, frames, lengths, count(""))
        if rooms is not None:
            return _cut_texts(example, rooms, cut)
        factor -= 0.1
    return without_profile(example)


def _lengths(example: Example, count: Count) -> list[int]:
    """Tokens of the long text of each item."""
    form = task_of(example.task)
    require_fields(example.profile, form.fields, f"example {example.id!r}")
    return [count(item[form.long]) for item in example.profile]


def _rooms(share: int, frames: list[int], lengths: list[int], least: int) -> list[int] | None:
    """Tokens for the long text of each item, or ``None`` if an item gets too few."""
    rooms, unused = [], 0
    for frame, length in zip(frames, lengths, strict=True):
        room = share + unused - frame
        if room < min(length, least):
            return None
        rooms.append(room)
        unused = room - min(room, length)
    return rooms


def _cut_texts(example: Example, rooms: list[int], cut: Cut) -> Example:
    """The first items of the profile, each with its long text cut to its room."""
    long = task_of(example.task).long
    return example.with_profile(
        {**item, long: cut(item[long], room)}
        for item, room in zip(example.profile, rooms, strict=False)
    )
