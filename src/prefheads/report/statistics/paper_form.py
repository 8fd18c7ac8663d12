"""The paper's own form of steering, over the number of heads K and the strength gamma.

Whole heads are removed in the second branch, and the two branches contrasted (Eq. 8). The paper
gives neither K nor gamma, so one value of each would show little: a figure shows all that
calibration tried, and whose choice each number is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.headsets import percent
from prefheads.calibration.paper import GAMMA, SHARE, is_paper
from prefheads.report.statistics.sweeps import changes, head_set
from prefheads.report.wording import columns, show
from prefheads.stats import Estimate

PAPER_FORM = "The paper's form over K and gamma"
AUTHORS = (SHARE, "entropy", None, 1.0)  # share of heads, schedule, cap, gamma: the authors' code
OURS = (SHARE, "constant", None, GAMMA)  # what this project calls DPS where nothing else is said
CHOICES = {
    AUTHORS: ("o", "authors' code: 4 %, gamma 1"),
    OURS: ("s", "ours: 4 %, gamma 0.25"),
}
WHOSE = (
    "Whose choice each number is: the paper gives neither K nor gamma. 4 % of the heads is the "
    "choice in its authors' code, which takes the entropy of the next token, in nats, as the "
    "strength, without a bound: gamma 1 of the entropy panel. A constant gamma of 0.25 is ours."
)


@dataclass(frozen=True)
class Point:
    """One setting of the paper's form.

    Attributes:
        share: Of all heads that are removed, K.
        schedule, cap, gamma: The strength, as in :class:`prefheads.steering.setting.Setting`.
        change: Of the NLL against plain decoding, nats a token, with its 95 % interval over users.
    """

    share: float
    schedule: str
    cap: float | None
    gamma: float
    change: Estimate

    @property
    def choice(self) -> tuple[float, str, float | None, float]:
        """What tells settings of this form apart."""
        return self.share, self.schedule, self.cap, self.gamma

    def __str__(self) -> str:
        bound = "" if self.cap is None else f", at most {self.cap:g}"
        strength = f"{self.gamma:g} x entropy{bound}" if self.schedule == "entropy" else ""
        return f"{percent(self.share)} % of the heads, gamma {strength or f'{self.gamma:g}'}"

    def row(self) -> dict[str, Any]:
        """One line of a table."""
        return {
            "share_of_heads": self.share, "strength": self.schedule, "gamma": self.gamma,
            "cap": self.cap, **columns(self.change, "change_of_nll"),
        }  # fmt: skip


def paper_form(calibration: Calibration) -> list[Point]:
    """The settings of the paper's form that calibration tried, by strength and number of heads."""
    found = [
        Point(head_set(s.heads)[1], s.schedule, s.cap, s.gamma, change)
        for s, change in changes(calibration)
        if is_paper(s) and np.isfinite(change.mean)
    ]
    return sorted(found, key=lambda p: (p.schedule, p.cap or 0.0, p.share, p.gamma))


def told(points: Sequence[Point], calibration: Calibration) -> str:
    """What the figure shows, in words and numbers."""
    best = min(points, key=lambda p: p.change.mean)
    below = sum(p.change.high < 0 for p in points)
    own = {p.choice: p for p in points}
    choices = [
        f"{name}: " + (show(own[key].change, 3, sign=True) if key in own else "not tried here")
        for key, name in (
            (AUTHORS, "the choice in the authors' code"),
            (OURS, "4 % with gamma 0.25"),
        )
    ]
    chosen = ""
    if not calibration.setting.plain:
        change = calibration.change[calibration.chosen]
        chosen = f" Chosen among all forms: {calibration.setting}, {change:+z.3f}."
    samples = f"{calibration.n_examples} samples of {calibration.n_users} users"
    return (
        "Contrast with whole heads removed, by importance in the user's cluster (5.2), at "
        f"{len(points)} strengths and numbers of heads, on {samples}; bars are 95 % intervals over "
        f"users. Plain decoding (0) is the control. {WHOSE} Change of NLL, nats a token: "
        f"{'; '.join(choices)}. The lowest is {best}, {show(best.change, 3, sign=True)}, which as "
        f"the best of {len(points)} looks better than it is; {below} of {len(points)} intervals "
        f"lie below 0, not corrected for their number.{chosen}"
    )
