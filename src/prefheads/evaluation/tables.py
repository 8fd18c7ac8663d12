"""From measurements to tables: values with intervals, and paired tests against the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prefheads.evaluation.records import Record
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
        extracted: Add the metrics of the answers that ``answers_of(task).extract``
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
        for metric in answers_of(measured.task).metrics:
            rows = {
                m: [scores[draw][metric.name] for draw in draws]
                for m, draws in measured.methods.items()
            }
            columns.append(_Column(table, metric, rows, users))
    return columns


def _strict(record: Record) -> str:
    return record.prediction


def _answer(record: Record) -> str:
    answer = answers_of(record.task).extract(record.prediction)
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
        answers = [answers_of(r.task).extract(r.prediction) for r in records]
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
