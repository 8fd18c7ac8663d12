"""Figures of all heads at once: their PCS, its controls, and what else is measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.heads.weights import Head
from prefheads.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SHADES,
    chart,
    colour_bar,
    forest,
    frame,
    head_map,
    intervals,
    legend_below,
    map_height,
    panels,
)
from prefheads.report.statistics.correlation import Relation
from prefheads.report.statistics.overlap import top_sets
from prefheads.report.statistics.roles import Measure
from prefheads.report.statistics.significance import LEVEL, MIN_USERS, HeadTests
from prefheads.report.statistics.sparsity import Sparsity
from prefheads.report.statistics.transfer import Transfer
from prefheads.stats import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Dots = Mapping[str, tuple[Any, float]]  # by label: which heads have one, and how large it is
SMALL, LARGE = 2.6, 5.5


def heat_map(
    maps: Mapping[str, HeadScores],
    chosen: Sequence[HeadWeights] = (),
    *,
    title: str = "Preference Contribution Score of each head",
) -> Figure:
    """Maps of mean PCS over layers and heads, one under the other on one colour scale.

    A dot marks a head whose 95 % interval over users excludes 0, a frame a chosen one.

    Args:
        maps: Scores by title, e.g. of all users and of each cluster; maps of equal shape.
        chosen: The heads steered with, one map a panel; none are framed if empty.

    Raises:
        DataError: No maps, or of several shapes, or not one of chosen heads each.
    """
    if chosen and len(chosen) != len(maps):
        raise DataError("a heat map with chosen heads needs one map of heads each")
    found = {}
    for name, scores in maps.items():
        low, high = (end.numpy() for end in scores.interval())
        found[name] = scores.mean.numpy(), {"_significant": ((low > 0) | (high < 0), SMALL)}
    legend = "layer (dot: interval excludes 0; frame: steered with)"
    return _pcs_maps(found, title, legend, [weights.heads for weights in chosen])


def pcs_figure(tests: Mapping[str, HeadTests], title: str) -> Figure:
    """Maps of mean PCS on one colour scale; dots where the corrected test says it is not 0.

    Raises:
        DataError: No maps, or of several shapes.
    """
    maps = {}
    for name, t in tests.items():
        sure = t.holm < LEVEL
        maps[name] = t.mean, {"_fdr": (t.significant & ~sure, SMALL), "_holm": (sure, LARGE)}
    tested = any(t.n_users >= MIN_USERS for t in tests.values())
    marks = "\n(dot: not 0, false discovery rate 5 %; large: also by Holm)"
    return _pcs_maps(maps, title, "layer" + (marks if tested else ""))


def _pcs_maps(
    maps: Mapping[str, tuple[Array, Dots]],
    title: str,
    legend: str,
    framed: Sequence[Sequence[Head]] = (),
) -> Figure:
    """The scale ends at the 98th percentile, so that a few extreme heads do not hide the others."""
    shapes = {mean.shape for mean, _ in maps.values()}
    if len(shapes) != 1:
        raise DataError("maps of heads need to be of one shape")
    limit = float(np.quantile([np.abs(mean) for mean, _ in maps.values()], 0.98)) or 1e-9
    with chart(1.25 + len(maps) * map_height(shapes.pop()), title) as figure:
        grid = panels(figure, len(maps), sharex=True)[:, 0]
        for i, (axes, (name, (mean, dots))) in enumerate(zip(grid, maps.items(), strict=True)):
            image = head_map(axes, mean, limit)
            for label, (heads, size) in dots.items():
                axes.plot(*np.nonzero(heads), ".", color=INK, ms=size, label=label)
            for layer, head in framed[i] if framed else ():
                frame(axes, layer, head)
            axes.set_title(name)
        grid[-1].set_xlabel(legend)
        colour_bar(figure, image, grid, "rise of NLL when ablated, nats a token", extend="both")
    return figure


def control_figure(maps: Mapping[str, HeadWeights], title: str) -> Figure:
    """Maps of heads, one under the other."""
    shape = next(iter(maps.values())).shape
    with chart(1.1 + len(maps) * map_height(shape), title) as figure:
        grid = panels(figure, len(maps), sharex=True)[:, 0]
        for axes, (name, weights) in zip(grid, maps.items(), strict=True):
            image = head_map(axes, weights.values.double().numpy(), 1.0, SHADES)
            axes.set_title(name)
        grid[-1].set_xlabel("layer")
        colour_bar(figure, image, grid, "weight of the head")
    return figure


def sparsity_figure(found: Sparsity, title: str) -> Figure:
    """The share of the positive PCS against the number of heads, beside the controls."""
    n = len(found.share)
    heads = np.arange(1, n + 1)
    with chart(3.9, title) as figure:
        axes = figure.subplots()
        axes.plot(heads, found.share, color=BLUE, lw=1.8, label="by the same users")
        axes.fill_between(heads, found.low, found.high, color=BLUE, alpha=0.2, lw=0)
        if not np.isnan(found.held_out).all():
            label = "chosen by half of the users,\nmeasured on the others"
            axes.plot(heads, found.held_out, color=ORANGE, lw=1.8, ls="--", label=label)
            axes.fill_between(heads, found.held_low, found.held_high, color=ORANGE, alpha=0.2, lw=0)
            axes.plot(heads, found.random, color=GREY, lw=1.5, ls=":", label="random heads, there")
        ticks = sorted({1, *(max(1, round(f * n)) for f in (0.01, 0.04, 0.08, 0.16, 0.32, 1))})
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.set_xlabel(f"top heads of {n}")
        axes.set_ylabel("share of the positive PCS")
        axes.set_title(
            f"Gini {found.gini.mean:.2f} [{found.gini.low:.2f}, {found.gini.high:.2f}]; "
            f"with random signs {found.gini_null.mean:.2f}"
        )
        axes.legend(loc="best")
    return figure


def transfer_figure(found: Sequence[Transfer], title: str) -> Figure:
    """Mean PCS against the number of heads, for chosen and for random heads."""
    where = np.arange(len(found))
    with chart(3.3, title) as figure:
        axes = figure.subplots()
        intervals(axes, where, [t.chosen for t in found], BLUE, "chosen by the others", fmt="o-")
        intervals(axes, where, [t.random for t in found], GREY, "random heads", fmt="s--")
        axes.axhline(0, color=GREY, lw=0.6)
        axes.set_xticks(where, [str(t.k) for t in found])
        axes.set_xlabel("top heads")
        axes.set_ylabel("mean PCS on the user\nleft out, nats a token")
        axes.legend()
    return figure


def relation_figure(found: Relation, title: str) -> Figure:
    """Every head as a point; the top heads by either measurement stand out."""
    a, b = found.means
    top_a, top_b = (top_sets(x, found.k) for x in (a, b))
    with chart(4.4, title) as figure:
        axes = figure.subplots()
        for chosen, colour, marker, label in (
            (~top_a & ~top_b, GREY, ".", None),
            (top_a & ~top_b, BLUE, "o", "top by the one across"),
            (top_b & ~top_a, ORANGE, "s", "top by the one upright"),
            (top_a & top_b, GREEN, "D", "top by both"),
        ):
            axes.plot(a[chosen], b[chosen], marker, color=colour, ms=4.5, label=label)
        axes.axhline(0, color=GREY, lw=0.6)
        axes.axvline(0, color=GREY, lw=0.6)
        axes.set_xlabel(found.names[0])
        axes.set_ylabel(found.names[1])
        rho = found.correlation
        axes.set_title(f"rank correlation {rho.mean:.2f} [{rho.low:.2f}, {rho.high:.2f}]")
        for axis, scale, values in (("x", axes.set_xscale, a), ("y", axes.set_yscale, b)):
            near, far = (float(np.quantile(np.abs(values), q)) or 1.0 for q in (0.9, 1.0))
            scale("symlog", linthresh=near)
            tick = 10 ** np.floor(np.log10(far))  # more of them would run into each other
            axes.set(**{f"{axis}ticks": [-tick, 0, tick]})
        axes.margins(0.07)
        legend_below(figure, axes, 3, handletextpad=0.2)
    return figure


def roles_figure(names: Sequence[str], measures: Sequence[Measure], title: str) -> Figure:
    """A panel a measure, a line a head, random heads in the last one."""
    n = len(names)
    with chart(1.6 + 0.27 * (n + 1), title) as figure:
        grid = panels(figure, 1, len(measures), sharey=True)[0]
        for axes, m in zip(grid, measures, strict=True):
            forest(axes, [*m.heads, m.random], [BLUE] * n + [GREY])
            if m.level is not None:
                axes.axvline(m.level, color=INK, lw=0.8, ls=":", label="if spread evenly")
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), handlelength=1.2)
            axes.axvline(m.random.mean, color=GREY, lw=0.8)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=3)
            axes.set_xlabel(m.name)
        grid[0].set_yticks(range(n + 1), [*names, "random\nheads"])
        grid[0].set_ylabel("layer.head")
        grid[0].invert_yaxis()
    return figure
