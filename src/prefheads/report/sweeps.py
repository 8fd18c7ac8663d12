"""Quality against one option at a time (Fig. 6, Fig. 8): from calibration, and from evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.headsets import HeadSet, percent
from prefheads.evaluation.methods import Method
from prefheads.report.charts import BLUE, GREEN, INK, ORANGE, chart, intervals
from prefheads.report.evaluated import NLL, NOTHING, Difference, Evaluation, estimate
from prefheads.report.plots import (
    GREY,
    Form,
    form_name,
    form_of,
    half_intervals,
    line_style,
)
from prefheads.stats import Estimate


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
                "strength": s.schedule,
                "cap": s.cap,
                "change_of_nll": calibration.change[i],
                "stderr": calibration.stderr[i],
                "divergence": calibration.divergence[i],
                "specificity": math.nan if specific is None else specific[i],
                "chosen": i == calibration.chosen,
                "users": calibration.n_users,
            }
        )
    return rows


def size_figure(calibration: Calibration, title: str) -> Any:
    """Change of held-out NLL against the share of heads: a row a form, a line a gamma.

    A column a ranking of the heads; bars are 95 % intervals over users.
    """
    steered = [s for s in calibration.settings if not s.plain]
    forms = list(dict.fromkeys(map(form_of, steered)))
    rankings = sorted({head_set(s.heads)[0] for s in steered})
    with chart(0.9 + 2.2 * max(1, len(forms)), title) as figure:
        shape = max(1, len(forms)), max(1, len(rankings))
        grid = figure.subplots(*shape, squeeze=False, sharey="row")
        for row, form in zip(grid, forms, strict=False):
            own = [s for s in steered if form_of(s) == form]
            gammas = sorted({s.gamma for s in own})
            for axes, ranking in zip(row, rankings, strict=True):
                sets = {s.heads for s in own if head_set(s.heads)[0] == ranking}
                if not sets:
                    axes.set_axis_off()
                    continue
                names = sorted(sets, key=head_set)
                for i, gamma in enumerate(gammas):
                    _size_line(axes, calibration, form, gamma, names, i)
                axes.axhline(0, color=INK, lw=0.8)
                axes.set_xticks(range(len(names)), [_size(name) for name in names])
                axes.set_xlim(-0.5, len(names) - 0.5)
                axes.set_title(f"{form_name(form)}\nby {ranking} PCS", fontsize=9.5)
                axes.locator_params(axis="y", nbins=5)
            _gammas(row)
        figure.supylabel("change of NLL, nats a token (below 0 helps)", fontsize=10)
        figure.supxlabel("share of all heads, %", fontsize=10)
    return figure


def _gammas(row: Any) -> None:
    """What the lines of a row are, right of it, where no line is under it."""
    handles = {
        label: handle
        for axes in row
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "title": "gamma"}
    row[-1].legend(handles.values(), handles, fontsize=8, handlelength=1.2, **place)


def _size_line(
    axes: Any, calibration: Calibration, form: Form, gamma: float, sets: Sequence[str], i: int
) -> None:
    bars = half_intervals(calibration)
    places = {
        s.heads: j
        for j, s in enumerate(calibration.settings)
        if not s.plain and form_of(s) == form and s.gamma == gamma
    }
    found = [(x, places[name]) for x, name in enumerate(sets) if name in places]
    if found:
        axes.errorbar(
            [x + 0.06 * (i - 1.5) for x, _ in found],
            [calibration.change[j] for _, j in found],
            [bars[j] for _, j in found],
            label=f"{gamma:g}",
            ms=3.5,
            lw=1.2,
            **line_style(i),
        )


def _size(name: str) -> str:
    share = head_set(name)[1]
    return "all" if math.isnan(share) else percent(share)


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
        if method.is_control:
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

    Metrics of texts and nats have a panel each. A point without a bar has no interval.
    """
    several = len({d.names for d in found}) > 1
    height = 0.5 if several else 0.36
    groups = [[d for d in found if (d.metric == NLL) == nats] for nats in (False, True)]
    groups = [group for group in groups if group]
    with chart(0.8 + 0.9 * len(groups) + height * max(2, len(found)), title) as figure:
        room = {"height_ratios": [len(group) + 0.5 for group in groups]}
        panels = figure.subplots(max(1, len(groups)), 1, squeeze=False, gridspec_kw=room)[:, 0]
        for axes, group in zip(panels, groups, strict=False):
            _differences(axes, group)
            axes.set_yticks(range(len(group)), [_against(d, several) for d in group])
            axes.set_ylim(len(group) - 0.5, -0.5)
            unit = "nats a token" if group[0].metric == NLL else "of the metric"
            axes.set_xlabel(f"{axis} ({unit})")
    return figure


def _differences(axes: Any, found: Sequence[Difference]) -> None:
    axes.axvline(0, color=INK, lw=0.8)
    largest = 0.0
    for y, d in enumerate(found):
        sign = 1 if d.higher_is_better else -1
        mean, ends = sign * d.paired.mean, [sign * d.paired.low, sign * d.paired.high]
        sure = d.paired.excludes_zero
        colour = (GREEN if mean > 0 else ORANGE) if sure else GREY
        axes.plot(ends, [y, y], color=colour, lw=2, solid_capstyle="butt")
        axes.plot([mean], [y], "o", color=colour, mfc=colour if sure else "none")
        largest = max([largest, *(abs(x) for x in (mean, *ends) if math.isfinite(x))])
    if largest < NOTHING:
        axes.set_xlim(-0.01, 0.01)  # rounding is not to fill the panel
    axes.locator_params(axis="x", nbins=5)


def _against(found: Difference, several: bool) -> str:
    name = f"{found.task}: {found.metric}"
    return f"{name}\n- {found.names[1]}" if several else name
