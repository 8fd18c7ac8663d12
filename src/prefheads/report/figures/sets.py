"""Figures of top sets of heads: how far they overlap, and agree with themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prefheads.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    chart,
    colour_bar,
    histogram,
    intervals,
    legend_below,
    matrix,
    panels,
)
from prefheads.report.statistics.overlap import ClusterOverlap, UserOverlap
from prefheads.report.statistics.reliability import (
    GroupReliability,
    ScaleOverlap,
    UserReliability,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def overlap_figure(found: UserOverlap, title: str) -> Figure:
    """The matrix of all pairs, and how the pairs spread around their mean and chance."""
    with chart(6.6, title) as figure:
        upper, lower = figure.subplots(2, 1, height_ratios=[2.6, 1])
        off, mean = found.pairs, found.mean
        image = matrix(upper, found.values, found.users, max(0.2, float(off.max())))
        upper.set_xlabel(f"{len(found.users)} users")
        beside = {"location": "right", "aspect": 20, "shrink": 0.85, "ticks": None}
        colour_bar(figure, image, [upper], "Jaccard overlap", extend="max", **beside)
        histogram(lower, off, label="pairs of users")
        lower.axvspan(mean.low, mean.high, color=BLUE, alpha=0.25, lw=0)
        lower.axvline(mean.mean, color=BLUE, lw=1.8, label=f"mean {mean.mean:.3f}")
        chance = f"chance {found.chance:.3f}"
        lower.axvline(found.chance, color=INK, lw=1.4, ls=":", label=chance)
        lower.set_xlabel(f"overlap of the top {found.k} heads of two users")
        lower.set_ylabel("share of pairs")
        lower.set_xlim(left=-0.01)
        legend_below(figure, lower, 3)
    return figure


def cluster_figure(found: ClusterOverlap, title: str) -> Figure:
    """The clusters' overlap, and whether users overlap more within clusters than across."""
    with chart(6.4, title) as figure:
        upper, lower = figure.subplots(2, 1, height_ratios=[1.7, 1])
        matrix(upper, found.values, [str(c + 1) for c in range(len(found.names))])
        upper.set_title(", ".join(found.names), fontsize=9, wrap=True)
        upper.set_ylabel("cluster")
        histogram(lower, found.random_within, GREY, "users dealt at random")
        label = f"these clusters: {found.within:+z.3f} (p = {found.p:.2g})"
        lower.axvline(found.within, color=BLUE, lw=1.8, label=label)
        lower.set_xlabel(f"overlap of users' top {found.k} heads, within - across clusters")
        lower.set_ylabel("share of deals")
        legend_below(figure, lower)
    return figure


def reliability_figure(groups: GroupReliability, own: UserReliability | None, title: str) -> Figure:
    """Agreement against the size of a group; users' own agreement where it is known."""
    with chart(3.6, title) as figure:
        axes = figure.subplots()
        where = range(len(groups.group_sizes))
        label = "pooled sets of two groups of users"
        intervals(axes, where, groups.overlap, BLUE, label, fmt="o-")
        if own is not None:
            intervals(axes, [-0.18], [own.within], GREEN, "two halves of one user", fmt="s")
            intervals(axes, [0.18], [own.between], ORANGE, "halves of two users", fmt="D")
        axes.axhline(groups.chance, color=INK, lw=1.2, ls=":", label="chance")
        axes.set_xticks(where, [str(m) for m in groups.group_sizes])
        axes.set_xlabel("users in each group")
        axes.set_ylabel(f"overlap of the top {groups.k} heads")
        axes.set_ylim(0, 1)
        # Agreement grows with the group: at the right, room is below high ends and above low ones.
        if groups.overlap[-1].mean > 0.5:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 0.05))
        else:
            axes.legend(loc="upper right")
    return figure


def scale_figure(found: ScaleOverlap, title: str) -> Figure:
    """Both matrices, one under the other."""
    shown = {"one ranking: K / K' by construction": found.same}
    if not np.isnan(found.halves).all():
        shown["rankings by two halves of the users"] = found.halves
    with chart(0.7 + 3.4 * len(shown), title) as figure:
        grid = panels(figure, len(shown))[:, 0]
        for axes, (name, values) in zip(grid, shown.items(), strict=True):
            matrix(axes, values, [str(k) for k in found.heads])
            axes.set_title(name)
            axes.set_ylabel("K heads")
        grid[-1].set_xlabel("K' heads")
    return figure
