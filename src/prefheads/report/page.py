"""All analyses of a run as one HTML file that needs no network and no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from prefheads.report.chapters_roles import quoted
from prefheads.report.findings import VERDICTS
from prefheads.report.index import Entry, Written
from prefheads.report.templating import drawn, environment
from prefheads.report.traces import Readings, Token
from prefheads.storage import write_atomic

PAGE = "report.html"
HALF = "\u2026"  # a token that is a part of a character
MAX_ROWS = 12  # of a long table; its file has all
BESIDE = 66  # characters of a table's line that fit beside a figure
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
    shown = [w for w in written if w.entry.shows]
    sections = [
        _Section(name, [_Shown(w, folder) for w in group])
        for name, group in groupby(shown, key=lambda w: w.entry.section)
    ]
    lacking = [
        _Lacking(_id(w.entry), w.entry.title, w.entry.missing, w.entry.paper)
        for w in written
        if not w.entry.shows
    ]
    for i, group in enumerate(t for t in texts if t.readings is None):
        where = f" ({group.name})" if group.name else ""
        lacking.append(_Lacking(f"texts-{i}", f"Texts side by side{where}", group.missing))
    page = environment()
    page.filters |= {"tip": _tip, "tokens_nll": _nll}
    html = page.get_template("analysis.html.j2").render(
        title=title,
        findings=[finding for w in shown for finding in w.entry.findings],
        verdicts=VERDICTS,
        sections=sections,
        paper=_of_paper(sections, lacking),
        read=[t for t in texts if t.readings is not None],
        lacking=lacking,
        provenance=provenance,
    )
    path = folder / PAGE
    write_atomic(path, html.encode())
    return path


def _id(entry: Entry) -> str:
    return f"a-{entry.name}"


@dataclass(frozen=True)
class _Section:
    name: str
    entries: list[_Shown]


@dataclass(frozen=True)
class _Lacking:
    """What the run does not hold, and how to get it."""

    id: str
    title: str
    missing: str
    paper: str = ""


class _Shown:
    """An entry as the template shows it."""

    def __init__(self, written: Written, folder: Path) -> None:
        self.entry = written.entry
        self.id = _id(written.entry)
        self.figure = None
        if self.entry.figure is not None:
            self.figure = drawn(self.entry.figure, self.id, self.entry.title)
        self.tables = [
            _Table(rows, path.relative_to(folder).as_posix())
            for rows, path in zip(
                (self.entry.tables or {}).values(), written.tables, strict=True
            )
        ]  # fmt: skip


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
        self.columns = [c for c in self.columns if any(_known(row.get(c[0])) for row in rows)]
        self.head = [c[0].replace("_", " ") for c in self.columns]
        shown = rows[: self.rows_shown]
        self.numeric = [
            all(isinstance(r.get(c[0]), int | float | None) for r in shown) for c in self.columns
        ]
        self.rows = [[_cell([row.get(name) for name in c]) for c in self.columns] for row in shown]
        cells = zip(self.head, *self.rows, strict=True)
        # Whether it fits beside a figure; a wider one has the width of the page.
        self.narrow = sum(2 + max(map(len, column)) for column in cells) <= BESIDE


def _cell(values: Sequence[Any]) -> str:
    known = [_number(v) for v in values]
    if len(known) == 3 and known[1] and known[2]:
        return f"{known[0]} [{known[1]}, {known[2]}]"
    return known[0]


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> str:
    if not _known(value):
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


def _of_paper(sections: Sequence[_Section], lacking: Sequence[_Lacking]) -> list[_Counterpart]:
    found = []
    for item, what in OF_PAPER.items():
        # The first entry of a section that shows it; if there is none, what says how to get it.
        links = {
            s.name: e.id for s in sections for e in reversed(s.entries) if item in e.entry.paper
        }
        wanted = next((x.id for x in lacking if item in x.paper), None)
        if links:
            told = [(place, name) for name, place in links.items()]
            found.append(_Counterpart(item, what, told, missing=False))
        elif wanted is not None:
            found.append(_Counterpart(item, what, [(wanted, "missing")], missing=True))
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
