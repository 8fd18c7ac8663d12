"""An evaluation's tables and results as files: written, and read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from prefheads.errors import ArtifactError
from prefheads.evaluation.run import Measured
from prefheads.evaluation.tables import Cell, costs, extraction_counts
from prefheads.optional import require
from prefheads.stats import INTERVALS
from prefheads.storage import plain, read_json, writable_dir, write_atomic, write_json
from prefheads.tasks.answers import answers_of
from prefheads.tasks.metrics import write_predictions

RESULTS = "results.json"
# What old versions did not tell.
_UNTOLD: dict[str, Any] = {"samples": 0, "folds": 1, "split": "", "heads_from": "", "note": ""}


def frames(found: Sequence[Cell]) -> dict[str, Any]:
    """A task's cells as data frames by table: a row a method, a column a metric."""
    tables: dict[str, dict[str, dict[str, str]]] = {}
    for cell in found:
        rows = tables.setdefault(cell.table, {})
        rows.setdefault(cell.method, {"method": cell.method}).update(cell.shown)
    frame = require("pandas", "eval").DataFrame
    return {name: frame(list(rows.values())).fillna("") for name, rows in tables.items()}


def write_tables(
    out: Path,
    measured: Sequence[Measured],
    found: Sequence[Sequence[Cell]],
    scored_by: Mapping[str, Mapping[str, str]],
) -> None:
    """Write ``table.md``, ``table.tex``, ``table.csv`` (a line a cell), ``results.json``, and for
    each task the golds and every method's predictions in the official shape.

    Tables of other tasks that were written there before stay in them.

    Args:
        scored_by: For each task what its metrics depend on (``AnswerType.prepare``).

    Raises:
        ArtifactError: A file cannot be written, or what is there is damaged.
    """
    pandas = require("pandas", "eval")
    told, parts = read_results(out) if (out / RESULTS).is_file() else ({}, {})
    told |= {m.task: _summary(m, scored_by.get(m.task, {})) for m in measured}
    parts |= {m.task: list(part) for m, part in zip(measured, found, strict=True)}
    tables = [
        (title(task, about, name), table, "" if name == "likelihood" else about["note"])
        for task, about in told.items()
        for name, table in frames(parts[task]).items()
    ]
    as_shown = {"index": False, "disable_numparse": True}  # 0.200 stays 0.200
    markdown = [
        f"### {head}\n\n{table.to_markdown(**as_shown)}\n" + (f"\n{said}\n" if said else "")
        for head, table, said in tables
    ]
    latex = [
        table.to_latex(index=False, escape=True, caption=f"{head}. {said}" if said else head)
        for head, table, said in tables
    ]
    flat = [asdict(cell) for task in told for cell in parts[task]]
    write_atomic(out / "table.md", "\n".join([*markdown, LEGEND + "\n"]).encode())
    write_atomic(out / "table.tex", "\n".join(latex).encode())
    write_atomic(out / "table.csv", pandas.DataFrame(flat).to_csv(index=False).encode())
    write_json(out / RESULTS, {"cells": plain(flat), "tasks": told})
    for m in measured:
        for method, records in m.texts.items():
            folder = writable_dir(out / m.task / "predictions")
            ids = [r.id for r in records]
            name = method.replace(":", ",")
            write_predictions(folder / f"{name}.json", m.task, ids, [r.prediction for r in records])
            golds = [r.reference for r in records if r.reference is not None]
            if len(golds) == len(ids):  # the official evaluation wants just these samples' golds
                write_predictions(out / m.task / "golds.json", m.task, ids, golds)


def title(task: str, about: Mapping[str, Any], table: str) -> str:
    """What a table of a task is of, from what ``results.json`` says of the task."""
    split = f" ({about['split']})" if about["split"] else ""
    folds = f" in {about['folds']} folds" if about["folds"] > 1 else ""
    heads = f"; heads from {about['heads_from']}" if about["heads_from"] else ""
    return f"{task}{split}, {table}: {about['samples']} samples{folds}{heads}"


def read_results(out: Path) -> tuple[dict[str, Any], dict[str, list[Cell]]]:
    """What ``results.json`` says of each task, and each task's cells; an ``ArtifactError`` if it is
    missing (the evaluation has not ended) or damaged."""
    path = out / RESULTS
    content = read_json(path)
    try:
        cells = [Cell(**cell | _numbers(cell)) for cell in content["cells"]]
        known = dict.fromkeys(c.task for c in cells) | content.get("tasks", {})
        told = {task: _UNTOLD | (about or {}) for task, about in known.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); give another folder") from None
    return told, {task: [c for c in cells if c.task == task] for task in told}


def _numbers(cell: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a cell; JSON has no NaN and no infinity (:func:`prefheads.storage.plain`)."""
    known = {f: cell[f] for f in ("value", "low", "high", "p", "official") if f in cell}
    return {f: np.nan if v is None else float(v) for f, v in known.items()}


def require_libraries() -> None:
    """Raise unless what tables need is installed, so that a lack shows before a long run."""
    for name in ("pandas", "tabulate"):
        require(name, "eval")


LEGEND = (
    f"Brackets: {INTERVALS}. + and -: significantly better or worse than the first method (paired "
    "approximate randomisation; t for random controls, whose draws add to the error; Holm over the "
    "table, 5 %). Official: ROUGE as the benchmark's own evaluation prints it, the median of 1,000 "
    "resampled means."
)


def _summary(measured: Measured, scored_by: Mapping[str, str]) -> dict[str, Any]:
    texts, nll = next(iter(measured.texts.values()), []), measured.nll
    return {
        "samples": len(texts if nll is None else nll.example_ids),
        "folds": measured.folds,
        "split": measured.split,
        "heads_from": measured.heads_from,
        "settings": measured.settings,
        "extraction": extraction_counts(measured),
        "costs": costs(measured),
        "note": answers_of(measured.task).caveat(
            [r.reference for r in texts if r.reference is not None]
        ),
        "scored_by": dict(scored_by),
    }
