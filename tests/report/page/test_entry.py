"""Entries as files, and what they say of a run that lacks something."""

from __future__ import annotations

import csv
from pathlib import Path

from prefheads.evaluation.methods import Method
from prefheads.report.hints import METHODS as HINTED
from prefheads.report.page import steering
from prefheads.report.page.entry import Entry, write


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_missing_analyses_name_the_command() -> None:
    entries = [
        *steering.calibration_entries(None, "", "prefheads fit X"),
        *steering.validation_entries(None, "", "prefheads validate X"),
        *steering.evaluation_entries(None, "prefheads eval X"),
    ]
    assert all(e.figure is None and not e.shows for e in entries)
    commands = [e.missing.split("`")[1] for e in entries]
    assert commands == ["prefheads fit X", "prefheads validate X", "prefheads eval X"]
    for method in HINTED.split(","):
        Method.parse(method)


def test_unknown_figures_are_empty_in_tables(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": float("nan")}, {"a": 2, "c": 0.123456789}]
    write(tmp_path, [Entry("x", "An entry", "Fig. 1", "It shows.", tables={"": rows})], "about")
    assert table(tmp_path / "tables" / "x.csv") == [
        {"a": "1", "b": "", "c": ""},
        {"a": "2", "b": "", "c": "0.123457"},
    ]
    page = (tmp_path / "index.md").read_text()
    assert "[x.csv](tables/x.csv)" in page and "It shows." in page and "Fig. 1" in page
