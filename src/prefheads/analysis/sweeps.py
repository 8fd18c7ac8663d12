"""Quality against one option at a time (Fig. 6, Fig. 8): from calibration, and from evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefheads.analysis.charts import BLUE, GREEN, INK, ORANGE, chart, intervals
from prefheads.analysis.evaluated import NLL, Difference, Evaluation, estimate
from prefheads.analysis.plots import COLOURS, GREY, MARKERS
from prefheads.calibrate import Calibration
from prefheads.evaluation.methods import CONTROLS, Method
from prefheads.headsets import HeadSet
from prefheads.setting import Setting, percent
from prefheads.stats import Estimate

Form = tuple[str, str, float]  # mode, target, suppression


def head_set(name: str) -> tuple[str, float]:
    """How heads of a calibrated set were ranked, and their share: of "top 4% by head PCS"."""
    found = HeadSet.parse(name)
    return (name, math.nan) if found is None else (found.target, found.share)


def calibration_rows(calibration: Calibration) -> list[dict[str, Any]]:
    """A line a setting that calibration tried; changes of NLL with standard errors over users."""
    specific = calibration.specificity
    rows = []
    for i, s in enumerate(calibration.settings):
        ranked, share = head_set(s.heads)
        rows.append(
            {
                "heads": s.heads,
                "ranked_by": ranked,
                "share_of_heads": share,
                "mode": s.mode,
                "target": s.target,
                "gamma": s.gamma,
                "suppression": s.suppression,
                "change_of_nll": calibration.change[i],
                "stderr": calibration.stderr[i],
                "divergence": calibration.divergence[i],
                "specificity": math.nan if specific is None else specific[i],
                "chosen": i == calibration.chosen,
                "users": calibration.n_users,
            }
        )
    return rows


def _form(setting: Setting) -> Form:
    return setting.mode, setting.target, setting.suppression


def size_figure(calibration: Calibration, title: str) -> Any:
    """Change of held-out NLL against the share of heads: a panel a form, a line a gamma.

    Heads ranked either way stand side by side; bars are one standard error over users.
    """
    steered = [s for s in calibration.settings if not s.plain]
    forms = list(dict.fromkeys(map(_form, steered)))
    sets = sorted({s.heads for s in steered}, key=head_set)
    columns = 2
    rows = max(1, -(-len(forms) // columns))
    with chart(0.9 + 2.1 * rows, title) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, form in zip(grid, forms, strict=False):
            mode, target, suppression = form
            faint = f" ({suppression:g})" if suppression != 1 else ""
            axes.set_title(f"{mode}{faint}, {target}")
            gammas = sorted({s.gamma for s in steered if _form(s) == form})
            for i, gamma in enumerate(gammas):
                _size_line(axes, calibration, form, gamma, sets, i)
            axes.axhline(0, color=INK, lw=0.8)
            axes.set_xticks(range(len(sets)), [_short(name) for name in sets])
            axes.legend(fontsize=8, handlelength=1.2, labelspacing=0.2)
        for axes in grid[len(forms) :]:
            axes.set_axis_off()
        figure.supylabel("change of NLL, nats a token (below 0 helps)", fontsize=10)
        figure.supxlabel("share of all heads, and the PCS that ranks them", fontsize=10)
    return figure


def _size_line(
    axes: Any, calibration: Calibration, form: Form, gamma: float, sets: Sequence[str], i: int
) -> None:
    places = {
        (s.heads, s.gamma): j
        for j, s in enumerate(calibration.settings)
        if not s.plain and _form(s) == form
    }
    offset = 0.06 * (i - 1.5)
    by_ranking: dict[str, list[tuple[float, float, float]]] = {}
    for x, name in enumerate(sets):
        if (j := places.get((name, gamma))) is not None:
            point = (x + offset, calibration.change[j], calibration.stderr[j])
            by_ranking.setdefault(head_set(name)[0], []).append(point)
    options = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
    for part, points in enumerate(by_ranking.values()):  # lines do not cross between rankings
        where, change, error = zip(*points, strict=True)
        label = f"gamma {gamma:g}" if part == 0 else None
        axes.errorbar(where, change, error, label=label, ms=3.5, lw=1.2, **options)


def _short(name: str) -> str:
    ranked, share = head_set(name)
    return name if math.isnan(share) else f"{percent(share)} %\n{ranked}"


@dataclass(frozen=True)
class Sweep:
    """Methods that differ in one option only.

    Attributes:
        kind: Of the methods.
        option: What they differ in.
        fixed: The other options that are not the usual ones, as typed.
        values: Of the option, in order.
        methods: One a value.
    """

    kind: str
    option: str
    fixed: str
    values: tuple[Any, ...]
    methods: tuple[Method, ...]

    @property
    def name(self) -> str:
        """For titles and files."""
        return f"{self.kind}{f' ({self.fixed})' if self.fixed else ''}: {self.option}"


def find_sweeps(methods: Sequence[Method]) -> list[Sweep]:
    """All sets of methods of one kind that differ in one option only."""
    groups: dict[tuple[str, str, str], dict[Any, Method]] = {}
    for method in methods:
        if method.kind in CONTROLS:
            continue
        for option in method.options:
            rest = [f"{k}={v}" for k, v in sorted(method.options.items()) if k != option]
            key = (method.kind, option, " ".join(rest))
            groups.setdefault(key, {})[method.options[option]] = method
    found = []
    for (kind, option, _), by_value in groups.items():
        if len(by_value) < 2:
            continue
        numeric = all(isinstance(v, int | float) for v in by_value)
        values = sorted(by_value) if numeric else list(by_value)
        usual = Method.parse(kind).options
        some = by_value[values[0]].options
        fixed = " ".join(f"{k}={v}" for k, v in some.items() if k != option and v != usual.get(k))
        chosen = tuple(by_value[v] for v in values)
        found.append(Sweep(kind, option, fixed, tuple(values), chosen))
    return found


def sweep_rows(found: Evaluation, sweep: Sweep) -> list[dict[str, Any]]:
    """A line a task, metric and value; the control is the mean of random heads, if there are."""
    rows = []
    for task in found.tasks:
        for metric in found.metrics(task):
            for value, method in zip(sweep.values, sweep.methods, strict=True):
                cell = found.cell(task, method.name, metric)
                if cell is None:
                    continue
                control = _control(found, method, task, metric)
                plain = found.cell(task, found.methods[0].name, metric)
                rows.append(
                    {
                        "task": task,
                        "metric": metric,
                        "method": method.name,
                        "option": sweep.option,
                        "option_value": value,
                        "value": cell.value,
                        "low": cell.low,
                        "high": cell.high,
                        "p_against_baseline": cell.p,
                        "baseline": math.nan if plain is None else plain.value,
                        "random_control": math.nan if control is None else control.mean,
                        "random_low": math.nan if control is None else control.low,
                        "random_high": math.nan if control is None else control.high,
                        "samples": cell.n,
                    }
                )
    return rows


def _control(found: Evaluation, method: Method, task: str, metric: str) -> Estimate | None:
    """Mean over the random controls of a method, and the mean of their intervals' ends."""
    cells = [found.cell(task, m.name, metric) for m in found.controls(method)]
    ends = [(c.value, c.low, c.high) for c in cells if c is not None]
    return Estimate(*np.mean(ends, axis=0).tolist()) if ends else None


def sweep_figure(found: Evaluation, sweep: Sweep, title: str) -> Any:
    """A row a task: its first metric of texts, and the change of NLL, against the option."""
    panels = [(t, m) for t in found.tasks for m in _two(found.metrics(t))]
    columns = 2 if len(panels) > 1 else 1
    rows = max(1, -(-len(panels) // columns))
    where = np.arange(len(sweep.values), dtype=np.float64)
    with chart(0.8 + 2.3 * rows, title) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (task, metric) in zip(grid, panels, strict=False):
            cells = [found.cell(task, m.name, metric) for m in sweep.methods]
            known = [i for i, cell in enumerate(cells) if cell is not None]
            shown = [estimate(cell) for cell in cells if cell is not None]
            numeric = isinstance(sweep.values[0], int | float)
            intervals(axes, where[known], shown, BLUE, sweep.kind, fmt="o-" if numeric else "o")
            randoms = [_control(found, m, task, metric) for m in sweep.methods]
            drawn = [(w + 0.12, r) for w, r in zip(where, randoms, strict=True) if r is not None]
            if drawn:
                places, values = zip(*drawn, strict=True)
                intervals(axes, places, values, GREY, "random control", fmt="s")
            plain = found.cell(task, found.methods[0].name, metric)
            if plain is not None:
                axes.axhline(plain.value, color=INK, lw=1, ls=":", label=plain.method)
            axes.set_title(f"{task}: {metric}")
            axes.set_xticks(where, [f"{v:g}" if numeric else str(v) for v in sweep.values])
            axes.set_xlim(-0.5, len(where) - 0.5)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[: len(panels)][-columns:]:
            axes.set_xlabel(sweep.option)
        handles = {
            label: handle
            for axes in grid
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    return figure


def _two(metrics: Sequence[str]) -> list[str]:
    texts = [m for m in metrics if m != NLL][:1]
    return texts + [m for m in metrics if m == NLL]


def difference_figure(found: Sequence[Difference], title: str, axis: str) -> Any:
    """Differences of two methods by task and metric, turned so that right of 0 the first is better.

    A point without a bar has no interval.
    """
    several = len({d.names for d in found}) > 1
    height = 0.5 if several else 0.36
    with chart(1.2 + height * max(2, len(found)), title) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=INK, lw=0.8)
        for y, d in enumerate(found):
            sign = 1 if d.higher_is_better else -1
            mean, ends = sign * d.paired.mean, [sign * d.paired.low, sign * d.paired.high]
            sure = d.paired.excludes_zero
            colour = (GREEN if mean > 0 else ORANGE) if sure else GREY
            axes.plot(ends, [y, y], color=colour, lw=2, solid_capstyle="butt")
            axes.plot([mean], [y], "o", color=colour, mfc=colour if sure else "none")
        axes.set_yticks(range(len(found)), [_against(d, several) for d in found])
        axes.locator_params(axis="x", nbins=5)
        axes.invert_yaxis()
        axes.set_xlabel(axis)
    return figure


def _against(found: Difference, several: bool) -> str:
    name = f"{found.task}: {found.metric}"
    return f"{name}\n- {found.names[1]}" if several else name
