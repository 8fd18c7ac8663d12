"""Taking the answer out of chatty output: a step of its own, never part of the strict metrics.

Report a strict score and an extracted one side by side, with how many outputs this changed and for
how many it found nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def only_one(text: str, labels: Sequence[str]) -> str | None:
    """The one label that a text mentions; none if it mentions several."""
    found = [label for label in labels if label in text]
    return found[0] if len(found) == 1 else None


def first_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text mentions first: what follows an answer is its explanation.

    The leftmost match wins, so "dark comedy" is not read as "comedy"; "non-violence" is no label.
    """
    pattern = rf"(?<![\w-])(?:{'|'.join(map(re.escape, labels))})(?!\w)"
    match = re.search(pattern, text, re.IGNORECASE)
    spelled = {label.lower(): label for label in labels}
    return spelled[match[0].lower()] if match else None


def rating(text: str) -> str | None:
    """The first number 1 to 5, else the first of the words one to five.

    A scale that is mentioned ("out of 5", "from 1 to 5") is no rating.
    """
    text = _SCALE.sub(" ", text)
    if digit := _DIGIT.search(text):
        return digit[1]
    word = _NUMBER_WORD.search(text)
    return _WORDS[word[1].lower()] if word else None


def bare_text(text: str, one_line: bool) -> str | None:
    """The text, or its first line, without announcements ("Here is a title:", "Title:") and
    wrapping quotes."""
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
