"""What the answers of a task are: how they are scored, extracted, and how long they may be.

Every metric is a function of the mean of one row a sample: a mean itself (accuracy, MAE, ROUGE,
METEOR), the root of a mean (RMSE), or a ratio of mean counts (macro-F1). So intervals and paired
tests (:mod:`prefheads.evaluation.significance`) work on rows, and need not score a text twice.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prefheads.data.task import task_of
from prefheads.errors import DataError
from prefheads.optional import require
from prefheads.stats import Array
from prefheads.tasks import extract, wording, wordnet

Kind = Literal["Gen.", "Cls.", "Reg."]
Pairs = Sequence[tuple[str, str]]
"""A prediction and its gold for each sample, both stripped."""

# Squares of larger errors overflow; a prediction of so many digits is no rating anyway.
_LARGEST_ERROR = 1e100
_UNIT = (0.0, 1.0)


def _macro_f1(mean: Array) -> Array:
    """Mean over K labels of 2 TP / (predicted + gold), from the rates ``(..., 2 K)`` of both; zero
    for a label that never occurs."""
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
        resampled: Whether the official evaluation prints :func:`tasks.wording.resampled` of it.
    """

    name: str
    higher_is_better: bool = True
    of_mean: Callable[[Array], Array] = np.asarray
    outer: Callable[[Array], Array] = np.asarray
    bounds: tuple[float, float] = (-math.inf, math.inf)
    share: bool = False
    resampled: bool = False

    def aggregate(self, rows: Array) -> float:
        """The metric of samples from their rows, ``(n,)`` or ``(n, k)``."""
        return float(self.outer(self.of_mean(np.asarray(rows, dtype=np.float64).mean(axis=0))))

    def official(self, rows: Array) -> float:
        """The metric as the benchmark's own evaluation prints it; by a fixed seed if resampled."""
        return wording.resampled(rows) if self.resampled else self.aggregate(rows)


class AnswerType(ABC):
    """The answers of a task.

    Attributes:
        kind: Generation, classification or regression.
        metrics: What answers are scored by.
        new_tokens: Tokens that an answer needs; ``None`` for as many as a label or a rating.
    """

    kind: Kind = "Gen."
    metrics: tuple[Metric, ...] = ()
    new_tokens: int | None = None

    @abstractmethod
    def rows(self, pairs: Pairs) -> dict[str, Array]:
        """Rows of every metric, ``(n,)`` or ``(n, k)`` float64 by its name."""

    @abstractmethod
    def extract(self, text: str) -> str | None:
        """The answer within a longer text, in the form that metrics take; ``None`` if none."""

    def problem(self, gold: str) -> str:
        """What is wrong with a stripped gold that cannot be scored; empty if nothing is."""
        return ""

    def prepare(self) -> dict[str, str]:
        """Load what the metrics need, and tell what scores depend on besides the texts; a
        ``ModelError`` if something is not installed."""
        return {}

    def caveat(self, references: Sequence[str]) -> str:
        """A sentence on what a reader of the scores must know; empty if there is nothing."""
        return ""


@dataclass(frozen=True)
class LabelAnswer(AnswerType):
    """One of several labels. A prediction that is no label counts as wrong.

    Rows of accuracy are 1 or 0; those of macro-F1 are counts of every label.

    Attributes:
        labels: As the golds spell them.
        within: Finds the label within a longer text.
    """

    labels: tuple[str, ...]
    within: Callable[[str, Sequence[str]], str | None] = extract.first_label

    kind = "Cls."
    metrics = (
        Metric("accuracy", bounds=_UNIT, share=True),
        Metric("f1", of_mean=_macro_f1, bounds=_UNIT),
    )

    def rows(self, pairs: Pairs) -> dict[str, Array]:
        index = {label: i for i, label in enumerate(self.labels)}
        one_hot: Array = np.eye(len(index) + 1)[:, :-1]  # the last row is for what is no label
        predicted = one_hot[[index.get(prediction, -1) for prediction, _ in pairs]]
        golds = one_hot[[index[gold] for _, gold in pairs]]
        hits = predicted * golds
        return {
            "accuracy": hits.sum(axis=1),
            "f1": np.concatenate([hits, predicted + golds], axis=1),
        }

    def extract(self, text: str) -> str | None:
        return self.within(text, self.labels)

    def problem(self, gold: str) -> str:
        return "" if gold in self.labels else f"is none of the labels {', '.join(self.labels)}"


@dataclass(frozen=True)
class RatingAnswer(AnswerType):
    """A number on a scale from ``low`` to ``high``.

    Rows are the absolute and the squared distance from the gold. Text that is no finite number
    counts as the end of the scale that is farther from the gold (``high`` for one in the middle).
    """

    low: float
    high: float

    kind = "Reg."
    metrics = (
        Metric("mae", False, bounds=(0, math.inf)),
        Metric("rmse", False, np.sqrt, bounds=(0, math.inf)),
    )

    def rows(self, pairs: Pairs) -> dict[str, Array]:
        errors = []
        for prediction, reference in pairs:
            gold, rating = float(reference), _number(prediction)
            if rating is None:
                farther = abs(self.low - gold) > abs(self.high - gold)
                rating = self.low if farther else self.high
            errors.append(min(abs(rating - gold), _LARGEST_ERROR))
        mae = np.array(errors)
        return {"mae": mae, "rmse": mae**2}

    def extract(self, text: str) -> str | None:
        return extract.rating(text)

    def problem(self, gold: str) -> str:
        return "is no rating" if _number(gold) is None else ""


@dataclass(frozen=True)
class TextAnswer(AnswerType):
    """Written text.

    - ROUGE-1, ROUGE-L: F-measure of ``rouge_score`` without stemmer. Its tokenizer keeps the
      letters a-z and digits only.
    - METEOR: NLTK's with alpha 0.9, beta 3, gamma 0.5, on the words of ``word_tokenize``. That
      splits sentences by the trained Punkt model ``punkt_tab``; where it is not installed, Punkt
      runs without a trained model but with common abbreviations. Words then differ only around
      full stops inside a text (:meth:`prepare` tells which one is in use).

    Attributes:
        new_tokens: Tokens that an answer needs: enough for a line by default.
        one_line: Whether answers have one line, so that extraction takes the first.
    """

    new_tokens: int | None = 48
    one_line: bool = False

    kind = "Gen."
    metrics = (
        Metric("rouge-1", bounds=_UNIT, resampled=True),
        Metric("rouge-L", bounds=_UNIT, resampled=True),
        Metric("meteor", bounds=_UNIT),
    )

    def rows(self, pairs: Pairs) -> dict[str, Array]:
        rouge, scores = wording.rouge(), []
        for prediction, reference in pairs:
            overlap = rouge.score(reference, prediction)
            measures = (overlap["rouge1"].fmeasure, overlap["rougeL"].fmeasure)
            scores.append((*measures, wording.meteor(prediction, reference)))
        columns = np.array(scores, dtype=np.float64).T
        return {metric.name: column for metric, column in zip(self.metrics, columns, strict=True)}

    def extract(self, text: str) -> str | None:
        return extract.bare_text(text, self.one_line)

    def prepare(self) -> dict[str, str]:
        """Versions of libraries and of WordNet, and how sentences are split."""
        wording.rouge()
        from importlib.metadata import version

        return {
            "nltk": version("nltk"),
            "rouge-score": version("rouge-score"),
            "wordnet": str(wordnet.load().get_version()),
            "sentences": wording.sentence_splitter()[1],
        }

    def caveat(self, references: Sequence[str]) -> str:
        """Of how many golds ROUGE sees nothing."""
        tokens = require("rouge_score.tokenize", "eval").tokenize
        unseen = sum(any(map(str.isalpha, gold)) and not tokens(gold, None) for gold in references)
        if not unseen:
            return ""
        return (
            f"rouge-1 and rouge-L see nothing of {unseen} of the {len(references)} references and "
            "are 0 there, even for equal texts: their official tokenizer keeps the letters a-z and "
            "digits only. Look at the likelihood instead, or at meteor if spaces part the words."
        )


def answers_of(task: str | None) -> AnswerType:
    """The answers of a task; of others texts of any form.

    Raises:
        DataError: A LaMP task that does not exist, or a task whose answers are something else.
    """
    answers = task_of(task).answers
    if answers is None:
        return TextAnswer()
    if not isinstance(answers, AnswerType):
        raise DataError(f"task {task!r}: its answers must be an AnswerType, not {answers!r}")
    return answers


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
