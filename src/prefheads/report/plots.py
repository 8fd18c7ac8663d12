"""Figures of what was found: head maps, calibration curves, validation with its controls.

Each function returns a matplotlib ``Figure`` and leaves matplotlib's global state alone. Widths
suit a phone; colours can be told apart by the colour-blind and stand on light and dark paper.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.validate import Validation
from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.optional import needs
from prefheads.report.scales import symmetric_scale
from prefheads.stats import Array, Estimate
from prefheads.steering.setting import Setting
from prefheads.storage import PathLike, write_atomic

with needs("plots"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

WIDTH = 5.2  # inches


@dataclass(frozen=True)
class Theme:
    """Colours of text and of the paper under a figure."""

    ink: str
    paper: str


LIGHT = Theme("#1f2328", "#ffffff")
DARK = Theme("#e6edf3", "#0d1117")

# Okabe and Ito's palette, which the colour-blind can tell apart; none is lost on black or white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#808890"

# Zero is transparent, so that it is the paper's colour, light or dark.
DIVERGING = LinearSegmentedColormap.from_list(
    "prefheads", [(0.0, "#2b83c6ff"), (0.5, "#80808000"), (1.0, "#e06000ff")]
)


def heat_map(
    panels: Mapping[str, HeadScores],
    chosen: Sequence[HeadWeights] = (),
    *,
    title: str = "Preference Contribution Score of each head",
    theme: Theme = LIGHT,
) -> Figure:
    """Maps of mean PCS over layers and heads, one under the other on one colour scale.

    A dot marks a head whose 95 % interval over users excludes 0, a frame a chosen one.
    The scale ends at the 98th percentile, so that a few extreme heads do not hide the others.

    Args:
        panels: Scores by title, e.g. of all users and of each cluster; maps of equal shape.
        chosen: The heads steered with, one map a panel; none are framed if empty.

    Raises:
        DataError: No panels, or maps that do not match them.
    """
    shapes = {scores.shape[1:] for scores in panels.values()}
    if len(shapes) != 1 or (chosen and len(chosen) != len(panels)):
        raise DataError("a heat map needs scores of one shape, and one map of heads each")
    n_layers, n_heads = shapes.pop()
    limit = float(np.quantile([s.mean.abs().numpy() for s in panels.values()], 0.98)) or 1e-9
    height = 0.95 + len(panels) * (0.75 + 4.2 * n_heads / n_layers)
    with mpl.rc_context(style_of(theme)):
        figure = blank_figure(height, title)
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for i, (name, scores) in enumerate(panels.items()):
            image = _map(axes[i], scores, limit, chosen[i] if chosen else None, theme)
            axes[i].set_title(name)
        axes[-1].set_xlabel("layer (dot: interval excludes 0; frame: steered with)")
        colour_bar(figure, image, axes, "rise of NLL when ablated, nats a token", extend="both")
    return figure


def colour_bar(figure: Figure, image: Any, axes: Any, label: str, **options: Any) -> None:
    """What the colours of maps mean, under them, with ticks that do not touch."""
    bar = figure.colorbar(
        image,
        ax=list(axes),
        location="bottom",
        aspect=40,
        shrink=0.8,
        ticks=MaxNLocator(5),
        **options,
    )
    bar.set_label(label)
    bar.outline.set_visible(False)


def _map(
    axes: Axes,
    scores: HeadScores,
    limit: float,
    chosen: HeadWeights | None,
    theme: Theme,
) -> AxesImage:
    mean = scores.mean.numpy().T  # heads down, layers across
    image = axes.imshow(
        mean, DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="none"
    )
    low, high = (end.numpy().T for end in scores.interval())
    heads, layers = np.nonzero((low > 0) | (high < 0))
    axes.plot(layers, heads, ".", color=theme.ink, markersize=2.6, label="_significant")
    for layer, head in chosen.heads if chosen is not None else ():
        axes.add_patch(
            Rectangle(
                (layer - 0.5, head - 0.5), 1, 1, fill=False, ec=theme.ink, lw=1.3, clip_on=False
            )
        )
    axes.set_ylabel("head")
    axes.set_yticks(range(0, mean.shape[0], max(1, mean.shape[0] // 5)))
    axes.set_xticks(range(0, mean.shape[1], max(1, mean.shape[1] // 10)))
    return image


Form = tuple[str, str, float, str, float | None]


def line_style(i: int) -> dict[str, Any]:
    """Colour, marker and dash of the i-th line of a panel; none is like another of the first 12."""
    turn = i // len(COLOURS)
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[(i + turn) % len(MARKERS)],
        "ls": "-" if turn % 2 == 0 else "--",
    }


def form_of(s: Setting) -> Form:
    """All of a setting but its heads and gamma."""
    return s.mode, s.target, s.suppression, s.schedule, s.cap


def form_name(form: Form) -> str:
    """For titles: "contrast (0.1), head", "contrast x entropy to 1, head"."""
    mode, target, suppression, schedule, cap = form
    faint = f" ({suppression:g})" if mode == "contrast" and suppression != 1 else ""
    entropy = " x entropy" if schedule == "entropy" else ""
    bound = "" if cap is None else f" to {cap:g}"
    return f"{mode}{faint}{entropy}{bound}, {target}"


def half_intervals(calibration: Calibration) -> Array:
    """Half of the 95 % interval over users of each setting's change of NLL (t)."""
    reach = stdtrit(calibration.n_users - 1, 0.975)
    return np.asarray(reach * np.array(calibration.stderr, dtype=np.float64))


def calibration_curves(calibration: Calibration, *, theme: Theme = LIGHT) -> Figure:
    """Change of held-out NLL against gamma: a panel a form of steering, a line a head set.

    Bars are 95 % intervals over users; a ring marks the setting that was chosen.
    """
    steered = [s for s in calibration.settings if not s.plain]
    forms = list(dict.fromkeys(map(form_of, steered)))
    sets = list(dict.fromkeys(s.heads for s in steered))
    columns = min(2, max(1, len(forms)))
    rows = max(1, -(-len(forms) // columns))
    with mpl.rc_context(style_of(theme)):
        legend = 0.17 * -(-len(sets) // 2)
        figure = blank_figure(1.0 + legend + 1.95 * rows, "Change of NLL on calibration users")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, form in zip(grid, forms, strict=False):
            for i, name in enumerate(sets):
                _curve(axes, calibration, form, name, i)
            _ring(axes, calibration, form, theme)
            axes.axhline(0, color=theme.ink, lw=0.8, label="_plain")
            axes.set_title(form_name(form))
            axes.set_xlabel("gamma")
            axes.locator_params(nbins=4)
        for axes in grid[len(forms) :]:
            axes.set_axis_off()
        figure.supylabel("change of NLL, nats a token (below 0 helps)", fontsize=10)
        handles = {
            label: handle
            for axes in grid
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        if handles:
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=2)
    return figure


def _curve(axes: Axes, calibration: Calibration, form: Form, name: str, i: int) -> None:
    bars = half_intervals(calibration)
    points = sorted(
        (s.gamma, calibration.change[j], bars[j])
        for j, s in enumerate(calibration.settings)
        if not s.plain and s.heads == name and form_of(s) == form
    )
    if not points:
        return
    gamma, change, half = zip(*[(0.0, 0.0, 0.0), *points], strict=True)
    axes.errorbar(
        gamma,
        change,
        half,
        label=name,
        ms=3.5,
        lw=1.3,
        elinewidth=0.9,
        **line_style(i),
    )


def _ring(axes: Axes, calibration: Calibration, form: Form, theme: Theme) -> None:
    s = calibration.setting
    if not s.plain and form_of(s) == form:
        change = calibration.change[calibration.chosen]
        axes.plot(
            [s.gamma], [change], "o", ms=11, mfc="none", mec=theme.ink, mew=1.6, label="_chosen"
        )


def validation_plot(validation: Validation, *, theme: Theme = LIGHT) -> Figure:
    """Every method's change of NLL on test users, and of specificity, with 95 % intervals.

    Plain decoding is the line at 0. A change of NLL helps if below 0; a change of specificity
    above 0 means that the own profile is used more than another user's.
    """
    rows = validation.rows()[1:]
    names = [textwrap.fill(row.method, 18) for row in rows]
    lines = sum(max(2, name.count("\n") + 1) for name in names)
    with mpl.rc_context(style_of(theme)):
        figure = blank_figure(1.5 + 0.24 * max(2, lines), "Validation on test users")
        left, right = figure.subplots(1, 2, sharey=True)
        _forest(left, [row.change for row in rows], theme)
        _forest(right, [row.specificity_change for row in rows], theme)
        left.set_yticks(range(len(rows)), names)
        left.invert_yaxis()
        left.set_title("change of NLL")
        left.set_xlabel("nats a token\n← helps")
        right.set_title("change of specificity")
        right.set_xlabel("nats a token\nmore personal →")
    return figure


def _forest(axes: Axes, estimates: Sequence[Estimate], theme: Theme) -> None:
    axes.axvline(0, color=theme.ink, lw=0.8, label="_plain")
    for y, e in enumerate(estimates):
        colour = COLOURS[0] if e.excludes_zero else GREY
        axes.plot([e.low, e.high], [y, y], color=colour, lw=2, solid_capstyle="butt")
        axes.plot([e.mean], [y], "o", color=colour, ms=5, mfc=colour if e.excludes_zero else "none")
    axes.grid(axis="y", lw=0)
    ends = [end for e in estimates for end in (e.low, e.high)]
    if not symmetric_scale(axes, ends, which="x"):
        axes.locator_params(axis="x", nbins=4)


def save(figure: Figure, path: PathLike) -> tuple[Path, Path]:
    """Write ``path`` with the endings ``.png`` (twice screen resolution) and ``.svg``.

    Raises:
        ArtifactError: They cannot be written; no half file is left.
    """
    base = Path(path).with_suffix("") if Path(path).suffix in (".png", ".svg") else Path(path)
    written = []
    for ending in ("png", "svg"):
        target = base.with_name(f"{base.name}.{ending}")
        write_atomic(target, _render(figure, ending, transparent=False))
        written.append(target)
    return written[0], written[1]


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """A figure drawn with ``LIGHT`` as an SVG element that takes its ink from the page around it.

    Args:
        name: Letters that no other figure of the page has; all ids begin with it.
        description: What a screen reader says in its place; plain text without markup.
    """
    text = _render(figure, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace(LIGHT.ink, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def _render(figure: Figure, form: str, *, transparent: bool) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prefheads"}):
        metadata = {"Date": None} if form == "svg" else None
        figure.savefig(buffer, format=form, dpi=192, transparent=transparent, metadata=metadata)
    return buffer.getvalue()


def blank_figure(height: float, title: str) -> Figure:
    """A figure of the common width, ``height`` inches tall, to be made inside :func:`style_of`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def style_of(theme: Theme) -> Any:  # matplotlib lists every key in the type it wants
    """Fonts, lines and colours of all figures, for ``matplotlib.rc_context``."""
    return {
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
        "figure.facecolor": theme.paper,
        "savefig.facecolor": "auto",
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
    }
