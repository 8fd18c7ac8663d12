"""A way to steer, as one value: what calibration chooses between and evaluation compares."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from prefheads.errors import SteeringError
from prefheads.steering.combine import combine, entropy_strength
from prefheads.types import Mode, Schedule, Target


@dataclass(frozen=True)
class Setting:
    """One way to steer: which heads, on which target, how, and how strongly.

    Attributes:
        heads: Name of the head set. The other fields are those of :func:`prefheads.steer`.
    """

    heads: str = ""
    mode: Mode = "amplify"
    target: Target = "head"
    gamma: float = 0.0
    suppression: float = 1.0
    schedule: Schedule = "constant"
    cap: float | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.gamma < float("inf") and 0 <= self.suppression <= 1):
            raise SteeringError(f"{self}: gamma is at least 0, suppression between 0 and 1")

    @property
    def plain(self) -> bool:
        """Whether this is no steering at all."""
        return self.gamma == 0

    @property
    def of_paper(self) -> bool:
        """Whether it is of the paper's form (Eq. 8): a contrast with whole heads removed."""
        removed = self.mode == "contrast" and self.target == "head" and self.suppression == 1
        return removed and not self.plain

    def changed(self, **changes: Any) -> Setting:
        """With what is given, not None, in its place; a schedule is of contrast alone."""
        given = {name: value for name, value in changes.items() if value is not None}
        if given.get("mode", self.mode) == "amplify":
            given = {"schedule": "constant", "cap": None} | given
        return replace(self, **given)

    def gains(self, weights: Tensor) -> Tensor:
        """Gains of the changed branch for a map of weights; same shape."""
        if self.mode == "amplify":
            return 1 + self.gamma * weights
        return 1 - self.suppression * weights

    def contrasted(self, personalised: Tensor, generic: Tensor) -> Tensor:
        """Logits ``(..., vocab)`` of a contrast of two branches (Eq. 8)."""
        if self.schedule == "constant":
            return combine(personalised, generic, self.gamma)
        strength = entropy_strength(personalised, self.gamma, self.cap)
        return combine(personalised, generic, strength)

    def __str__(self) -> str:
        if self.plain:
            return "plain (no steering)"
        how = f"{self.mode} {self.target}, {self.heads}, gamma {self.gamma:g}"
        faint = self.mode == "contrast" and self.suppression != 1
        how += f", suppression {self.suppression:g}" if faint else ""
        if self.schedule == "entropy":
            how += " x entropy" + (f", at most {self.cap:g}" if self.cap is not None else "")
        return how


PLAIN = Setting()
SCHEDULES: tuple[Schedule, ...] = ("constant", "entropy")


def percent(share: float) -> str:
    """A share of the heads in percent, as sets of heads are named: 4, 1.5 or 0.5, never rounded."""
    return f"{100 * share:g}"


def grid(head_sets: Sequence[str]) -> tuple[Setting, ...]:
    """The settings tried by default: plain, then all forms of steering with each head set."""
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
    """The paper's form of steering (Eq. 8) with a head set, from weak to strong: the heads are
    removed; gamma is constant, or its authors' code's, which multiplies it by the entropy of the
    next token."""
    return tuple(
        Setting(heads, "contrast", "head", gamma, 1.0, schedule)
        for schedule in SCHEDULES
        for gamma in (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
    )
