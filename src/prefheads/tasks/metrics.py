"""The metrics of the LaMP tasks, each sample scored as the benchmark's own evaluation does.

It also takes the mean over samples, but for ROUGE, where it prints the median of resampled means:
:func:`evaluate` gives both.

Every metric is a function of the mean of one row a sample: a mean itself (accuracy, MAE, ROUGE,
METEOR), the root of a mean (RMSE), or a ratio of mean counts (macro-F1). So intervals and paired
tests (``prefheads.evaluation.significance``) work on rows, and need not score a text twice.

Both sides are stripped and nothing else is done to them: no lowercasing, no search for the answer
in a longer text. That is a step of its own: ``prefheads.tasks.extract``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefheads.errors import DataError
from prefheads.optional import require
from prefheads.stats import Array
from prefheads.storage import PathLike, write_json
from prefheads.tasks import wording, wordnet
from prefheads.tasks.lamp import read_golds, task_name
from prefheads.tasks.official import resampled

LABELS = {
    "LaMP-1": ("[1]", "[2]"),
    "LaMP-2": (
        "sci-fi",
        "based on a book",
        "comedy",
        "action",
        "twist ending",
        "dystopia",
        "dark comedy",
        "classic",
        "psychology",
        "fantasy",
        "romance",
        "thought-provoking",
        "social commentary",
        "violence",
        "true story",
    ),
}
"""The labels of the classification tasks."""
RATING = "LaMP-3"

# Squares of larger errors overflow; a prediction of so many digits is no rating anyway.
_LARGEST_ERROR = 1e100


class MetricWarning(UserWarning):
    """A metric does not see what texts say."""


def _itself(mean: Array) -> Array:
    return mean


def _root(mean: Array) -> Array:
    return np.asarray(np.sqrt(mean))


def _macro_f1(mean: Array) -> Array:
    """Mean over labels of 2 TP / (predicted + gold), zero for a label that never occurs.

    Args:
        mean: ``(..., 2 K)``: rates of true positives of K labels, then of predicted plus gold ones.
    """
    hits, total = np.split(mean, 2, axis=-1)
    f1 = np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0)
    return np.asarray(f1.mean(axis=-1))


@dataclass(frozen=True)
class Metric:
    """One metric of a task.

    Attributes:
        name: As in result tables.
        higher_is_better: False for errors.
        of_mean: The metric from the mean of the samples' rows, ``(..., *row)`` to ``(...)``.
        outer: Applied to that at last, rising: intervals are drawn on the scale below it.
        bounds: What the metric cannot leave, below ``outer``.
        share: Whether it is the share of samples that are right, rows being 0 or 1.
        resampled: Whether the official evaluation prints :func:`tasks.official.resampled` of it.
    """

    name: str
    higher_is_better: bool = True
    of_mean: Callable[[Array], Array] = _itself
    outer: Callable[[Array], Array] = _itself
    bounds: tuple[float, float] = (-math.inf, math.inf)
    share: bool = False
    resampled: bool = False

    def aggregate(self, rows: Array) -> float:
        """The metric of samples from their rows, ``(n,)`` or ``(n, k)``."""
        return float(self.outer(self.of_mean(np.asarray(rows, dtype=np.float64).mean(axis=0))))

    def official(self, rows: Array) -> float:
        """The metric as the benchmark's own evaluation prints it; by a fixed seed if resampled."""
        return resampled(rows) if self.resampled else self.aggregate(rows)


_UNIT = (0.0, 1.0)
_CLASSIFICATION = (
    Metric("accuracy", bounds=_UNIT, share=True),
    Metric("f1", of_mean=_macro_f1, bounds=_UNIT),
)
_REGRESSION = (
    Metric("mae", False, bounds=(0, math.inf)),
    Metric("rmse", False, _root, bounds=(0, math.inf)),
)
_GENERATION = (
    Metric("rouge-1", bounds=_UNIT, resampled=True),
    Metric("rouge-L", bounds=_UNIT, resampled=True),
    Metric("meteor", bounds=_UNIT),
)
OFFICIAL = ", official"
"""Follows the name of a metric whose official aggregate is not the mean."""


def metrics_of(task: str | None) -> tuple[Metric, ...]:
    """The metrics of a task; of LongLaMP and of any other text task those of generation.

    Raises:
        DataError: A LaMP task that does not exist.
    """
    name = task_name(task) if task else None
    if name in LABELS:
        return _CLASSIFICATION
    return _REGRESSION if name == RATING else _GENERATION


def prepare(task: str | None) -> dict[str, str]:
    """Load what the metrics of a task need, so that a lack of it shows before a long run.

    Returns:
        What the scores depend on besides the texts, for a run's records: versions of libraries and
        of WordNet, and how sentences are split; empty where scores depend on nothing else.

    Raises:
        ModelError: A library or WordNet is not installed.
    """
    if metrics_of(task) is not _GENERATION:
        return {}
    wording.rouge()
    from importlib.metadata import version

    return {
        "nltk": version("nltk"),
        "rouge-score": version("rouge-score"),
        "wordnet": str(wordnet.load().get_version()),
        "sentences": wording.sentence_splitter()[1],
    }


def sample_scores(
    task: str | None, predictions: Sequence[str], references: Sequence[str]
) -> dict[str, Array]:
    """Rows of every metric of a task, one a sample.

    - Accuracy: 1 or 0. Macro-F1: counts of every label, see ``Metric.of_mean``. A prediction that
      is no label counts as wrong.
    - MAE, RMSE: the absolute and the squared distance from the gold rating. Text that is no finite
      number counts as the rating, 1 or 5, that is farther from the gold (5 for a gold of 3).
    - ROUGE-1, ROUGE-L: F-measure of ``rouge_score`` without stemmer. Its tokenizer keeps the
      letters a-z and digits only: golds of other scripts get a ``MetricWarning`` (:func:`caveat`).
    - METEOR: NLTK's with alpha 0.9, beta 3, gamma 0.5, on the words of ``word_tokenize``. That
      splits sentences by the trained Punkt model ``punkt_tab``; where it is not installed, Punkt
      runs without a trained model but with common abbreviations. Words then differ only around
      full stops inside a text (``prepare`` tells which one is in use).

    Args:
        task: Name of the task.
        predictions: n texts.
        references: n gold texts, in the same order.

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
    pairs = [(p.strip(), r.strip()) for p, r in zip(predictions, references, strict=True)]
    name = task_name(task) if task else None
    if name in LABELS:
        return _classification(LABELS[name], pairs)
    if name == RATING:
        return _regression(pairs)
    if note := caveat(task, references):
        warnings.warn(note, MetricWarning, stacklevel=2)
    return _generation(pairs)


def caveat(task: str | None, references: Sequence[str]) -> str:
    """What a reader of the scores must know: of how many golds ROUGE sees nothing.

    Returns:
        A sentence; empty if it sees something of all with letters, or is no metric of the task.

    Raises:
        ModelError: A library is not installed.
    """
    if metrics_of(task) is not _GENERATION:
        return ""
    tokens = require("rouge_score.tokenize", "eval").tokenize
    unseen = sum(any(map(str.isalpha, gold)) and not tokens(gold, None) for gold in references)
    if not unseen:
        return ""
    return (
        f"rouge-1 and rouge-L see nothing of {unseen} of the {len(references)} references and are "
        "0 there, even for equal texts: their official tokenizer keeps the letters a-z and digits "
        "only. Look at the likelihood instead, or at meteor if spaces part the words."
    )


def evaluate(
    task: str | None, predictions: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Every metric of a task over n predictions and their golds; see ``sample_scores``.

    ROUGE comes twice: its mean, and by ``"rouge-1, official"`` what the benchmark's own evaluation
    prints, the median of 1,000 resampled means.
    """
    rows = sample_scores(task, predictions, references)
    metrics = metrics_of(task)
    official = {m.name + OFFICIAL: m.official(rows[m.name]) for m in metrics if m.resampled}
    return {metric.name: metric.aggregate(rows[metric.name]) for metric in metrics} | official


def write_predictions(
    path: PathLike, task: str, ids: Sequence[str], predictions: Sequence[str]
) -> None:
    """Write predictions as the official evaluation reads them, whole or not at all.

    Raises:
        DataError: An id occurs twice, or ids and predictions differ in number.
        ArtifactError: The file cannot be written.
    """
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
    """The task and the text of every id, from a file of predictions or golds.

    Raises:
        DataError: A missing or malformed file.
    """
    return read_golds(Path(path))


def aligned(
    predictions: Mapping[str, str], golds: Mapping[str, str]
) -> tuple[list[str], list[str], list[str]]:
    """Ids, predictions and golds in the order of the golds.

    Raises:
        DataError: Not the same set of ids.
    """
    missing = [id_ for id_ in golds if id_ not in predictions]
    foreign = [id_ for id_ in predictions if id_ not in golds]
    if missing or foreign:
        first = f"no prediction for {missing[0]!r}" if missing else f"no gold for {foreign[0]!r}"
        raise DataError(
            f"ids of predictions and golds differ: {len(missing)} without a prediction, "
            f"{len(foreign)} without a gold (first: {first})"
        )
    return list(golds), [predictions[id_] for id_ in golds], list(golds.values())


def _classification(labels: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, Array]:
    index = {label: i for i, label in enumerate(labels)}
    for i, (_, gold) in enumerate(pairs):
        if gold not in index:
            raise DataError(f"gold {i}: {gold!r} is none of the labels {', '.join(labels)}")
    one_hot: Array = np.eye(len(labels) + 1)[:, :-1]  # the last row is for what is no label
    predicted = one_hot[[index.get(prediction, -1) for prediction, _ in pairs]]
    golds = one_hot[[index[gold] for _, gold in pairs]]
    hits = predicted * golds
    return {
        "accuracy": hits.sum(axis=1),
        "f1": np.concatenate([hits, predicted + golds], axis=1),
    }


def _regression(pairs: Sequence[tuple[str, str]]) -> dict[str, Array]:
    errors = []
    for i, (prediction, reference) in enumerate(pairs):
        gold = _number(reference)
        if gold is None:
            raise DataError(f"gold {i}: {reference!r} is no rating")
        rating = _number(prediction)
        if rating is None:
            rating = 1.0 if abs(1 - gold) > abs(5 - gold) else 5.0
        errors.append(min(abs(rating - gold), _LARGEST_ERROR))
    mae = np.array(errors)
    return {"mae": mae, "rmse": mae**2}


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _generation(pairs: Sequence[tuple[str, str]]) -> dict[str, Array]:
    rouge = wording.rouge()
    scores = []
    for prediction, reference in pairs:
        overlap = rouge.score(reference, prediction)
        scores.append(
            (
                overlap["rouge1"].fmeasure,
                overlap["rougeL"].fmeasure,
                wording.meteor(prediction, reference),
            )
        )
    columns = np.array(scores, dtype=np.float64).T
    return {metric.name: column for metric, column in zip(_GENERATION, columns, strict=True)}
