"""All analyses of a run as one HTML file that needs no network and no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from prefheads.analysis.chapters_roles import quoted
from prefheads.analysis.index import Written
from prefheads.analysis.templating import drawn, environment
from prefheads.analysis.traces import Readings, Token
from prefheads.storage import write_atomic

PAGE = "report.html"
HALF = "\u2026"  # a token that is a part of a character
MAX_ROWS = 12  # of a long table; its file has all
SHORT = 30  # rows that a table may have to be shown whole
# What the paper shows, and where its counterpart is found by an entry's `paper`.
OF_PAPER = {
    "Fig. 3": "PCS of every head, by user",
    "Fig. 4": "overlap of users' top heads",
    "Fig. 5": "true heads, random heads, random masks",
    "Fig. 6": "quality by number of heads",
    "Fig. 7": "overlap of sets of different sizes",
    "Fig. 8": "hard and soft routing",
    "Table 1": "generation tasks, all methods",
    "Table 2": "classification and rating tasks, all methods",
    "Table 3": "FLOPs",
    "Table 4": "judged by people and by a language model",
    "Table 5": "the data",
    "6.3, what heads do": "attention, copying and tokens of the top heads",
}


@dataclass(frozen=True)
class Texts:
    """Texts side by side of one task, or what is missing.

    Attributes:
        name: Of the task; empty if the run has one only.
        readings: The texts; None if they are missing.
        missing: What is missing, and how to get it.
    """

    name: str
    readings: Readings | None = None
    missing: str = ""


def write_page(
    folder: Path,
    title: str,
    written: Sequence[Written],
    texts: Sequence[Texts],
    provenance: Mapping[str, str],
) -> Path:
    """Write ``report.html``.

    Args:
        written: All analyses; those of a section follow each other.
        provenance: How the run and the page were made.

    Returns:
        Its path.

    Raises:
        ArtifactError: It cannot be written.
    """
    sections = [
        _Section(name, [_Shown(w, folder) for w in group])
        for name, group in groupby(written, key=lambda w: w.entry.section)
    ]
    page = environment()
    page.filters |= {"tip": _tip, "tokens_nll": _nll}
    html = page.get_template("analysis.html.j2").render(
        title=title,
        sections=sections,
        paper=_of_paper(sections),
        texts=texts,
        provenance=provenance,
    )
    path = folder / PAGE
    write_atomic(path, html.encode())
    return path


@dataclass(frozen=True)
class _Section:
    name: str
    entries: list[_Shown]


class _Shown:
    """An entry as the template shows it."""

    def __init__(self, written: Written, folder: Path) -> None:
        self.entry = written.entry
        self.id = f"a-{written.entry.name}"
        self.figure = None
        if self.entry.figure is not None:
            self.figure = drawn(self.entry.figure, self.id, self.entry.title)
        self.tables = [
            _Table(rows, path.relative_to(folder).as_posix())
            for rows, path in zip(
                (self.entry.tables or {}).values(), written.tables, strict=True
            )
        ]  # fmt: skip
        # Where there is nothing else to see, the table is not folded away.
        self.open = self.figure is None


class _Table:
    """The first rows of a table, an interval in one cell with what it belongs to."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        self.path, self.total = path, len(rows)
        self.rows_shown = len(rows) if len(rows) <= SHORT else MAX_ROWS
        names = list(dict.fromkeys(name for row in rows for name in row))
        self.columns: list[tuple[str, ...]] = []
        i = 0
        while i < len(names):
            ends = names[i + 1 : i + 3]
            wide = len(ends) == 2 and ends[0].endswith("low") and ends[1].endswith("high")
            self.columns.append((names[i], *ends) if wide else (names[i],))
            i += len(self.columns[-1])
        self.head = [c[0].replace("_", " ") for c in self.columns]
        shown = rows[: self.rows_shown]
        self.numeric = [
            all(isinstance(r.get(c[0]), int | float | None) for r in shown) for c in self.columns
        ]
        self.rows = [[_cell([row.get(name) for name in c]) for c in self.columns] for row in shown]


def _cell(values: Sequence[Any]) -> str:
    known = [_number(v) for v in values]
    if len(known) == 3 and known[1] and known[2]:
        return f"{known[0]} [{known[1]}, {known[2]}]"
    return known[0]


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        short = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        return short.replace("-", "\u2212")
    return str(value)


@dataclass(frozen=True)
class _Counterpart:
    """Where on the page something of the paper is."""

    item: str
    what: str
    links: list[tuple[str, str]]  # ids and names of entries, or of what says how to get it
    missing: bool


def _of_paper(sections: Sequence[_Section]) -> list[_Counterpart]:
    found = []
    for item, what in OF_PAPER.items():
        own = [(s, e) for s in sections for e in s.entries if item in e.entry.paper]
        # The first entry of a section that shows it; if there is none, what says how to get it.
        shown = {s.name: e.id for s, e in reversed(own) if e.entry.shows}
        links = {s.name: shown[s.name] for s, _ in own if s.name in shown}
        if own:
            missing = {"missing": own[0][1].id}
            told = [(place, name) for name, place in (links or missing).items()]
            found.append(_Counterpart(item, what, told, not links))
    return found


def _nll(tokens: Sequence[Token], side: str) -> float:
    """Mean NLL of a text in nats a token."""
    return -sum(math.log(max(getattr(t, side), 1e-38)) for t in tokens) / len(tokens)


def _tip(token: Token) -> str:
    told = (
        f"{quoted(token.text or HALF)}: plain {_percent(token.plain)} (rank "
        f"{token.plain_rank:,}), steered {_percent(token.steered)} (rank {token.steered_rank:,})."
    )
    if token.changed:
        told += f" Likeliest: plain {quoted(token.plain_first)}"
        told += f", steered {quoted(token.steered_first)}."
    return told


def _percent(p: float) -> str:
    return f"{100 * p:.1f} %" if p >= 0.001 else f"{100 * p:.2g} %"
