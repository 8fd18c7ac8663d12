"""A run's entries as one HTML page that needs no network and no other file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from prefheads.report.figures.style import inline_svg
from prefheads.report.measure.tokens import Readings, Token
from prefheads.report.page.entry import Entry, Written
from prefheads.report.statistics.findings import VERDICTS
from prefheads.report.wording import quoted
from prefheads.storage import write_atomic

PAGE = "report.html"
HALF = "\u2026"  # a token that is a part of a character
MAX_ROWS = 12  # of a long table; its file has all
BESIDE = 66  # characters of a table's line that fit beside a figure
SHORT = 30  # rows that a table may have to be shown whole
# With an error, an interval or a unit behind it, or without.
NUMBER = re.compile(r"[-+\u2212]?\d[\d.]*(,\d+)*(e[-+]\d+)?( [\[\u00b1%].*)?")
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


def write_page(
    folder: Path,
    title: str,
    written: Sequence[Written],
    texts: Mapping[str, Readings],
    provenance: Mapping[str, str],
    *,
    lead: str = "",
    outcome: str = "",
    leads: Mapping[str, str] | None = None,
) -> Path:
    """Write ``report.html``.

    Args:
        written: All entries; those of a section follow each other. What shows nothing is listed
            at the end, with how to get it.
        texts: Texts side by side, by the name of their task; empty if there is one only.
        provenance: How the run and the page were made.
        lead: What the page is about.
        outcome: What came out, before the verdicts.
        leads: What sections are about, by their names; a section without can be folded.

    Returns:
        Its path.

    Raises:
        ArtifactError: It cannot be written.
    """
    shown = [_Shown(w, folder) for w in written if w.entry.shows]
    lacking = [w.entry for w in written if not w.entry.shows]
    about = leads or {}
    html = _environment().get_template("page.html.j2").render(
        title=title,
        lead=lead,
        outcome=outcome,
        claims=[claim for s in shown for claim in s.entry.findings],
        verdicts=VERDICTS,
        sections=[
            {"name": name, "entries": list(group), "lead": about.get(name, "")}
            for name, group in groupby(shown, key=lambda s: s.entry.section)
        ],
        texts=texts,
        paper=_of_paper(shown, lacking) if any(s.entry.paper for s in shown) else [],
        lacking=lacking,
        provenance=provenance,
    )  # fmt: skip
    path = folder / PAGE
    write_atomic(path, html.encode())
    return path


def _environment() -> Environment:
    """The templates; what they are given is escaped."""
    made = Environment(
        loader=PackageLoader("prefheads.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"code": _code, "prose": _prose, "signed": _signed, "tip": _tip, "nll": _nll}
    return made


def _code(text: str) -> Markup:
    """Text whose commands stand in backticks, as HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _prose(text: str) -> Markup:
    """Paragraphs, with commands in backticks and what matters between pairs of asterisks."""
    strong = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(_code(text)))
    return Markup("\n".join(f"<p>{part}</p>" for part in strong.split("\n\n")))


def _signed(value: float) -> str:
    """A number with its sign, a minus as wide as a plus."""
    return f"{value:+z.3f}".replace("-", "\u2212")


class _Shown:
    """An entry as the template shows it."""

    def __init__(self, written: Written, folder: Path) -> None:
        self.entry = entry = written.entry
        self.id = f"a-{entry.name}"
        self.figure = ""
        if entry.figure is not None:
            self.figure = Markup(inline_svg(entry.figure, self.id, str(escape(entry.title))))
        files = [path.relative_to(folder).as_posix() for path in written.tables]
        self.tables = [
            _Table(rows, files[i] if files else "") for i, rows in enumerate(entry.tables.values())
        ]


class _Table:
    """The first rows of a table, an interval in one cell with what it belongs to."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], path: str) -> None:
        self.path, self.total = path, len(rows)
        shown = rows[: len(rows) if len(rows) <= SHORT or not path else MAX_ROWS]
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns: list[tuple[str, ...]] = []
        while names:
            ends = names[1:3]
            wide = len(ends) == 2 and ends[0].endswith("low") and ends[1].endswith("high")
            columns.append(tuple(names[: 3 if wide else 1]))
            names = names[len(columns[-1]) :]
        columns = [c for c in columns if any(_known(row.get(c[0])) for row in rows)]
        self.head = [c[0].replace("_", " ") for c in columns]
        # Texts in the first column are names, even where they look like numbers.
        self.numeric = [
            all(_numeric(r.get(c[0])) and (i or not isinstance(r[c[0]], str)) for r in shown)
            for i, c in enumerate(columns)
        ]
        self.rows = [[_cell([row.get(name) for name in c]) for c in columns] for row in shown]
        cells = [[len(part) for row in self.rows for part in row[i]] for i in range(len(columns))]
        widths = [max(len(h), *c) for h, c in zip(self.head, cells, strict=True)]
        # Whether it fits beside a figure; a wider one has the width of the page.
        self.narrow = sum(2 + width for width in widths) <= BESIDE


def _cell(values: Sequence[Any]) -> tuple[str, str]:
    """What a cell says, and the interval below it."""
    first, *ends = [_number(v) for v in values]
    if not ends:  # an interval may be part of the text
        value, bracket, rest = first.partition(" [")
        return (value, bracket[1:] + rest) if _numeric(first) else (first, "")
    return first, f"[{ends[0]}, {ends[1]}]" if all(ends) else ""


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _numeric(value: Any) -> bool:
    if isinstance(value, str):
        return value == "n/a" or NUMBER.fullmatch(value) is not None
    return value is None or isinstance(value, int | float)


def _number(value: Any) -> str:
    if not _known(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        value = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    shown = str(value)
    return shown.replace("-", "\u2212") if _numeric(shown) else shown


def _of_paper(shown: Sequence[_Shown], lacking: Sequence[Entry]) -> list[dict[str, Any]]:
    """Where on the page something of the paper is: ids and names of what shows it, or lacks."""
    found: list[dict[str, Any]] = []
    for item, what in OF_PAPER.items():
        # The first entry of a section that shows it; if there is none, what says how to get it.
        places = {s.entry.section: s.id for s in reversed(shown) if item in s.entry.paper}
        sections = dict.fromkeys(s.entry.section for s in shown)
        links = [(places[name], name) for name in sections if name in places]
        wanted = [(f"a-{entry.name}", "missing") for entry in lacking if item in entry.paper][:1]
        if links or wanted:
            found.append({"item": item, "what": what, "links": links or wanted})
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
