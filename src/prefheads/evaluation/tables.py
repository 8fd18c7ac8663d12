"""From measurements to tables: values with intervals, and paired tests against the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefheads.compare import interval, paired_test
from prefheads.errors import ArtifactError
from prefheads.evaluation.draws import over_draws
from prefheads.evaluation.records import Record
from prefheads.evaluation.run import Measured
from prefheads.stats import INTERVALS, Array, holm
from prefheads.storage import plain, read_json, writable_dir, write_atomic, write_json
from prefheads.tasks.extract import extract
from prefheads.tasks.metrics import (
    OFFICIAL,
    Metric,
    caveat,
    metrics_of,
    sample_scores,
    write_predictions,
)
from prefheads.tasks.wordnet import require

LEVEL = 0.05
RESULTS = "results.json"
_UNTOLD: dict[str, Any] = {
    "samples": 0,
    "folds": 1,
    "split": "",
    "heads_from": "",
    "note": "",
}  # by old versions


@dataclass(frozen=True)
class Cell:
    """One metric of one method on one task.

    Attributes:
        table: ``"texts"``, ``"extracted answers"`` or ``"likelihood"``.
        value: The metric, with its 95 % interval over users from ``low`` to ``high``.
        p: Of the paired test against the baseline (:data:`LEGEND`), corrected by Holm over the
            task's table; NaN for the baseline itself and for columns without a test.
        better: Whether the value is better than the baseline's.
        n: Samples.
        official: What the benchmark's own evaluation prints instead (of ROUGE); NaN where it is
            the value.
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
    official: float = float("nan")

    @property
    def mark(self) -> str:
        """+ or - where the difference from the baseline is significant."""
        return ("+" if self.better else "-") if self.p < LEVEL else ""

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "n/a"
        form = ".3f" if abs(self.value) < 10 else ".1f" if abs(self.value) < 1000 else ".3g"
        shown = f"{self.value:z{form}}"
        if not np.isnan(self.low):
            shown += f" [{self.low:z{form}}, {self.high:z{form}}]"
        return shown + (f" {self.mark}" if self.mark else "")

    @property
    def shown(self) -> dict[str, str]:
        """The columns of a table: the metric, and its official aggregate if that is another."""
        if np.isnan(self.official):
            return {self.metric: str(self)}
        return {self.metric: str(self), self.metric + OFFICIAL: f"{self.official:.3f}"}


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
    """A metric's rows for every method, of each of its draws; untested where another column has the
    same test."""

    table: str
    metric: Metric
    rows: dict[str, list[Array]]
    users: tuple[str, ...]
    tested: bool = True


def _cell(task: str, column: _Column, method: str, seed: int) -> Cell:
    metric, draws = column.metric, column.rows[method]
    baseline = next(iter(column.rows.values()))
    value, base = (float(np.mean([metric.aggregate(r) for r in x])) for x in (draws, baseline))
    low = high = p = float("nan")
    finite = all(np.isfinite(rows).all() for rows in draws)
    alone = len(draws) == 1
    if finite:
        if alone:
            estimate = interval(draws[0], metric, column.users)
        else:
            estimate = over_draws(draws, [], metric, column.users)
        low, high = estimate.low, estimate.high
    if finite and column.tested and draws is not baseline and np.isfinite(baseline).all():
        if alone and len(baseline) == 1:
            p = paired_test(draws[0], baseline[0], metric, column.users, seed=seed)
        else:
            p = over_draws(draws, baseline, metric, column.users).p
    better = value != base and (value > base) == metric.higher_is_better
    name, higher = metric.name, metric.higher_is_better
    official = float("nan")
    if metric.resampled:
        official = float(np.mean([metric.official(rows) for rows in draws]))
    n = len(draws[0])
    return Cell(task, column.table, method, name, higher, value, low, high, p, better, n, official)


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
            rows = {
                m: [scores[draw][metric.name] for draw in draws]
                for m, draws in measured.methods.items()
            }
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
    own, other = ({m: list(found.of(m)[:, context].T) for m in found.methods} for context in (0, 1))

    def less(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            return [np.asarray(x - y) for x, y in zip(a, b, strict=True)]

    def change(rows: dict[str, list[Array]]) -> dict[str, list[Array]]:
        first = np.mean(next(iter(rows.values())), 0)
        return {m: less(values, [first] * len(values)) for m, values in rows.items()}

    specific = {m: less(other[m], own[m]) for m in own}
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
    rows: dict[str, dict[str, str]] = {}
    for cell in found:
        rows.setdefault(cell.method, {"method": cell.method}).update(cell.shown)
    return require("pandas").DataFrame(list(rows.values())).fillna("")


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
        scored_by: For each task what its metrics depend on (:func:`tasks.metrics.prepare`).

    Raises:
        ArtifactError: A file cannot be written, or what is there is damaged.
    """
    pandas = require("pandas")
    told, parts = read_results(out)
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


def note(measured: Measured) -> str:
    """What stands under a table of texts (:func:`prefheads.tasks.metrics.caveat`)."""
    records = next(iter(measured.texts.values()), [])
    return caveat(measured.task, [r.reference for r in records if r.reference is not None])


def title(task: str, about: Mapping[str, Any], table: str) -> str:
    """What a table of a task is of, from what ``results.json`` says of the task."""
    split = f" ({about['split']})" if about["split"] else ""
    folds = f" in {about['folds']} folds" if about["folds"] > 1 else ""
    heads = f"; heads from {about['heads_from']}" if about["heads_from"] else ""
    return f"{task}{split}, {table}: {about['samples']} samples{folds}{heads}"


def read_results(out: Path) -> tuple[dict[str, Any], dict[str, list[Cell]]]:
    """What ``results.json`` says of each task, and each task's cells; nothing if there is none.

    Raises:
        ArtifactError: It is damaged.
    """
    path = out / RESULTS
    if not path.is_file():
        return {}, {}
    content = read_json(path)
    try:
        told: Any = {task: {**_UNTOLD, **about} for task, about in content["tasks"].items()}
        known: Any = (
            {k: np.nan if v is None else v for k, v in c.items()} for c in content["cells"]
        )
        cells = [Cell(**cell) for cell in known]
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); give another folder") from None
    return told, {task: [c for c in cells if c.task == task] for task in told}


def require_libraries() -> None:
    """Raise unless what tables need is installed, so that a lack shows before a long run."""
    for name in ("pandas", "tabulate"):
        require(name)


LEGEND = (
    f"Brackets: {INTERVALS}. + and -: significantly better or worse than the first method (paired "
    "approximate randomisation; t for random controls, whose draws add to the error; Holm over the "
    "table, 5 %). Official: ROUGE as the benchmark's own evaluation prints it, the median of 1,000 "
    "resampled means."
)


def _ids(measured: Measured) -> list[str]:
    if measured.nll is not None:
        return list(measured.nll.example_ids)
    return [r.id for r in next(iter(measured.texts.values()), [])]


def _summary(measured: Measured, scored_by: Mapping[str, str]) -> dict[str, Any]:
    return {
        "samples": len(_ids(measured)),
        "folds": measured.folds,
        "split": measured.split,
        "heads_from": measured.heads_from,
        "settings": measured.settings,
        "extraction": extraction_counts(measured),
        "costs": costs(measured),
        "note": note(measured),
        "scored_by": dict(scored_by),
    }
