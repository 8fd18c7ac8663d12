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
from prefheads.report.chapter import show
from prefheads.report.charts import INK, chart, log_ticks
from prefheads.report.plots import half_intervals, line_style
from prefheads.report.scales import symmetric_scale
from prefheads.report.sweeps import head_set
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
            "cap": self.cap, "change_of_nll": self.change.mean, "low": self.change.low,
            "high": self.change.high,
        }  # fmt: skip


def paper_form(calibration: Calibration) -> list[Point]:
    """The settings of the paper's form that calibration tried, by strength and number of heads."""
    bars = half_intervals(calibration).tolist()
    tried = zip(calibration.settings, calibration.change, bars, strict=True)
    found = [
        Point(
            head_set(s.heads)[1],
            s.schedule,
            s.cap,
            s.gamma,
            Estimate(change, change - half, change + half),
        )
        for s, change, half in tried
        if is_paper(s) and np.isfinite(change)
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


def paper_form_figure(points: Sequence[Point], title: str) -> Any:
    """Change of NLL against gamma: a panel a kind of strength, a line a number of heads."""
    panels = list(dict.fromkeys((p.schedule, p.cap) for p in points))
    shares = sorted({p.share for p in points})
    with chart(1.5 + 2.4 * len(panels), title) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, sharey=True)[:, 0]
        for axes, (schedule, cap) in zip(grid, panels, strict=True):
            own = [p for p in points if (p.schedule, p.cap) == (schedule, cap)]
            for i, share in enumerate(shares):
                _line(axes, [p for p in own if p.share == share], i)
            axes.axhline(0, color=INK, lw=0.8, label="_plain")
            log_ticks(axes, sorted({p.gamma for p in own}))
            axes.set_title("constant strength" if schedule == "constant" else _entropy(cap))
            axes.set_xlabel("gamma")
        symmetric_scale(grid[0], [end for p in points for end in (p.change.low, p.change.high)])
        figure.supylabel("change of NLL, nats a token (below 0 helps)", fontsize=10)
        handles = {
            label: handle
            for axes in grid
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        # Lines first, then whose choice the marks are.
        names = sorted(handles, key=lambda name: name in {label for _, label in CHOICES.values()})
        figure.legend([handles[n] for n in names], names, loc="outside lower center", ncols=2)
    return figure


def _entropy(cap: float | None) -> str:
    bound = "" if cap is None else f", at most {cap:g}"
    return f"strength gamma x entropy of the next token{bound}"


def _line(axes: Any, points: Sequence[Point], i: int) -> None:
    if not points:
        return
    places = [p.gamma * 1.025 ** (i - 2) for p in points]  # so that bars stand side by side
    bars = np.array([[p.change.mean - p.change.low, p.change.high - p.change.mean] for p in points])
    axes.errorbar(
        places, [p.change.mean for p in points], bars.T, ms=3.5, lw=1.3, elinewidth=0.9,
        label=f"K = {percent(points[0].share)} % of heads", **line_style(i),
    )  # fmt: skip
    for place, point in zip(places, points, strict=True):
        if point.choice in CHOICES:
            marker, label = CHOICES[point.choice]
            ring: dict[str, Any] = {"ms": 12, "mfc": "none", "mec": INK, "mew": 1.5, "ls": "none"}
            axes.plot([place], [point.change.mean], marker, label=label, **ring)
