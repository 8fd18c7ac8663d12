"""The metrics of the tasks against plain computations of their definitions."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from support.official import LABELS, official, plain_meteor, plain_rouge

from prefheads.errors import ArtifactError, DataError
from prefheads.tasks.answers import answers_of
from prefheads.tasks.metrics import (
    MetricWarning,
    aligned,
    evaluate,
    read_predictions,
    sample_scores,
    write_predictions,
)

NASTY = [
    *("", " \n\t ", "wrong", "100", "five", "nan", "-inf", "1e200", "...", "?!", "[1]", "[3]", "2"),
    *("Ünïcödé 日本語 🎉", "word " * 800, "9" * 5000, "Comedy", " comedy\n", "3.5", "\x00", "it's"),
]
GENERATION = ("LaMP-4", "LaMP-5", "LaMP-6", "LaMP-7", "LongLaMP-2", None)
WORDS = "the quick fast cat cats feline sat sits dog ran running on mat car automobile"
VOCABULARY = WORDS.split()


def samples(task: str | None, n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Predictions, good and nasty, and golds of a task."""
    rng = np.random.default_rng(seed)
    if task in LABELS:
        answers = list(LABELS[task])
    elif task == "LaMP-3":
        answers = list("12345")
    else:
        answers = [" ".join(rng.choice(VOCABULARY, rng.integers(1, 12))) for _ in range(n)]
    golds = [str(gold) for gold in rng.choice(answers, n)]
    kinds = [NASTY, answers, golds]
    predictions = []
    for i, kind in enumerate(rng.integers(0, 3, n)):
        predictions.append(golds[i] if kind == 2 else str(rng.choice(kinds[kind])))
    return predictions, golds


# Classification


def plain_f1(labels: tuple[str, ...], predictions: list[str], golds: list[str]) -> float:
    scores = []
    for label in labels:
        both = sum(p.strip() == g == label for p, g in zip(predictions, golds, strict=True))
        predicted = sum(p.strip() == label for p in predictions)
        precision = both / predicted if predicted else 0
        recall = both / golds.count(label) if label in golds else 0
        scores.append(2 * precision * recall / (precision + recall) if both else 0)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_classification_is_exact_match_and_f1_over_all_labels(task: str, n: int):
    labels = LABELS[task]
    predictions, golds = samples(task, n, seed=n)
    scores = evaluate(task, predictions, golds)
    index = [labels.index(p.strip()) if p.strip() in labels else -1 for p in predictions]
    gold = [labels.index(g) for g in golds]
    assert scores["accuracy"] == pytest.approx(accuracy_score(gold, index))
    assert scores["f1"] == pytest.approx(plain_f1(labels, predictions, golds))
    library = f1_score(gold, index, labels=range(len(labels)), average="macro", zero_division=0)
    assert scores["f1"] == pytest.approx(library)


def test_labels_are_compared_as_they_are():
    assert evaluate("LaMP-2", [" comedy\n", "Comedy", "comedy."], ["comedy"] * 3) == {
        "accuracy": pytest.approx(1 / 3),
        "f1": pytest.approx(0.5 / 15),  # precision 1, recall 1/3; the other labels never occur
    }
    assert evaluate("LaMP_1", ["1", "[2]"], ["[1]", "[2]"])["accuracy"] == 0.5


def test_the_tags_are_the_benchmarks_fifteen():
    assert len(set(LABELS["LaMP-2"])) == 15
    assert {"sci-fi", "dark comedy", "thought-provoking", "true story"} <= set(LABELS["LaMP-2"])


# Ratings


def plain_errors(predictions: list[str], golds: list[str]) -> list[float]:
    errors = []
    for prediction, gold in zip(predictions, golds, strict=True):
        worst = max(abs(1 - float(gold)), abs(5 - float(gold)))
        try:
            error = abs(float(prediction) - float(gold))
        except ValueError:
            error = worst
        errors.append(error if math.isfinite(error) else worst)
    return errors


def test_ratings_are_absolute_and_squared_distances():
    predictions, golds = samples("LaMP-3", 200)
    predictions = ["4.5" if p == "1e200" else p for p in predictions]
    errors = plain_errors(predictions, golds)
    assert {"five", "nan", "100", "", "9" * 5000} <= set(predictions)
    scores = evaluate("LaMP-3", predictions, golds)
    assert scores["mae"] == pytest.approx(sum(errors) / 200)
    assert scores["rmse"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / 200))


@pytest.mark.parametrize(
    ("prediction", "gold", "error"),
    [
        ("five", "1", 4),
        ("five", "5", 4),  # not read as a word
        ("", "3", 2),
        ("nan", "4", 3),
        ("inf", "2", 3),
        ("100", "5", 95),  # a number is taken as it is
        (" 4.5\n", "4", 0.5),
    ],
)
def test_rating_of_one_text(prediction: str, gold: str, error: float):
    assert evaluate("LaMP-3", [prediction], [gold]) == {"mae": error, "rmse": error}


def test_numbers_beyond_all_bounds_stay_finite():
    assert all(math.isfinite(value) for value in evaluate("LaMP-3", ["1e308"], ["1"]).values())


# Generation


@pytest.mark.parametrize("task", GENERATION)
def test_rouge_is_unigram_and_subsequence_overlap(task: str | None):
    predictions, golds = samples(task, 40, seed=1)
    rows = sample_scores(task, predictions, golds)
    expected = [plain_rouge(p, g) for p, g in zip(predictions, golds, strict=True)]
    assert rows["rouge-1"].tolist() == pytest.approx([one for one, _ in expected])
    assert rows["rouge-L"].tolist() == pytest.approx([longest for _, longest in expected])


def test_meteor_aligns_words_then_stems_then_synonyms():
    rng = np.random.default_rng(2)
    a, b = ([" ".join(rng.choice(VOCABULARY, rng.integers(1, 9))) for _ in range(60)] for _ in "ab")
    expected = [plain_meteor(p, g) for p, g in zip(a, b, strict=True)]
    assert sample_scores("LaMP-4", a, b)["meteor"].tolist() == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:rouge-1 and rouge-L see nothing")
@pytest.mark.parametrize(
    ("prediction", "gold", "score"),
    [
        ("", "a cat", 0),
        ("a cat", "", 0),
        ("", "", 0),
        ("zzz yyy", "a cat", 0),
        ("...", "...", 0.5),
        ("A Cat", "a cat", 1 - 0.5 / 8),  # one chunk of two words
        ("cats", "cat", 0.5),  # the same stem
        ("quick", "fast", 0.5),  # synonyms
        ("cat zzz", "cat", 0.5 / (0.9 * 0.5 + 0.1) * 0.5),  # precision 1/2, recall 1
        ("He left. She stayed!", "he left . she stayed !", 1 - 0.5 / 216),  # sentences are split
        ("Dr. No met Mr. Smith.", "dr. no met mr. smith .", 1 - 0.5 / 216),  # not at abbreviations
        ("don't", "do n't", 1 - 0.5 / 8),
        ("日本語 🎉", "日本語 🎉", 1 - 0.5 / 8),
    ],
)
def test_meteor_in_closed_form(prediction: str, gold: str, score: float):
    assert evaluate("LaMP-7", [prediction], [gold])["meteor"] == pytest.approx(score)


def test_what_generation_scores_depend_on_is_told():
    facts = answers_of("LaMP-4").prepare()
    assert facts["wordnet"] == "3.0" and "punkt" in facts["sentences"]
    assert answers_of("LaMP-1").prepare() == answers_of("LaMP-3").prepare() == {}


# What the benchmark's own evaluation prints


@pytest.mark.parametrize("task", [*LABELS, "LaMP-3", "LaMP-4", "LaMP-7"])
def test_the_official_evaluation_says_the_same(task: str):
    predictions, golds = samples(task, 60, seed=7)
    numbers = ("nan", "-inf", "1e200", "9" * 5000)  # there the official one breaks down
    predictions = [
        "2" if task == "LaMP-3" and p in numbers else p if p.isascii() or task in LABELS else "cat"
        for p in predictions
    ]
    if task not in {*LABELS, "LaMP-3"}:  # words between spaces, as the references need them
        predictions = [" ".join(re.findall("[a-z]+", p.lower())) or "a" for p in predictions]
    assert evaluate(task, predictions, golds) == pytest.approx(official(task, predictions, golds))


def test_the_official_rouge_is_another_figure_and_leaves_the_generator_alone():
    rows = np.random.default_rng(0).random(31) ** 3
    rouge = answers_of("LaMP-4").metrics[0]
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    first = rouge.official(rows)
    assert np.array_equal(np.random.random(3), expected)
    assert first == rouge.official(rows) and first != rouge.aggregate(rows)
    assert first == pytest.approx(rows.mean(), abs=0.01)
    assert rouge.official(np.full(5, 0.25)) == 0.25


# All tasks


@pytest.mark.parametrize("task", [*LABELS, "LaMP-3", *GENERATION])
def test_metrics_are_functions_of_rows(task: str | None):
    predictions, golds = samples(task, 30, seed=3)
    rows = sample_scores(task, predictions, golds)
    drawn = np.random.default_rng(4).integers(0, 30, 30)
    again = evaluate(task, [predictions[i] for i in drawn], [golds[i] for i in drawn])
    known = [metric.name for metric in answers_of(task).metrics]
    assert known == list(rows) == list(again)[: len(known)]
    for metric in answers_of(task).metrics:
        assert len(rows[metric.name]) == 30
        assert metric.aggregate(rows[metric.name][drawn]) == pytest.approx(again[metric.name])


@pytest.mark.parametrize("task", [*LABELS, "LaMP-3", *GENERATION])
def test_golds_as_predictions_are_best(task: str | None):
    _, golds = samples(task, 30)
    for metric in answers_of(task).metrics:
        best = metric.aggregate(sample_scores(task, golds, golds)[metric.name])
        worse = metric.aggregate(sample_scores(task, [""] * 30, golds)[metric.name])
        assert best > worse if metric.higher_is_better else best < worse


@pytest.mark.parametrize(
    ("task", "predictions", "golds", "message"),
    [
        ("LaMP-1", ["[1]"], ["[3]"], "gold 0: '\\[3\\]' is none of the labels"),
        ("LaMP-3", ["1", "2"], ["1", "nan"], "gold 1: 'nan' is no rating"),
        ("LaMP-4", ["a"], ["a", "b"], "1 predictions, 2 golds"),
        ("LaMP-4", [], [], "at least one"),
        ("LaMP-9", ["a"], ["a"], "unknown task"),
    ],
)
def test_bad_input_is_refused(task: str, predictions: list[str], golds: list[str], message: str):
    with pytest.raises(DataError, match=message):
        sample_scores(task, predictions, golds)


# Files


def test_predictions_are_written_as_the_official_evaluation_reads_them(tmp_path: Path):
    path = tmp_path / "predictions.json"
    write_predictions(path, "LaMP-4", ["7", "3"], ["Ä title", ""])
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "task": "LaMP_4",
        "golds": [{"id": "7", "output": "Ä title"}, {"id": "3", "output": ""}],
    }
    assert read_predictions(path) == ("LaMP-4", {"7": "Ä title", "3": ""})
    write_predictions(path, "my-task", ["1"], ["x"])
    assert read_predictions(path) == ("my-task", {"1": "x"})


@pytest.mark.parametrize(("ids", "texts"), [(["1", "1"], ["a", "b"]), (["1"], [])])
def test_ids_must_be_different_and_as_many_as_predictions(
    tmp_path: Path, ids: list[str], texts: list[str]
):
    with pytest.raises(DataError, match="one prediction for each"):
        write_predictions(tmp_path / "p.json", "LaMP-4", ids, texts)
    with pytest.raises(ArtifactError):
        write_predictions(tmp_path / "no" / "p.json", "LaMP-4", [], [])


def test_predictions_are_brought_into_the_order_of_the_golds():
    assert aligned({"b": "1", "a": "2"}, {"a": "x", "b": "y"}) == (
        ["a", "b"],
        ["2", "1"],
        ["x", "y"],
    )
    with pytest.raises(DataError, match=r"1 without a prediction, 0 .* no prediction for 'b'"):
        aligned({"a": "2"}, {"a": "x", "b": "y"})
    with pytest.raises(DataError, match=r"0 without a prediction, 1 .* no gold for 'c'"):
        aligned({"a": "2", "c": "1"}, {"a": "x"})


@pytest.mark.parametrize("text", ["Привет, мир!", "我喜欢茶", "안녕 세상"])
def test_texts_that_rouge_does_not_see_are_told(text):
    with pytest.warns(MetricWarning, match="rouge-1 and rouge-L see nothing of 1 of the 2") as told:
        found = evaluate(None, [text, "the cat"], [text, "the cat"])
    assert found["rouge-1"] == found["rouge-L"] == 0.5  # 0 and 1, as the official scorer has it
    assert len(told) == 1 and str(told[0].message) == answers_of("LaMP-4").caveat([text, "the cat"])


def test_texts_that_rouge_sees_get_no_caveat():
    seen = ["the cat", "café", "5 кошек", "", " ", "?!", "🍵", "42"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(None, ["Привет"] * len(seen), seen)  # a prediction that shares nothing is 0
    assert answers_of("LaMP-3").caveat(["Привет"]) == answers_of("LaMP-2").caveat(["Привет"]) == ""
