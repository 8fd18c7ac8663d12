"""The benchmark's own evaluation, written again from its formulas, slowly and without its code."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import NLTKWordTokenizer

from prefheads.tasks import wordnet
from prefheads.tasks.answers import LabelAnswer, answers_of
from prefheads.tasks.wording import sentence_splitter


def plain_rouge(prediction: str, gold: str) -> tuple[float, float]:
    a, b = (re.findall("[a-z0-9]+", text.lower()) for text in (prediction, gold))

    def f(common: int) -> float:
        return 2 * common / (len(a) + len(b)) if common else 0.0

    row = [0] * (len(b) + 1)
    for word in a:
        previous, row = row, [0]
        for j, other in enumerate(b):
            row.append(previous[j] + 1 if word == other else max(previous[j + 1], row[j]))
    return f((Counter(a) & Counter(b)).total()), f(row[-1])


@cache
def stem(word: str) -> str:
    return PorterStemmer().stem(word)


@cache
def synonyms(word: str) -> frozenset[str]:
    lemmas = (name for synset in wordnet.load().synsets(word) for name in synset.lemma_names())
    return frozenset(lemmas) | {word}


def plain_meteor(prediction: str, gold: str) -> float:
    """METEOR of texts whose words stand between spaces (Lavie and Agarwal 2007).

    NLTK looks synonyms up of what stemming leaves, not of the words.
    """
    a, b = prediction.lower().split(), gold.lower().split()
    match: dict[int, int] = {}
    for same in (
        lambda x, y: x == y,
        lambda x, y: stem(x) == stem(y),
        lambda x, y: stem(y) in synonyms(stem(x)),
    ):
        for i in reversed(range(len(a))):
            for j in reversed(range(len(b))):
                if i not in match and j not in match.values() and same(a[i], b[j]):
                    match[i] = j
    if not match:
        return 0.0
    precision, recall = len(match) / len(a), len(match) / len(b)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    chunks = sum(match.get(i - 1, -9) != j - 1 for i, j in match.items())
    return mean * (1 - 0.5 * (chunks / len(match)) ** 3)


def words(text: str) -> list[str]:
    """Of every sentence; which splitter there is depends on what is installed."""
    return [w for s in sentence_splitter()[0](text) for w in NLTKWordTokenizer().tokenize(s)]


LABELS = {
    task: answers.labels
    for task in ("LaMP-1", "LaMP-2")
    if isinstance(answers := answers_of(task), LabelAnswer)
}


def official(task: str, predictions: list[str], golds: list[str]) -> dict[str, float]:
    """Slowly, over the whole corpus at once; ROUGE is drawn anew a thousand times."""
    predictions, golds = [p.strip() for p in predictions], [g.strip() for g in golds]
    n = len(golds)
    if task in LABELS:
        number = {label: i for i, label in enumerate(LABELS[task])}
        told, gold = [number.get(p, -1) for p in predictions], [number[g] for g in golds]
        f1 = []
        for label in range(len(number)):
            hits = sum(t == g == label for t, g in zip(told, gold, strict=True))
            wrong = sum(t == label != g for t, g in zip(told, gold, strict=True))
            missed = sum(g == label != t for t, g in zip(told, gold, strict=True))
            f1.append(2 * hits / (2 * hits + wrong + missed) if hits else 0.0)
        right = sum(t == g for t, g in zip(told, gold, strict=True))
        return {"accuracy": right / n, "f1": sum(f1) / len(f1)}
    if task == "LaMP-3":
        errors = []
        for prediction, gold in zip(predictions, map(float, golds), strict=True):
            try:
                errors.append(float(prediction) - gold)
            except ValueError:
                errors.append((1.0 if abs(1 - gold) > abs(5 - gold) else 5.0) - gold)
        return {
            "mae": sum(map(abs, errors)) / n,
            "rmse": (sum(error * error for error in errors) / n) ** 0.5,
        }
    scores = [plain_rouge(p, g) for p, g in zip(predictions, golds, strict=True)]
    meteor = [
        plain_meteor(" ".join(words(p)), " ".join(words(g)))
        for p, g in zip(predictions, golds, strict=True)
    ]
    found = {}
    for i, name in enumerate(("rouge-1", "rouge-L")):
        own = np.array([score[i] for score in scores])
        random = np.random.RandomState(0)
        means = [own[random.choice(np.arange(n), size=n)].mean() for _ in range(1000)]
        found |= {name: own.mean(), f"{name}, official": float(np.median(means))}
    return found | {"meteor": sum(meteor) / n}
