"""Prompts: the official ones of the LaMP tasks, and one generic form for everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prefheads.errors import DataError
from prefheads.examples import Example
from prefheads.tasks.lamp import require_fields, task_of

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
    """The prompt of an example in the form of its task; without a profile, the input alone.

    Raises:
        DataError: A profile item lacks a field, or the input has no place for the profile.
    """
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


def shorten(
    example: Example, budget: int, *, count: Callable[[str], int], cut: Callable[[str, int], str]
) -> Example:
    """Cut the profile to a number of tokens by the benchmark's rule; the input is never touched.

    The budget is split evenly over the items, and what an item leaves unused goes to the next one.
    Only an item's long text is cut. Where that would leave an item less than ``LEAST_TEXT`` tokens
    of it, the last (least relevant) item is dropped and the budget split anew.

    Args:
        example: An example with a profile.
        budget: Tokens that the profile block may take.
        count: Number of tokens of a text.
        cut: ``cut(text, n)`` is the beginning of the text, at most ``n`` tokens long.

    Raises:
        DataError: Not even one item fits.
    """
    form = task_of(example.task)
    require_fields(example.profile, form.fields, f"example {example.id!r}")
    frames = [count(form.item.format_map({**item, form.long: ""})) for item in example.profile]
    lengths = [count(item[form.long]) for item in example.profile]
    joiner = count(JOINER)
    for kept in range(len(frames), 0, -1):
        share = (budget - joiner * (kept - 1)) // kept
        rooms = _rooms(share, frames[:kept], lengths[:kept])
        if rooms is not None:
            return example.with_profile(
                {**item, form.long: cut(item[form.long], room)}
                for item, room in zip(example.profile, rooms, strict=False)
            )
    raise DataError(
        f"example {example.id!r}: no profile item fits into the {max(budget, 0)} tokens left for "
        "the profile; allow a longer context or shorten the input"
    )


def _rooms(share: int, frames: list[int], lengths: list[int]) -> list[int] | None:
    """Tokens for the long text of each item, or ``None`` if an item gets too few."""
    rooms, unused = [], 0
    for frame, length in zip(frames, lengths, strict=True):
        room = share + unused - frame
        if room < min(length, LEAST_TEXT):
            return None
        rooms.append(room)
        unused = room - min(room, length)
    return rooms
