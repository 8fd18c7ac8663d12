"""Retrieval: Okapi scores against the written-out formula, queries and corpora of the tasks."""

import math
import random
import re

import numpy as np
import pytest

from prefheads.data import retrieve as retrieval
from prefheads.data.retrieve import okapi_scores, retrieve
from prefheads.errors import DataError

CORPUS = [
    text.split()
    for text in ("the cat sat on the mat", "the dog", "a cat and a dog and the bird", "the fish")
]


def reference_score(query: list[str], document: list[str], corpus=CORPUS) -> float:
    """BM25-Okapi, one sum as it is written in the literature, with the floor of a quarter mean."""

    def raw(word: str) -> float:
        n = sum(word in d for d in corpus)
        return math.log((len(corpus) - n + 0.5) / (n + 0.5))

    vocabulary = {word for d in corpus for word in d}
    floor = 0.25 * sum(raw(word) for word in vocabulary) / len(vocabulary)
    mean_length = sum(len(d) for d in corpus) / len(corpus)
    score = 0.0
    for word in query:
        if word in vocabulary:
            idf = raw(word) if raw(word) >= 0 else floor
            tf = document.count(word)
            length = 1 - 0.75 + 0.75 * len(document) / mean_length
            score += idf * tf * 2.5 / (tf + 1.5 * length)
    return score


@pytest.mark.parametrize("query", ["bird", "the", "cat dog", "the the fish zebra", "zebra", ""])
def test_scores_are_okapi(query):
    got = okapi_scores(query.split(), CORPUS)
    assert got.tolist() == pytest.approx([reference_score(query.split(), d) for d in CORPUS])


def test_ranking_of_random_profiles_is_that_of_the_formula():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(30)]
    for _ in range(20):
        texts = [" ".join(rng.choices(words, k=rng.randint(1, 20))) for _ in range(12)]
        query = " ".join(rng.choices(words, k=6))
        corpus = [text.split() for text in texts]
        score = {text: reference_score(query.split(), text.split(), corpus) for text in texts}
        found = retrieve("LaMP-7", f"tweet: {query}", items(*texts), 5)
        got = [score[item["text"]] for item in found]
        assert got == pytest.approx(sorted(score.values(), reverse=True)[:5])


def test_common_word_gets_the_floor_not_a_negative_weight():
    assert okapi_scores(["the"], CORPUS).min() > 0


def test_documents_without_words_score_nothing():
    assert okapi_scores(["a"], [[], []]).tolist() == [0, 0]


def items(*texts: str) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


def test_best_item_comes_first_and_k_are_kept():
    profile = items("nothing here", "green tea is fine", "green tea green tea", "else", "more")
    found = retrieve("LaMP-7", "Paraphrase: green tea", profile, 2)
    assert found == [profile[2], profile[1]]


def test_of_equal_scores_the_later_item_comes_first():
    profile = items(*(f"unrelated{i}" for i in range(40)))
    assert retrieve("LaMP-7", "Tweet: zebra", profile, 3) == profile[:-4:-1]


FIELDS = (
    *("title", "abstract", "description", "text"),
    *("overall", "summary", "reviewText", "content"),
)


@pytest.mark.parametrize(
    ("task", "input", "searched"),
    [
        ("LaMP-1", 'with the title "own", which? [1]: "key" [2]: "two"', {"title", "abstract"}),
        ("LaMP-1", 'with the title "own", which? [1]: "one" [2]: "key"', {"title", "abstract"}),
        ("LaMP-1", 'with the title "key", which? [1]: "one" [2]: "two"', set()),
        ("LaMP-2", "tags: key description: key", {"description"}),
        ("LaMP-3", "Score: review: key", {"text"}),
        ("LaMP-4", "a key: headline for the article: key", {"title", "text"}),
        ("LaMP-5", "abstract of a paper: key", {"title", "abstract"}),
        ("LaMP-6", "email: key", {"text"}),
        ("LaMP-7", "tweet: key", {"text"}),
        ("LongLaMP-1", "email: key", {"text"}),
        ("LongLaMP-2", 'title "other" using the following items: key', {"title", "abstract"}),
        ("LongLaMP-2", 'title "key" using the following items: other', set()),
        ("LongLaMP-3", "key", {"overall", "summary", "description", "reviewText"}),
        ("LongLaMP-4", "about: key", {"summary", "content"}),
        ("LaMP-4", "key before the article: other", set()),
    ],
)
def test_query_and_searched_fields(task, input, searched):
    for field in FIELDS:
        fillers = [{f: f"{f}{i}" for f in FIELDS} for i in range(20)]
        wanted = {f: "hit" for f in FIELDS} | {field: "key"}
        found = retrieve(task, input, [wanted, *fillers], 1)
        assert (found == [wanted]) == (field in searched)


def test_recent_puts_the_latest_date_first():
    profile = [{"text": t, "date": d} for t, d in [("b", "2012-02-10"), ("c", "2012-10-2")]]
    profile.append({"text": "a", "date": "2011-12-31"})
    assert [i["text"] for i in retrieve("LaMP-7", "x", profile, 2, "recent")] == ["c", "b"]


class Vowels:
    """Encodes a text as the shares of its vowels."""

    def __init__(self, name):
        self.name = name

    def embed(self, profiles):
        texts = [" ".join(item["text"] for item in profile) for profile in profiles]
        assert all(text.strip() for text in texts)
        vectors = np.array([[text.count(v) for v in "aeiou"] for text in texts], float)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def vowels(monkeypatch):
    monkeypatch.setattr("prefheads.users.embed.ProfileEncoder", Vowels)
    retrieval._encoder.cache_clear()
    yield
    retrieval._encoder.cache_clear()


def test_dense_ranks_by_cosine(vowels):
    profile = items("banana", "kiwi", "   ", "baaaad beet", "bee")
    found = retrieve("LaMP-7", "tweet: a e a", profile, 4, "dense", encoder="any")
    assert [item["text"] for item in found] == ["baaaad beet", "banana", "bee", "kiwi"]
    assert retrieve("LaMP-7", "tweet: a", profile, 9, "dense")[-1]["text"] == "   "


def test_random_depends_on_example_and_seed_alone():
    profile = items(*(str(i) for i in range(50)))
    draw = {
        (key, seed): retrieve("LaMP-7", "x", profile, 5, "random", key=key, seed=seed)
        for key in "ab"
        for seed in (0, 1)
    }
    assert len({str(found) for found in draw.values()}) == 4
    assert all(len({item["text"] for item in found}) == 5 for found in draw.values())
    assert draw["a", 0] == retrieve("LaMP-7", "y", profile, 5, "random", key="a")
    everything = retrieve("LaMP-7", "x", profile, 99, "random")
    assert sorted(map(str, everything)) == sorted(map(str, profile))


def test_all_keeps_the_profile():
    profile = items("a", "b", "c")
    assert retrieve("LaMP-7", "no colon", profile, 1, "all") == profile


@pytest.mark.parametrize(
    ("task", "input", "method", "message"),
    [
        ("LaMP-4", "no marker", "bm25", 'the input has no "article:"'),
        ("LaMP-1", 'only "one" title', "bm25", "two candidates"),
        ("LaMP-7", "a: b", "best", "unknown retrieval 'best': use one of bm25, dense, recent"),
        ("LaMP-7", "a: ", "dense", "the input is empty where retrieval"),
        ("LaMP-7", "a: b", "recent", 'profile[0] lacks the field "date"'),
    ],
)
def test_what_cannot_be_done_is_said(task, input, method, message):
    profile = [{"title": "t", "abstract": "a", "text": "x"}]
    with pytest.raises(DataError, match=re.escape(message)):
        retrieve(task, input, profile, 5, method)


def test_malformed_date_is_an_error():
    with pytest.raises(DataError, match=r"not a date.*'May'"):
        retrieve("LaMP-7", "a: b", [{"text": "x", "date": "May"}], 1, "recent")
