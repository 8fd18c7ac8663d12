"""What the figures of the analyses share: the style of `plots`, maps, matrices and intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from prefheads.report.plots import COLOURS, DIVERGING, GREY, LIGHT, blank_figure, style_of
from prefheads.stats import Array, Estimate

INK = LIGHT.ink
BLUE, ORANGE, GREEN = COLOURS[:3]
SHADES = "Blues"  # from white: for shares and overlaps, which begin at 0
LONGEST = 14  # letters of a name beside a matrix
ON_SHADES = "#101418"  # not INK, which a dark page makes light; the shades stay


@contextmanager
def chart(height: float, title: str) -> Iterator[Any]:
    """A figure of the common width and style, ``height`` inches tall."""
    with mpl.rc_context(style_of(LIGHT)):
        yield blank_figure(height, title)


def head_map(axes: Any, values: Array, limit: float, colours: Any = DIVERGING) -> Any:
    """Values ``(n_layers, n_heads)`` of all heads, layers across; a colour map from -limit on."""
    low = -limit if colours is DIVERGING else 0.0
    image = axes.imshow(
        values.T, colours, vmin=low, vmax=limit, aspect="auto", interpolation="none"
    )
    n_layers, n_heads = values.shape
    axes.set_ylabel("head")
    axes.set_yticks(range(0, n_heads, max(1, n_heads // 4)))
    axes.set_xticks(range(0, n_layers, max(1, n_layers // 10)))
    return image


def map_height(n_layers: int, n_heads: int) -> float:
    """Inches that a map of this many heads needs."""
    return 0.55 + min(2.4, 4.2 * n_heads / n_layers)


def matrix(axes: Any, values: Array, names: Sequence[str], largest: float = 1.0) -> Any:
    """A square matrix of overlaps; figures in the cells where there is room for them."""
    image = axes.imshow(values, SHADES, vmin=0, vmax=largest, interpolation="none")
    n = len(values)
    if n > 12:
        axes.set_xticks([])
        axes.set_yticks([])
        return image
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\u2026" for name in names]
    axes.set_xticks(range(n), names, rotation=90 if max(map(len, names)) > 4 else 0)
    axes.set_yticks(range(n), names)
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > 0.6 * largest else ON_SHADES
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, size=8)
    return image


def intervals(
    axes: Any, where: Any, found: Sequence[Estimate], colour: str, label: str, **style: Any
) -> None:
    """Points with their intervals, upright."""
    mean = np.array([e.mean for e in found])
    ends = np.array([[e.mean - e.low, e.high - e.mean] for e in found]).T
    options = {"fmt": "o", "ms": 4.5, "lw": 1.5, "color": colour, "label": label} | style
    axes.errorbar(where, mean, np.clip(ends, 0, None), **options)


def histogram(axes: Any, values: NDArray[Any], colour: str = GREY, label: str = "") -> None:
    """How often values occur, with the share of all as height."""
    edges = np.histogram_bin_edges(values, bins=min(20, max(5, len(np.unique(values)))))
    weights = np.full(len(values), 1 / len(values))
    axes.hist(values, bins=edges, weights=weights, color=colour, alpha=0.55, label=label)


def log_ticks(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic x axis with ticks at these values; labels that would touch are left out."""
    axes.set_xscale("log")
    where = np.log(values)
    room = 0.07 * max(float(np.ptp(where)), 1e-9)
    labels: list[str] = []
    last = -np.inf
    for value, at in zip(values, where, strict=True):
        free = at - last >= room
        labels.append(f"{value:g}" if free else "")
        last = at if free else last
    axes.set_xticks(values, labels)
    axes.minorticks_off()
    if len(values) == 1:
        axes.set_xlim(values[0] / 2, values[0] * 2)
