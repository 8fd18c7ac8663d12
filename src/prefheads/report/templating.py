"""Pages from templates: one environment, with the filters that pages share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from prefheads.report.plots import inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def environment() -> Environment:
    """Templates of this package; what they are given is escaped."""
    made = Environment(
        loader=PackageLoader("prefheads.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"signed": signed, "code": code}
    return made


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, a minus as wide as a plus."""
    return f"{value:+z.{digits}f}".replace("-", "\u2212")


def code(text: str) -> Markup:
    """Text whose commands stand in backticks, as HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def drawn(figure: Figure, name: str, description: str) -> Markup:
    """A figure as an SVG element; see :func:`prefheads.report.plots.inline_svg`."""
    return Markup(inline_svg(figure, name, str(escape(description))))
