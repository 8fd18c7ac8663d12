"""What all figures share: size, colours, the kinds of axes and marks, and how they are saved.

Figures are matplotlib's, made without its global state. Widths suit a phone; colours can be told
apart by the colour-blind and stand on light and dark paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefheads.optional import needs
from prefheads.stats import Array, Estimate
from prefheads.storage import PathLike, write_atomic

with needs("plots"):
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

WIDTH = 5.2  # inches
INK = "#1f2328"
PAPER = "#ffffff"
# Okabe and Ito's palette, which the colour-blind can tell apart; none is lost on black or white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
BLUE, ORANGE, GREEN = COLOURS[:3]
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#808890"
SHADES = "Blues"  # from white: for shares and overlaps, which begin at 0
ON_SHADES = "#101418"  # not INK, which a dark page makes light; the shades stay
LONGEST = 14  # letters of a name beside a matrix
# Zero is transparent, so that it is the paper's colour, light or dark.
DIVERGING = LinearSegmentedColormap.from_list(
    "prefheads", [(0.0, "#2b83c6ff"), (0.5, "#80808000"), (1.0, "#e06000ff")]
)
_STYLE: Any = {  # matplotlib lists every key in the type it wants
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "savefig.facecolor": "auto",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}


@contextmanager
def chart(height: float, title: str) -> Iterator[Figure]:
    """A figure of the common width and style, ``height`` inches tall."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=12, fontweight="bold")
        yield figure


def panels(figure: Figure, rows: int, columns: int = 1, **options: Any) -> Any:
    """An array of axes ``(rows, columns)``, of one row and column at least."""
    return figure.subplots(max(1, rows), max(1, columns), squeeze=False, **options)


def line_style(i: int) -> dict[str, Any]:
    """Colour, marker and dash of the i-th line of a panel; none is like another of the first 12."""
    turn = i // len(COLOURS)
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[(i + turn) % len(MARKERS)],
        "ls": "-" if turn % 2 == 0 else "--",
    }


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


def frame(axes: Any, layer: int, head: int) -> None:
    """A frame around a head of a map."""
    corner = layer - 0.5, head - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=INK, lw=1.3, clip_on=False))


def map_height(shape: tuple[int, int]) -> float:
    """Inches that a map of ``(n_layers, n_heads)`` needs."""
    return 0.55 + min(2.4, 4.2 * shape[1] / shape[0])


def colour_bar(figure: Figure, image: Any, axes: Any, label: str, **options: Any) -> None:
    """What colours mean, with ticks that do not touch; under the axes unless options differ."""
    under: Any = {"location": "bottom", "aspect": 40, "shrink": 0.8, "ticks": MaxNLocator(5)}
    bar = figure.colorbar(image, ax=list(axes), **under | options)
    bar.set_label(label)
    bar.outline.set_visible(False)


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


def forest(
    axes: Any, found: Sequence[Estimate], colours: Sequence[str], hollow: Sequence[bool] = ()
) -> None:
    """Points with their intervals, one under the other from above."""
    for y, (e, colour) in enumerate(zip(found, colours, strict=True)):
        inside = "none" if hollow and hollow[y] else colour
        axes.plot([e.low, e.high], [y, y], color=colour, lw=2, solid_capstyle="butt")
        axes.plot([e.mean], [y], "o", color=colour, ms=5, mfc=inside)


def histogram(axes: Any, values: NDArray[Any], colour: str = GREY, label: str = "") -> None:
    """How often values occur, with the share of all as height."""
    edges = np.histogram_bin_edges(values, bins=min(20, max(5, len(np.unique(values)))))
    weights = np.full(len(values), 1 / len(values))
    axes.hist(values, bins=edges, weights=weights, color=colour, alpha=0.55, label=label)


def handles_of(axes: Any) -> dict[str, Any]:
    """What legends of several axes show, each name once."""
    return {
        label: handle
        for each in np.ravel(axes)
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True)
    }


def legend_below(figure: Figure, axes: Any, columns: int = 1, **options: Any) -> None:
    """One legend for several axes, under the figure."""
    if found := handles_of(axes):
        options |= {"loc": "outside lower center", "ncols": columns}
        figure.legend(list(found.values()), list(found), **options)


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


def symmetric_scale(
    axes: Any, values: Sequence[float], linear: float = 0.1, which: Literal["x", "y"] = "y"
) -> bool:
    """An axis linear about 0 and logarithmic beyond, if values reach far; whether they do."""
    known = [v for v in values if np.isfinite(v)]
    low, high = min([*known, 0.0]), max([*known, 0.0])
    if max(-low, high) <= 5 * linear:
        return False
    powers = [linear * 10.0**i for i in range(8)]
    ticks = [-p for p in powers if p <= -low * 1.5] + [0.0] + [p for p in powers if p <= high * 1.5]
    named = [f"{t:g}".replace("-", "\u2212") for t in sorted(ticks)]
    getattr(axes, f"set_{which}scale")("symlog", linthresh=linear)
    getattr(axes, f"set_{which}ticks")(sorted(ticks), named)
    axes.minorticks_off()
    ends = 1.5 * min(low, -0.3 * linear), 1.6 * max(high, 0.3 * linear)
    getattr(axes, f"set_{which}lim")(ends)
    return True


def save(figure: Figure, path: PathLike) -> tuple[Path, Path]:
    """Write ``path`` with the endings ``.png`` (twice screen resolution) and ``.svg``.

    Raises:
        ArtifactError: They cannot be written; no half file is left.
    """
    base = Path(path).with_suffix("") if Path(path).suffix in (".png", ".svg") else Path(path)
    png, svg = (base.with_name(f"{base.name}.{ending}") for ending in ("png", "svg"))
    for target in (png, svg):
        write_atomic(target, _render(figure, target.suffix[1:], transparent=False))
    return png, svg


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an SVG element that takes its ink from the page around it.

    Args:
        name: Letters that no other figure of the page has; all ids begin with it.
        description: What a screen reader says in its place; plain text without markup.
    """
    text = _render(figure, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def _render(figure: Figure, form: str, *, transparent: bool) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prefheads"}):
        metadata = {"Date": None} if form == "svg" else None
        figure.savefig(buffer, format=form, dpi=192, transparent=transparent, metadata=metadata)
    return buffer.getvalue()
