"""Answers taken out of chatty output."""

from __future__ import annotations

import pytest
from support.official import LABELS

from prefheads.tasks.answers import answers_of


def extract(task: str | None, text: str) -> str | None:
    return answers_of(task).extract(text)


@pytest.mark.parametrize("task", LABELS)
def test_a_label_is_its_own_answer(task: str):
    for label in LABELS[task]:
        assert extract(task, label) == label
        assert extract(task, f"The answer is: {label}.") == label


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The reference is [2], because [2] is closer.", "[2]"),
        ("Both [1] and [2] are related.", None),
        ("[3]", None),
        ("Option 1", None),
        ("", None),
    ],
)
def test_candidate(text: str, answer: str | None):
    assert extract("LaMP_1", text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A Dark Comedy about death", "dark comedy"),
        ("Tag: Sci-Fi", "sci-fi"),
        ("fantasy\n\nIt is no comedy.", "fantasy"),  # the explanation comes after the answer
        ("**based on a book**", "based on a book"),
        ("a story of non-violence and reactions, classical music", None),
        ("romantic", None),
    ],
)
def test_tag(text: str, answer: str | None):
    assert extract("LaMP-2", text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4", "4"),
        ("Rating: 4/5", "4"),
        ("5/5!", "5"),
        ("On a scale of 1 to 5, I would say 3.", "3"),
        ("Out of 5 stars, 2 is fair", "2"),
        ("I give this one 4.0 stars", "4"),
        ("Five stars", "5"),
        ("four", "4"),
        ("100", None),
        ("3.5", None),
        ("0 stars", None),
        ("often alone", None),
        ("", None),
    ],
)
def test_rating(text: str, answer: str | None):
    assert extract("LaMP-3", text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A Plain Headline", "A Plain Headline"),
        ('"A Headline"', "A Headline"),
        ("“A Headline”\n\nThis headline is short.", "A Headline"),
        ("Title: A Headline", "A Headline"),
        ('**Title:** "A Headline"', "A Headline"),
        ("Here is a possible headline for the article:\n\n**A Headline**", "A Headline"),
        ("Sure! Here's the title: A Headline", "A Headline"),
        ("Sure!\nSubject line: Hello", "Hello"),
        ('"Yes" and "No"', '"Yes" and "No"'),
        ("Tesla Review: It Flies", "Tesla Review: It Flies"),
        ("Here's How: Five Ways", "Here's How: Five Ways"),
        ("sure, I'll be there: soon", "sure, I'll be there: soon"),
        ("'tis the season", "'tis the season"),
        ('"', '"'),
        ('""', None),
        ("Title:", None),
        (" \n ", None),
    ],
)
def test_text_of_one_line(text: str, answer: str | None):
    assert extract("LaMP-4", text) == answer


@pytest.mark.parametrize("task", ["LongLaMP-2", None])
def test_longer_texts_keep_their_lines(task: str | None):
    assert extract(task, "Here is the abstract:\n\nOne.\n\nTwo.\n") == "One.\n\nTwo."


@pytest.mark.parametrize("task", ["LaMP-1", "LaMP-2", "LaMP-3", "LaMP-7", None])
def test_an_answer_is_final(task: str | None):
    for text in ("Sure! Here is the tweet: '4 of [1], a comedy'", "I say 3.", "[1] horror comedy"):
        answer = extract(task, text)
        assert answer is None or extract(task, answer) == answer


def test_long_texts_take_no_long():
    for text in (
        "here is " * 20_000,
        "*" * 50_000,
        '"' * 50_000,
        "sure " * 20_000,
        "1 to " * 20_000,
    ):
        for task in ("LaMP-1", "LaMP-2", "LaMP-3", "LaMP-4"):
            extract(task, text)
