"""One analysis of a run, and all of them as files: figures, tables, and a list of both."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefheads.report.figures.style import save
from prefheads.report.statistics.findings import VERDICTS, Claim
from prefheads.report.wording import named
from prefheads.storage import writable_dir, write_atomic

Tables = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Entry:
    """One analysis of a run.

    Attributes:
        name: Of its files.
        title: What it is about.
        paper: The figure or section of the paper that it answers; empty if there is none.
        shows: What it shows, with the figures that matter and their controls; empty if missing.
        missing: What the run does not hold, and how to get it; empty if nothing.
        figure: A matplotlib figure, or None.
        tables: Lines of tables, by the ending of their names.
        section: Of the page; entries of one section follow each other.
        findings: Verdicts on the paper's claims.
    """

    name: str
    title: str
    paper: str = ""
    shows: str = ""
    missing: str = ""
    figure: Any = None
    tables: Tables = field(default_factory=dict)
    section: str = ""
    findings: Sequence[Claim] = ()


@dataclass(frozen=True)
class Written:
    """Where an entry's files are."""

    entry: Entry
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        texts = ("name", "title", "paper", "shows", "missing")
        found: dict[str, Any] = {name: getattr(self.entry, name) for name in texts}
        found["findings"] = [str(finding) for finding in self.entry.findings]
        return found | {"figures": list(self.figures), "tables": list(self.tables)}


def write(folder: Path, entries: Sequence[Entry], about: str = "") -> list[Written]:
    """Write the entries' figures into ``figures/``.

    Args:
        about: What was analysed, a line; with it ``tables/`` and ``index.md`` are written, too.

    Raises:
        ArtifactError: They cannot be written.
    """
    figures = writable_dir(folder / "figures")
    tables = writable_dir(folder / "tables") if about else folder
    written = []
    for entry in entries:
        drawn = () if entry.figure is None else save(entry.figure, figures / f"{entry.name}.png")
        lists = []
        for ending, rows in entry.tables.items() if about else ():
            path = tables / f"{named(entry.name, ending)}.csv"
            write_atomic(path, _csv(rows))
            lists.append(path)
        written.append(Written(entry, drawn, tuple(lists)))
    if about:
        write_atomic(folder / "index.md", _index(folder, written, about).encode())
    return written


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Comma-separated values; what is not known (NaN) is empty."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return value


def _index(folder: Path, written: Sequence[Written], about: str) -> str:
    lines = ["| analysis | paper | figure | tables |", "| --- | --- | --- | --- |"]
    for w in written:
        links = (_links(folder, paths) or "-" for paths in (w.figures, w.tables))
        lines.append(f"| {w.entry.title} | {w.entry.paper or '-'} | {' | '.join(links)} |")
    parts = ["# Analyses", about, "\n".join(lines)]
    for w in written:
        parts.append(f"## {w.entry.title}")
        if w.entry.paper:
            parts.append(f"Answers: {w.entry.paper}.")
        if w.entry.shows:
            parts.append(w.entry.shows)
        if w.entry.findings:
            parts.append("\n".join(f"- {finding}." for finding in w.entry.findings))
            parts.append(VERDICTS)
        if w.entry.missing:
            parts.append(f"Missing: {w.entry.missing}")
        if w.figures:
            parts.append(f"![{w.entry.title}]({w.figures[0].relative_to(folder).as_posix()})")
        if w.tables:
            parts.append(f"Tables: {_links(folder, w.tables)}")
    return "\n\n".join(parts) + "\n"


def _links(folder: Path, paths: Sequence[Path]) -> str:
    return ", ".join(f"[{p.name}]({p.relative_to(folder).as_posix()})" for p in paths)
