"""From measurements to tables: values with intervals, and paired tests against the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefheads.compare import interval, paired_test
from prefheads.evaluation.records import Record
from prefheads.evaluation.run import Measured
from prefheads.stats import INTERVALS, Array, holm
from prefheads.storage import plain, writable_dir, write_atomic, write_json
from prefheads.tasks.extract import extract
from prefheads.tasks.metrics import Metric, caveat, metrics_of, sample_scores, write_predictions
from prefheads.tasks.wordnet import require

LEVEL = 0.05


@dataclass(frozen=True)
class Cell:
    """One metric of one method on one task.

    Attributes:
        table: ``"texts"``, ``"extracted answers"`` or ``"likelihood"``.
        value: The metric, with its 95 % interval over users from ``low`` to ``high``.
        p: Of the paired test against the baseline, corrected by Holm over the task's table; NaN
            for the baseline itself and for columns without a test.
        better: Whether the value is better than the baseline's.
        n: Samples.
    """

    task: str
    table: str
    method: str
    metric: str
    higher_is_better: bool
    value: float
    low: float
    high: float
    p: float
    better: bool
    n: int

    @property
    def mark(self) -> str:
        """+ or - where the difference from the baseline is significant."""
        return ("+" if self.better else "-") if self.p < LEVEL else ""

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "n/a"
        form = ".3f" if abs(self.value) < 10 else ".1f" if abs(self.value) < 1000 else ".3g"
        shown = f"{self.value:{form}}"
        if not np.isnan(self.low):
            shown += f" [{self.low:{form}}, {self.high:{form}}]"
        return shown + (f" {self.mark}" if self.mark else "")


def cells(measured: Measured, *, extracted: bool = False, seed: int = 0) -> list[Cell]:
    """All cells of a task's tables; the first method is the baseline.

    Args:
        extracted: Add the metrics of the answers that :func:`prefheads.tasks.extract.extract`
            takes out of the texts, beside the strict ones. A text without an answer stays as it is.
        seed: Of the permutations.
    """
    found = [
        _cell(measured.task, column, method, seed)
        for column in [*_texts(measured, extracted), *_likelihood(measured)]
        for method in column.rows
    ]
    for table in {cell.table for cell in found}:
        tested = [i for i, c in enumerate(found) if c.table == table and not np.isnan(c.p)]
        for i, p in zip(tested, holm([found[i].p for i in tested]), strict=True):
            found[i] = replace(found[i], p=float(p))
    return found


@dataclass(frozen=True)
class _Column:
    """A metric's rows for every method; untested where another column has the same test."""

    table: str
    metric: Metric
    rows: dict[str, Array]
    users: tuple[str, ...]
    tested: bool = True


def _cell(task: str, column: _Column, method: str, seed: int) -> Cell:
    metric, rows = column.metric, column.rows[method]
    baseline = next(iter(column.rows.values()))
    value, base = metric.aggregate(rows), metric.aggregate(baseline)
    low = high = p = float("nan")
    if np.isfinite(rows).all():
        estimate = interval(rows, metric, column.users)
        low, high = estimate.low, estimate.high
        if column.tested and rows is not baseline and np.isfinite(baseline).all():
            p = paired_test(rows, baseline, metric, column.users, seed=seed)
    better = value != base and (value > base) == metric.higher_is_better
    name, higher = metric.name, metric.higher_is_better
    return Cell(task, column.table, method, name, higher, value, low, high, p, better, len(rows))


def _texts(measured: Measured, extracted: bool) -> list[_Column]:
    known = {m: [r for r in rs if r.reference is not None] for m, rs in measured.texts.items()}
    if not any(known.values()):
        return []
    users = tuple(r.user_id for r in next(iter(known.values())))
    columns = []
    for table, answer in (("texts", _strict), ("extracted answers", _answer)):
        if answer is _answer and not extracted:
            continue
        scores = {
            method: sample_scores(
                measured.task, [answer(r) for r in records], [str(r.reference) for r in records]
            )
            for method, records in known.items()
        }
        for metric in metrics_of(measured.task):
            rows = {method: own[metric.name] for method, own in scores.items()}
            columns.append(_Column(table, metric, rows, users))
    return columns


def _strict(record: Record) -> str:
    return record.prediction


def _answer(record: Record) -> str:
    answer = extract(record.task, record.prediction)
    return record.prediction if answer is None else answer


def _likelihood(measured: Measured) -> list[_Column]:
    found = measured.nll
    if found is None:
        return []
    own = {m: found.nll[:, 0, i] for i, m in enumerate(found.methods)}

    def less(a: Array, b: Array) -> Array:
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            return np.asarray(a - b)

    def change(rows: dict[str, Array]) -> dict[str, Array]:
        first = next(iter(rows.values()))
        return {m: less(values, first) for m, values in rows.items()}

    specific = {m: less(found.nll[:, 1, i], own[m]) for i, m in enumerate(found.methods)}

    return [
        _Column("likelihood", metric, rows, found.user_ids, tested)
        for metric, rows, tested in (
            (Metric("NLL", False), own, False),
            (Metric("change of NLL", False), change(own), True),
            (Metric("perplexity", False, outer=_exp), own, False),
            (Metric("specificity"), specific, False),
            (Metric("its change"), change(specific), True),
        )
    ]


def _exp(mean: Array) -> Array:
    return np.asarray(np.exp(mean))


def extraction_counts(measured: Measured) -> dict[str, dict[str, int]]:
    """For each method, in how many texts an answer had to be extracted, and how many have none."""
    counts = {}
    for method, records in measured.texts.items():
        answers = [extract(r.task, r.prediction) for r in records]
        counts[method] = {
            "extracted": sum(
                a is not None and a != r.prediction.strip()
                for a, r in zip(answers, records, strict=True)
            ),
            "failed": sum(a is None for a in answers),
        }
    return counts


def costs(measured: Measured) -> dict[str, dict[str, float]]:
    """For each method, mean seconds a sample for prompt and decoding, and tokens written."""
    return {
        method: {
            "seconds": float(np.mean([r.seconds for r in records])),
            "prompt_seconds": float(np.mean([r.prompt_seconds for r in records])),
            "new_tokens": float(np.mean([r.new_tokens for r in records])),
        }
        for method, records in measured.texts.items()
    }


def frames(found: Sequence[Cell]) -> dict[str, Any]:
    """A task's cells as data frames by table: a row a method, a column a metric."""
    tables = dict.fromkeys(c.table for c in found)
    return {name: _frame([c for c in found if c.table == name]) for name in tables}


def _frame(found: Sequence[Cell]) -> Any:
    table = require("pandas").DataFrame(
        [{"method": c.method, "metric": c.metric, "cell": str(c)} for c in found]
    )
    wide = table.pivot(index="method", columns="metric", values="cell")
    methods = list(dict.fromkeys(c.method for c in found))
    metrics = list(dict.fromkeys(c.metric for c in found))
    wide = wide.loc[methods, metrics].reset_index()
    return wide.rename_axis(columns=None)


def write_tables(
    out: Path,
    measured: Sequence[Measured],
    found: Sequence[Sequence[Cell]],
    scored_by: Mapping[str, Mapping[str, str]],
) -> None:
    """Write ``table.md``, ``table.tex``, ``table.csv`` (a line a cell), ``results.json``, and for
    each task the golds and every method's predictions in the official shape.

    Args:
        scored_by: For each task what its metrics depend on (:func:`tasks.metrics.prepare`).

    Raises:
        ArtifactError: A file cannot be written.
    """
    pandas = require("pandas")
    tables = [
        (title(m, name), table, "" if name == "likelihood" else note(m))
        for m, part in zip(measured, found, strict=True)
        for name, table in frames(part).items()
    ]
    markdown = [
        f"### {head}\n\n{table.to_markdown(index=False)}\n" + (f"\n{said}\n" if said else "")
        for head, table, said in tables
    ]
    latex = [
        table.to_latex(index=False, escape=True, caption=f"{head}. {said}" if said else head)
        for head, table, said in tables
    ]
    flat = [asdict(cell) for part in found for cell in part]
    write_atomic(out / "table.md", "\n".join([*markdown, LEGEND + "\n"]).encode())
    write_atomic(out / "table.tex", "\n".join(latex).encode())
    write_atomic(out / "table.csv", pandas.DataFrame(flat).to_csv(index=False).encode())
    write_json(out / "results.json", _summary(measured, flat, scored_by))
    for m in measured:
        for method, records in m.texts.items():
            folder = writable_dir(out / m.task / "predictions")
            ids = [r.id for r in records]
            name = method.replace(":", ",")
            write_predictions(folder / f"{name}.json", m.task, ids, [r.prediction for r in records])
            golds = [r.reference for r in records if r.reference is not None]
            if len(golds) == len(ids):  # the official evaluation wants just these samples' golds
                write_predictions(out / m.task / "golds.json", m.task, ids, golds)


def note(measured: Measured) -> str:
    """What stands under a table of texts (:func:`prefheads.tasks.metrics.caveat`)."""
    records = next(iter(measured.texts.values()), [])
    return caveat(measured.task, [r.reference for r in records if r.reference is not None])


def title(measured: Measured, table: str) -> str:
    """What a table is of."""
    split = f" ({measured.split})" if measured.split else ""
    folds = f" in {measured.folds} folds" if measured.folds > 1 else ""
    heads = f"; heads from {measured.heads_from}" if measured.heads_from else ""
    return f"{measured.task}{split}, {table}: {len(_ids(measured))} samples{folds}{heads}"


def require_libraries() -> None:
    """Raise unless what tables need is installed, so that a lack shows before a long run."""
    for name in ("pandas", "tabulate", "statsmodels.stats.multitest"):
        require(name)


LEGEND = (
    f"Brackets: {INTERVALS}. + and -: significantly better or worse than "
    "the first method (paired approximate randomisation, Holm over the table, 5 %)."
)


def _ids(measured: Measured) -> list[str]:
    if measured.nll is not None:
        return list(measured.nll.example_ids)
    return [r.id for r in next(iter(measured.texts.values()), [])]


def _summary(
    measured: Sequence[Measured],
    flat: Sequence[dict[str, Any]],
    scored_by: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    return {
        "cells": plain(flat),
        "tasks": {
            m.task: {
                "samples": len(_ids(m)),
                "folds": m.folds,
                "split": m.split,
                "heads_from": m.heads_from,
                "settings": m.settings,
                "extraction": extraction_counts(m),
                "costs": costs(m),
                "note": note(m),
                "scored_by": dict(scored_by.get(m.task, {})),
            }
            for m in measured
        },
    }
