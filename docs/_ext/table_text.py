"""Keeps the two ends of an interval on one line, wherever a table has one."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx

INTERVAL = r"\[[^\[\]]*\]( [-+]$)?|\([\d.]+ to [\d.]+\)"


def _join(app: Sphinx, doctree: nodes.document, page: str) -> None:
    for cell in doctree.findall(nodes.entry):
        for text in list(cell.findall(nodes.Text)):
            joined = re.sub(INTERVAL, lambda m: m[0].replace(" ", "\u00a0"), text)
            if joined != text:
                text.parent.replace(text, nodes.Text(joined))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect it."""
    app.connect("doctree-resolved", _join)
    return {"parallel_read_safe": True}
