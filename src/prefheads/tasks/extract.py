"""Taking the answer out of chatty output: a step of its own, never part of the strict metrics.

Report a strict score and an extracted one side by side, with how many outputs this changed and for
how many it found nothing.
"""

from __future__ import annotations

import re

from prefheads.tasks.lamp import task_name
from prefheads.tasks.metrics import LABELS, RATING

_CANDIDATE = re.compile(r"\[([12])\]")

# The leftmost match wins, so "dark comedy" is not read as "comedy"; "non-violence" is no tag.
_TAGS = re.compile(
    rf"(?<![\w-])(?:{'|'.join(re.escape(tag) for tag in LABELS['LaMP-2'])})(?!\w)", re.IGNORECASE
)

_WORDS = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_SCALE = re.compile(
    r"\b(?:1|one) *(?:-|–|to|and) *(?:5|five)\b|(?:/|\bout of) *(?:5|five)\b",  # noqa: RUF001
    re.IGNORECASE,
)
_DIGIT = re.compile(r"(?<![\w.,-])([1-5])(?:\.0+)?(?![\w-]|[.,]\d)")
_NUMBER_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)

_KIND = (
    r"(?:(?:e-?mail +)?subject(?: +line)?|title|headline|tweet|paraphrase|abstract|review|post"
    r"|version|answer|output|response)"
)
_ASSENT = r"(?:sure|certainly|of course|absolutely)\b *[!.,]* *"
_OPENING = re.compile(
    r"\s*(?:"
    rf"{_ASSENT}\n"  # Sure!
    rf"|(?:{_ASSENT})?here(?: is| are|['’]s)\b[^:\n]*\b{_KIND}s?\b[^:\n]*:"  # noqa: RUF001
    rf"|[#*_ ]*{_KIND}[*_ ]*:[*_]*"  # **Title:**
    r")",
    re.IGNORECASE,
)
_PAIRS = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "**": "**", "*": "*", "`": "`"}  # noqa: RUF001


def extract(task: str | None, text: str) -> str | None:
    """The answer within a text, in the form that the metrics of the task take.

    - LaMP-1: ``[1]`` or ``[2]``, if exactly one of them is mentioned.
    - LaMP-2: the first tag mentioned: what follows an answer is its explanation.
    - LaMP-3: the first number 1 to 5, else the first of the words one to five; a scale that is
      mentioned ("out of 5", "from 1 to 5") is no rating.
    - Others: the text without announcements ("Here is a title:", "Title:") and wrapping quotes; of
      LaMP-4 to 7, whose outputs have one line, its first line.

    Returns:
        The answer, or ``None`` if there is none.
    """
    name = task_name(task) if task else None
    if name == "LaMP-1":
        found = set(_CANDIDATE.findall(text))
        return f"[{found.pop()}]" if len(found) == 1 else None
    if name == "LaMP-2":
        tag = _TAGS.search(text)
        return tag[0].lower() if tag else None
    if name == RATING:
        return _rating(text)
    return _text(text, one_line=name is not None and name.startswith("LaMP-"))


def _rating(text: str) -> str | None:
    text = _SCALE.sub(" ", text)
    if digit := _DIGIT.search(text):
        return digit[1]
    word = _NUMBER_WORD.search(text)
    return _WORDS[word[1].lower()] if word else None


def _text(text: str, one_line: bool) -> str | None:
    while opening := _OPENING.match(text):
        text = text[opening.end() :]
    text = text.strip()
    if one_line:
        text = text.partition("\n")[0].strip()
    return _unwrapped(text) or None


def _unwrapped(text: str) -> str:
    for left, right in _PAIRS.items():
        inner = text[len(left) : -len(right)]
        wrapped = text.startswith(left) and text.endswith(right) and len(text) > len(left)
        if wrapped and left not in inner and right not in inner:
            return _unwrapped(inner.strip())
    return text
