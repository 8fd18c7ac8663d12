"""From measurements to tables: values with intervals, and paired tests against the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefheads.evaluation.run import Measured
from prefheads.evaluation.significance import interval, over_draws, paired_test
from prefheads.stats import Array, holm
from prefheads.tasks.answers import Metric, answers_of
from prefheads.tasks.metrics import OFFICIAL, sample_scores

LEVEL = 0.05


@dataclass(frozen=True)
class Cell:
    """One metric of one method on one task.

    Attributes:
        table: ``"texts"``, ``"extracted answers"`` or ``"likelihood"``.
        value: The metric, with its 95 % interval over users from ``low`` to ``high``.
        p: Of the paired test against the baseline (``results.LEGEND``), corrected by Holm over the
            task's table; NaN for the baseline itself and for columns without a test.
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
    """All cells of a task's tables, the baseline first; with ``extracted`` also the metrics of the
    answers taken out of the texts (a text without an answer stays as it is)."""
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
    """A metric's rows by method and draw; untested where another column has the same test."""

    table: str
    metric: Metric
    rows: dict[str, list[Array]]
    users: tuple[str, ...]
    tested: bool = True


def _cell(task: str, column: _Column, method: str, seed: int) -> Cell:
    metric, draws = column.metric, column.rows[method]
    baseline = next(iter(column.rows.values()))
    value, base = (float(np.mean([metric.aggregate(r) for r in x])) for x in (draws, baseline))
    low = high = p = official = float("nan")
    alone = len(draws) == 1
    if all(np.isfinite(rows).all() for rows in draws):
        if alone:
            estimate = interval(draws[0], metric, column.users)
        else:
            estimate = over_draws(draws, [], metric, column.users)
        low, high = estimate.low, estimate.high
        if column.tested and draws is not baseline and np.isfinite(baseline).all():
            if alone and len(baseline) == 1:
                p = paired_test(draws[0], baseline[0], metric, column.users, seed=seed)
            else:
                p = over_draws(draws, baseline, metric, column.users).p
    better = value != base and (value > base) == metric.higher_is_better
    if metric.resampled:
        official = float(np.mean([metric.official(rows) for rows in draws]))
    what = (task, column.table, method, metric.name, metric.higher_is_better)
    return Cell(*what, value, low, high, p, better, len(draws[0]), official)


def _texts(measured: Measured, extracted: bool) -> list[_Column]:
    known = {m: [r for r in rs if r.reference is not None] for m, rs in measured.texts.items()}
    if not any(known.values()):
        return []
    users = tuple(r.user_id for r in next(iter(known.values())))
    answers = answers_of(measured.task)
    tables = {"texts": {m: [r.prediction for r in records] for m, records in known.items()}}
    if extracted:
        tables["extracted answers"] = {
            m: [text if (a := answers.extract(text)) is None else a for text in texts]
            for m, texts in tables["texts"].items()
        }
    columns = []
    for table, texts in tables.items():
        scores = {
            m: sample_scores(measured.task, texts[m], [str(r.reference) for r in records])
            for m, records in known.items()
        }
        for metric in answers.metrics:
            rows = {
                m: [scores[draw][metric.name] for draw in draws]
                for m, draws in measured.methods.items()
            }
            columns.append(_Column(table, metric, rows, users))
    return columns


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
            (Metric("perplexity", False, outer=np.exp), own, False),
            (Metric("specificity"), specific, False),
            (Metric("its change"), change(specific), True),
        )
    ]


def extraction_counts(measured: Measured) -> dict[str, dict[str, int]]:
    """For each method, in how many texts an answer had to be extracted, and how many have none."""
    counts, extract = {}, answers_of(measured.task).extract
    for method, records in measured.texts.items():
        found = [(extract(r.prediction), r.prediction.strip()) for r in records]
        counts[method] = {
            "extracted": sum(answer not in (None, text) for answer, text in found),
            "failed": sum(answer is None for answer, _ in found),
        }
    return counts


def costs(measured: Measured) -> dict[str, dict[str, float]]:
    """For each method, mean seconds a sample for prompt and decoding, and tokens written."""
    fields = ("seconds", "prompt_seconds", "new_tokens")
    return {
        method: {f: float(np.mean([getattr(r, f) for r in records])) for f in fields}
        for method, records in measured.texts.items()
    }
