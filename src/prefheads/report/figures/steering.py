"""Figures of what steering is worth: in calibration, on test users, and on benchmark tasks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.headsets import percent
from prefheads.calibration.validate import Validation
from prefheads.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    chart,
    forest,
    handles_of,
    intervals,
    legend_below,
    line_style,
    log_ticks,
    panels,
    symmetric_scale,
)
from prefheads.report.statistics.evaluated import NLL, NOTHING, Difference, Evaluation, estimate
from prefheads.report.statistics.paper_form import CHOICES, Point
from prefheads.report.statistics.sweeps import (
    Sweep,
    changes,
    control,
    form_name,
    form_of,
    head_set,
)
from prefheads.stats import Estimate

CHANGE = "change of NLL, nats a token (below 0 helps)"

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def calibration_curves(calibration: Calibration) -> Figure:
    """Change of held-out NLL against gamma: a panel a form of steering, a line a head set.

    Bars are 95 % intervals over users; a ring marks the setting that was chosen.
    """
    tried = changes(calibration)
    forms = list(dict.fromkeys(form_of(s) for s, _ in tried))
    sets = list(dict.fromkeys(s.heads for s, _ in tried))
    columns = min(2, max(1, len(forms)))
    rows = max(1, -(-len(forms) // columns))
    height = 1.0 + 0.17 * -(-len(sets) // 2) + 1.95 * rows
    with chart(height, "Change of NLL on calibration users") as figure:
        grid = panels(figure, rows, columns).ravel()
        for axes, form in zip(grid, forms, strict=False):
            for i, name in enumerate(sets):
                own = [(s.gamma, e) for s, e in tried if s.heads == name and form_of(s) == form]
                if own:
                    start = (0.0, Estimate(0.0, 0.0, 0.0))
                    _line(axes, sorted([start, *own], key=lambda p: p[0]), name, i)
            chosen = calibration.setting
            if not chosen.plain and form_of(chosen) == form:
                at = [chosen.gamma], [calibration.change[calibration.chosen]]
                axes.plot(*at, "o", ms=11, mfc="none", mec=INK, mew=1.6, label="_chosen")
            axes.axhline(0, color=INK, lw=0.8, label="_plain")
            axes.set_title(form_name(form))
            axes.set_xlabel("gamma")
            axes.locator_params(nbins=4)
        for axes in grid[len(forms) :]:
            axes.set_axis_off()
        figure.supylabel(CHANGE, fontsize=10)
        legend_below(figure, grid, 2)
    return figure


def size_figure(calibration: Calibration, title: str) -> Figure:
    """Change of held-out NLL against the share of heads: a row a form, a line a gamma.

    A column a ranking of the heads; bars are 95 % intervals over users.
    """
    tried = changes(calibration)
    forms = list(dict.fromkeys(form_of(s) for s, _ in tried))
    rankings = sorted({head_set(s.heads)[0] for s, _ in tried})
    with chart(0.9 + 2.2 * max(1, len(forms)), title) as figure:
        grid = panels(figure, len(forms), len(rankings), sharey="row")
        for row, form in zip(grid, forms, strict=False):
            own = [(s, e) for s, e in tried if form_of(s) == form]
            gammas = sorted({s.gamma for s, _ in own})
            for axes, ranking in zip(row, rankings, strict=True):
                ranked = [(s, e) for s, e in own if head_set(s.heads)[0] == ranking]
                if not ranked:
                    axes.set_axis_off()
                    continue
                names = sorted({s.heads for s, _ in ranked}, key=head_set)
                for i, gamma in enumerate(gammas):
                    found = {s.heads: e for s, e in ranked if s.gamma == gamma}
                    beside = 0.06 * (i - 1.5)
                    line = [(x + beside, found[n]) for x, n in enumerate(names) if n in found]
                    _line(axes, line, f"{gamma:g}", i)
                axes.axhline(0, color=INK, lw=0.8)
                axes.set_xticks(range(len(names)), [_size(name) for name in names])
                axes.set_xlim(-0.5, len(names) - 0.5)
                axes.set_title(f"{form_name(form)}\nby {ranking} PCS", fontsize=9.5)
                axes.locator_params(axis="y", nbins=5)
            # Right of the row, where no line is under it.
            place = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "title": "gamma"}
            handles = handles_of(row)
            row[-1].legend(handles.values(), handles, fontsize=8, handlelength=1.2, **place)
        figure.supylabel(CHANGE, fontsize=10)
        figure.supxlabel("share of all heads, %", fontsize=10)
    return figure


def _size(name: str) -> str:
    share = head_set(name)[1]
    return "all" if math.isnan(share) else percent(share)


def _line(axes: Any, points: Sequence[tuple[float, Estimate]], label: str, i: int) -> None:
    if points:
        where, found = zip(*points, strict=True)
        style = line_style(i) | {"fmt": "", "ms": 3.5, "lw": 1.3, "elinewidth": 0.9}
        intervals(axes, where, found, style.pop("color"), label, **style)


def paper_form_figure(points: Sequence[Point], title: str) -> Figure:
    """Change of NLL against gamma: a panel a kind of strength, a line a number of heads."""
    kinds = list(dict.fromkeys((p.schedule, p.cap) for p in points))
    shares = sorted({p.share for p in points})
    with chart(1.5 + 2.4 * len(kinds), title) as figure:
        grid = panels(figure, len(kinds), sharey=True)[:, 0]
        for axes, (schedule, cap) in zip(grid, kinds, strict=True):
            own = [p for p in points if (p.schedule, p.cap) == (schedule, cap)]
            for i, share in enumerate(shares):
                # A little apart, so that bars stand side by side.
                line = [(p.gamma * 1.025 ** (i - 2), p) for p in own if p.share == share]
                label = f"K = {percent(share)} % of heads"
                _line(axes, [(x, p.change) for x, p in line], label, i)
                for x, p in line:
                    if p.choice in CHOICES:
                        marker, label = CHOICES[p.choice]
                        ring: Any = {"ms": 12, "mfc": "none", "mec": INK, "mew": 1.5, "ls": "none"}
                        axes.plot([x], [p.change.mean], marker, label=label, **ring)
            axes.axhline(0, color=INK, lw=0.8, label="_plain")
            log_ticks(axes, sorted({p.gamma for p in own}))
            bound = "" if cap is None else f", at most {cap:g}"
            entropy = f"strength gamma x entropy of the next token{bound}"
            axes.set_title("constant strength" if schedule == "constant" else entropy)
            axes.set_xlabel("gamma")
        symmetric_scale(grid[0], [end for p in points for end in (p.change.low, p.change.high)])
        figure.supylabel(CHANGE, fontsize=10)
        handles = handles_of(grid)
        # Lines first, then whose choice the marks are.
        names = sorted(handles, key=lambda name: name in {label for _, label in CHOICES.values()})
        figure.legend([handles[n] for n in names], names, loc="outside lower center", ncols=2)
    return figure


def validation_plot(validation: Validation) -> Figure:
    """Every method's change of NLL on test users, and of specificity, with 95 % intervals.

    Plain decoding is the line at 0. A change of NLL helps if below 0; a change of specificity
    above 0 means that the own profile is used more than another user's.
    """
    rows = validation.rows()[1:]
    names = [textwrap.fill(row.method, 18) for row in rows]
    lines = sum(max(2, name.count("\n") + 1) for name in names)
    with chart(1.5 + 0.24 * max(2, lines), "Validation on test users") as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, found in (
            (left, [row.change for row in rows]),
            (right, [row.specificity_change for row in rows]),
        ):
            axes.axvline(0, color=INK, lw=0.8, label="_plain")
            sure = [e.excludes_zero for e in found]
            forest(axes, found, [BLUE if s else GREY for s in sure], [not s for s in sure])
            ends = [end for e in found for end in (e.low, e.high)]
            if not symmetric_scale(axes, ends, which="x"):
                axes.locator_params(axis="x", nbins=4)
        left.set_yticks(range(len(rows)), names)
        left.invert_yaxis()
        left.set_title("change of NLL")
        left.set_xlabel("nats a token\n← helps")
        right.set_title("change of specificity")
        right.set_xlabel("nats a token\nmore personal →")
    return figure


def sweep_figure(found: Evaluation, sweep: Sweep, title: str) -> Figure:
    """A row a task: its first metric of texts, and the change of NLL, against the option."""
    shown = [(t, m) for t in found.tasks for m in _two(found.metrics(t))]
    columns = 2 if len(shown) > 1 else 1
    rows = max(1, -(-len(shown) // columns))
    where = np.arange(len(sweep.values), dtype=np.float64)
    numeric = isinstance(sweep.values[0], int | float)
    with chart(0.8 + 2.3 * rows, title) as figure:
        grid = panels(figure, rows, columns).ravel()
        for axes, (task, metric) in zip(grid, shown, strict=False):
            cells = [found.cell(task, m.name, metric) for m in sweep.methods]
            known = [i for i, cell in enumerate(cells) if cell is not None]
            values = [estimate(cell) for cell in cells if cell is not None]
            intervals(axes, where[known], values, BLUE, sweep.kind, fmt="o-" if numeric else "o")
            randoms = [control(found, m, task, metric) for m in sweep.methods]
            drawn = [(w + 0.12, r) for w, r in zip(where, randoms, strict=True) if r is not None]
            if drawn:
                places, controls = zip(*drawn, strict=True)
                intervals(axes, places, controls, GREY, "random control", fmt="s")
            plain = found.cell(task, found.methods[0].name, metric)
            if plain is not None:
                axes.axhline(plain.value, color=INK, lw=1, ls=":", label=plain.method)
            axes.set_title(f"{task}: {metric}")
            axes.set_xticks(where, [f"{v:g}" if numeric else str(v) for v in sweep.values])
            axes.set_xlim(-0.5, len(where) - 0.5)
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        for axes in grid[: len(shown)][-columns:]:
            axes.set_xlabel(sweep.option)
        legend_below(figure, grid, 3)
    return figure


def _two(metrics: Sequence[str]) -> list[str]:
    texts = [m for m in metrics if m != NLL][:1]
    return texts + [m for m in metrics if m == NLL]


def difference_figure(found: Sequence[Difference], title: str, axis: str) -> Figure:
    """Differences of two methods by task and metric, turned so that right of 0 the first is better.

    Metrics of texts and nats have a panel each. A point without a bar has no interval.
    """
    several = len({d.names for d in found}) > 1
    height = 0.5 if several else 0.36
    groups = [[d for d in found if (d.metric == NLL) == nats] for nats in (False, True)]
    groups = [group for group in groups if group]
    with chart(0.8 + 0.9 * len(groups) + height * max(2, len(found)), title) as figure:
        room = {"height_ratios": [len(group) + 0.5 for group in groups]}
        grid = panels(figure, len(groups), gridspec_kw=room)[:, 0]
        for axes, group in zip(grid, groups, strict=False):
            axes.axvline(0, color=INK, lw=0.8)
            turned = [d.better for d in group]
            sure = [e.excludes_zero for e in turned]
            good = [GREEN if e.mean > 0 else ORANGE for e in turned]
            colours = [c if s else GREY for c, s in zip(good, sure, strict=True)]
            forest(axes, turned, colours, [not s for s in sure])
            far = [abs(x) for e in turned for x in (e.mean, e.low, e.high) if math.isfinite(x)]
            if max(far, default=0.0) < NOTHING:
                axes.set_xlim(-0.01, 0.01)  # rounding is not to fill the panel
            axes.locator_params(axis="x", nbins=5)
            named = [f"{d.task}: {d.metric}" for d in group]
            other = [f"\n- {d.names[1]}" if several else "" for d in group]
            labels = [a + b for a, b in zip(named, other, strict=True)]
            axes.set_yticks(range(len(group)), labels)
            axes.set_ylim(len(group) - 0.5, -0.5)
            unit = "nats a token" if group[0].metric == NLL else "of the metric"
            axes.set_xlabel(f"{axis} ({unit})")
    return figure
