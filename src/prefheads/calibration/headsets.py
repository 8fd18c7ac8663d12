"""The sets of heads that fitting tries, and what steering is tried with each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from prefheads.steering.setting import PLAIN, Setting, grid, paper_form, percent
from prefheads.types import Target

SIZES = (0.04, 0.08)
"""Shares of all heads that all forms of steering are tried with."""
CURVE = (0.01, 0.02, 0.04, 0.08, 0.16)
"""Shares that the paper's form is tried with: it says of neither K nor gamma what they are."""
_NAME = re.compile(r"top (\d+(?:\.\d+)?)% by (head|profile) PCS")


@dataclass(frozen=True)
class HeadSet:
    """Heads of highest PCS.

    Attributes:
        target: What ablation took away when they were ranked.
        share: How many of all heads they are.
    """

    target: Target
    share: float

    @property
    def name(self) -> str:
        """As settings name it."""
        return f"top {percent(self.share)}% by {self.target} PCS"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The set of that name; None if it is no such name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls("profile" if match[2] == "profile" else "head", float(match[1]) / 100)


def head_sets(targets: Sequence[Target] = ("head", "profile")) -> list[HeadSet]:
    """The sets of heads that fitting tries, those that all forms are tried with first."""
    tried = [HeadSet(target, share) for target in targets for share in SIZES]
    curve = [HeadSet("head", share) for share in CURVE if "head" in targets]
    return list(dict.fromkeys([*tried, *curve]))


def candidates(targets: Sequence[Target] = ("head", "profile")) -> tuple[Setting, ...]:
    """The settings that fitting tries: plain, all forms, and the paper's over K and gamma."""
    tried = [HeadSet(target, share).name for target in targets for share in SIZES]
    curve = [HeadSet("head", share).name for share in CURVE if "head" in targets]
    found = (*grid(tried), *(s for name in curve for s in paper_form(name)))
    return tuple(dict.fromkeys((PLAIN, *found)))
