"""The head sets and settings that calibration tries by default."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, get_args

from prefheads.steering.setting import PLAIN, Setting
from prefheads.types import Mode, Schedule, Target

SIZES = (0.04, 0.08)
"""Shares of all heads that all forms of steering are tried with."""
CURVE = (0.01, 0.02, 0.04, 0.08, 0.16)
"""Shares that the paper's form is tried with: the paper gives neither K nor gamma."""
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


def percent(share: float) -> str:
    """A share of the heads in percent, never rounded, as head sets are named: 4, 1.5 or 0.5."""
    return f"{100 * share:g}"


def head_sets(targets: Sequence[Target] = ("head", "profile")) -> list[HeadSet]:
    """The head sets that fitting tries, those that all forms are tried with first."""
    return list(dict.fromkeys([*_sized(targets), *_curve(targets)]))


def candidates(targets: Sequence[Target] = ("head", "profile")) -> tuple[Setting, ...]:
    """The settings that fitting tries: plain, all forms, and the paper's over K and gamma."""
    of_paper = (s for heads in _curve(targets) for s in paper_form(heads.name))
    return tuple(dict.fromkeys([*grid([heads.name for heads in _sized(targets)]), *of_paper]))


def _sized(targets: Sequence[Target]) -> list[HeadSet]:
    return [HeadSet(target, share) for target in targets for share in SIZES]


def _curve(targets: Sequence[Target]) -> list[HeadSet]:
    return [HeadSet("head", share) for share in CURVE if "head" in targets]


def grid(head_sets: Sequence[str]) -> tuple[Setting, ...]:
    """Plain, then all forms of steering with each head set."""
    forms: list[tuple[Mode, Target, float, float]] = [
        *(("contrast", "head", g, 1.0) for g in (0.1, 0.25, 0.5, 1.0)),
        *(("contrast", "head", g, 0.1) for g in (0.5, 1.0, 2.5)),
        *(("contrast", "profile", g, 1.0) for g in (0.5, 1.0, 2.0)),
        *(("amplify", "head", g, 1.0) for g in (0.1, 0.25, 0.5)),
        *(("amplify", "profile", g, 1.0) for g in (0.5, 1.0, 2.0, 3.0)),
    ]
    steered = itertools.product(head_sets, forms)
    return PLAIN, *(Setting(heads, m, t, g, s) for heads, (m, t, g, s) in steered)


def paper_form(heads: str) -> tuple[Setting, ...]:
    """The paper's form of steering (Eq. 8) with a head set, from weak to strong.

    The heads are removed. Gamma is constant, or multiplied by the entropy of the next token, as in
    the authors' code.
    """
    return tuple(
        Setting(heads, "contrast", "head", gamma, 1.0, schedule)
        for schedule in get_args(Schedule)
        for gamma in (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
    )
