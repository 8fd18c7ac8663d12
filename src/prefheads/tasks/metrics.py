"""Scores of predictions, each sample scored as the task's own evaluation does.

The benchmarks also take the mean over samples, but for ROUGE, where they print the median of
resampled means: :func:`evaluate` gives both. Predictions and golds are stripped and nothing else is
done to them: no lowercasing, no search for the answer in a longer text. That is a step of its own:
``answers_of(task).extract``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefheads.data.task import task_name
from prefheads.errors import DataError
from prefheads.stats import Array
from prefheads.storage import PathLike, write_json
from prefheads.tasks.answers import answers_of
from prefheads.tasks.lamp import read_golds

OFFICIAL = ", official"
"""Follows the name of a metric whose official aggregate is not the mean."""


class MetricWarning(UserWarning):
    """A metric does not see what texts say."""


def sample_scores(
    task: str | None, predictions: Sequence[str], references: Sequence[str]
) -> dict[str, Array]:
    """Rows of every metric of a task, one a sample.

    The types of answers say what rows hold (:mod:`prefheads.tasks.answers`). Golds of which ROUGE
    sees nothing get a ``MetricWarning``.

    Returns:
        ``(n,)`` or ``(n, k)`` float64 for each metric's name.

    Raises:
        DataError: No samples, not one gold for each prediction, or a gold that is no label or
            rating of the task.
        ModelError: A library or WordNet is not installed.
    """
    if len(predictions) != len(references) or not references:
        raise DataError(
            f"scores need one gold for each prediction, and at least one: "
            f"{len(predictions)} predictions, {len(references)} golds"
        )
    answers = answers_of(task)
    pairs = [(p.strip(), r.strip()) for p, r in zip(predictions, references, strict=True)]
    for i, (_, gold) in enumerate(pairs):
        if problem := answers.problem(gold):
            raise DataError(f"gold {i}: {gold!r} {problem}")
    if note := answers.caveat(references):
        warnings.warn(note, MetricWarning, stacklevel=2)
    return answers.rows(pairs)


def evaluate(
    task: str | None, predictions: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Every metric of a task over n predictions and their golds; see ``sample_scores``.

    ROUGE comes twice: its mean, and by ``"rouge-1, official"`` what the benchmark's own evaluation
    prints, the median of 1,000 resampled means.
    """
    rows, metrics = sample_scores(task, predictions, references), answers_of(task).metrics
    official = {m.name + OFFICIAL: m.official(rows[m.name]) for m in metrics if m.resampled}
    return {metric.name: metric.aggregate(rows[metric.name]) for metric in metrics} | official


def write_predictions(
    path: PathLike, task: str, ids: Sequence[str], predictions: Sequence[str]
) -> None:
    """Write predictions as the official evaluation reads them, whole or not at all; a ``DataError``
    unless there is one for each of different ids."""
    if len(ids) != len(predictions) or len(set(ids)) != len(ids):
        raise DataError(
            f"{path}: needs one prediction for each of the different ids "
            f"({len(ids)} ids, {len(set(ids))} different ones, {len(predictions)} predictions)"
        )
    name = task_name(task)
    golds = [{"id": id_, "output": output} for id_, output in zip(ids, predictions, strict=True)]
    official = name.replace("-", "_") if name.startswith("LaMP-") else name
    write_json(path, {"task": official, "golds": golds})


def read_predictions(path: PathLike) -> tuple[str, dict[str, str]]:
    """The task and the text of every id, from a file of predictions or golds; a ``DataError`` if it
    is missing or malformed."""
    return read_golds(Path(path))


def aligned(
    predictions: Mapping[str, str], golds: Mapping[str, str]
) -> tuple[list[str], list[str], list[str]]:
    """Ids, predictions and golds in the order of the golds; a ``DataError`` if ids differ."""
    missing = [id_ for id_ in golds if id_ not in predictions]
    foreign = [id_ for id_ in predictions if id_ not in golds]
    if missing or foreign:
        first = f"no prediction for {missing[0]!r}" if missing else f"no gold for {foreign[0]!r}"
        raise DataError(
            f"ids of predictions and golds differ: {len(missing)} without a prediction, "
            f"{len(foreign)} without a gold (first: {first})"
        )
    return list(golds), [predictions[id_] for id_ in golds], list(golds.values())
