"""How the report says figures: in words, in columns of tables, and in names of files."""

from __future__ import annotations

import re
from math import isnan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefheads.stats import Estimate


def show(e: Estimate, digits: int = 2, *, sign: bool = False) -> str:
    """A figure with its interval, where that is known; with its ``sign`` where it is a change."""
    form = f"{'+' if sign else ''}z.{digits}f"
    return interval(e, form) + (" (no interval)" if isnan(e.low) else "")


def interval(e: Estimate, form: str, scale: float = 1) -> str:
    """A figure with its interval in brackets, if there is one; each as ``form`` has it."""
    mean, low, high = (f"{scale * v:{form}}" for v in (e.mean, e.low, e.high))
    return known(mean) if "nan" in low else f"{mean} [{low}, {high}]"


def known(figure: str) -> str:
    """``n/a`` for what is not a number."""
    return "n/a" if "nan" in figure else figure


def counted(n: int, what: str) -> str:
    """A number of things in words."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def quoted(token: str) -> str:
    """A token so that its blanks can be seen."""
    visible = token.replace("\n", "\u23ce").replace("\t", "\u21e5")
    return f"\u201c{visible}\u201d"


def columns(e: Estimate, name: str = "value", ends: str = "") -> dict[str, float]:
    """Columns of a table: the figure, and its interval as ``{ends}low`` and ``{ends}high``."""
    return {name: e.mean, f"{ends}low": e.low, f"{ends}high": e.high}


def named(*words: str) -> str:
    """A name of files: the words that are not empty, joined."""
    return "-".join(word for word in words if word)


def slug(text: str) -> str:
    """A text as a part of a name of files."""
    return re.sub(r"[^\w.=-]+", "-", text).strip("-")
