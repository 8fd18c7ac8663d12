"""Choosing the profile items that go into a prompt, as the LaMP benchmark does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from prefheads.data.task import Item, require_fields, task_of
from prefheads.errors import DataError
from prefheads.types import Retrieval

if TYPE_CHECKING:
    from prefheads.users.embed import ProfileEncoder


def retrieve(
    task: str | None,
    input: str,
    profile: Sequence[Item],
    k: int,
    method: Retrieval = "bm25",
    *,
    key: str = "",
    seed: int = 0,
    encoder: str = "bundled",
) -> list[Item]:
    """The ``k`` profile items that matter most for an input, best first.

    Args:
        task: Name of the task; it decides what the query is and which fields are searched.
        method: ``"bm25"`` (Okapi over whitespace tokens), ``"dense"`` (cosine of sentence
            embeddings), ``"recent"`` (the latest first, by ``date`` where items have one),
            ``"random"``, or ``"all"`` (the whole profile in its own order, whatever ``k``).
        key: The example's id, which with the seed fixes what ``"random"`` draws.
        encoder: Of ``"dense"``, as in :class:`prefheads.users.embed.ProfileEncoder`.

    Raises:
        DataError: An item without a needed field, an input without a query, an unknown method.
        PrefheadsError: ``"dense"`` without the extra ``cluster`` or with an unknown encoder.
    """
    form = task_of(task)
    if method == "all":
        return list(profile)
    if method == "recent":
        ordered = list(profile)
        if form.dated:
            require_fields(profile, ("date",), 'retrieval "recent"')
            ordered.sort(key=_date)
        return ordered[::-1][:k]
    if method == "random":
        return random.Random(f"{seed}:{key}").sample(profile, min(k, len(profile)))
    if method not in ("bm25", "dense"):
        raise DataError(
            f"unknown retrieval {method!r}: use one of {', '.join(get_args(Retrieval))}"
        )
    require_fields(profile, form.corpus, f'retrieval "{method}"')
    query = form.asked(input)
    corpus = [" ".join(item[field] for field in form.corpus) for item in profile]
    if method == "bm25":
        scores = okapi_scores(query.split(), [text.split() for text in corpus])
    else:
        scores = cosines(query, corpus, encoder)
    # Of equal scores the later item comes first, as where the benchmark reverses an ascending sort;
    # its sort is not stable, so there the order of ties depends on the processor.
    order = np.argsort(scores, kind="stable")[::-1][:k]
    return [profile[index] for index in order]


def cosines(query: str, corpus: Sequence[str], encoder: str = "bundled") -> NDArray[np.float64]:
    """Cosines ``(n_documents,)`` between the sentence embeddings of a query and of each text of a
    corpus, -1 for a text without a word; a ``DataError`` if the query has none."""
    if not query.strip():
        raise DataError("the input is empty where retrieval would read its query")
    worded = [index for index, text in enumerate(corpus) if text.strip()]
    scores = np.full(len(corpus), -1.0)
    vectors = _encoder(encoder).embed(
        [[{"text": t}] for t in (query, *(corpus[i] for i in worded))]
    )
    scores[worded] = vectors[1:] @ vectors[0]
    return scores


@lru_cache(maxsize=1)
def _encoder(name: str) -> ProfileEncoder:
    from prefheads.users.embed import ProfileEncoder  # an extra, needed only here

    return ProfileEncoder(name)


def okapi_scores(
    query: Sequence[str], corpus: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75
) -> NDArray[np.float64]:
    """BM25-Okapi scores ``(n_documents,)`` with the idf floor of the benchmark's retriever: where a
    word's idf ln((N - n + 0.5) / (n + 0.5)), in n of N documents, is negative, a quarter of the
    mean idf of all words stands in for it."""
    lengths = np.array([len(document) for document in corpus], dtype=float)
    scores = np.zeros(len(corpus))
    if not lengths.any():
        return scores
    containing: Counter[str] = Counter()
    found = {word: np.zeros(len(corpus)) for word in query}
    for index, document in enumerate(corpus):
        count = Counter(document)
        containing.update(count.keys())
        for word in count.keys() & found.keys():
            found[word][index] = count[word]
    frequency = np.fromiter(containing.values(), dtype=float)
    raw = np.log(len(corpus) - frequency + 0.5) - np.log(frequency + 0.5)
    weights = np.where(raw < 0, 0.25 * raw.mean(), raw)
    idf = dict(zip(containing, weights.tolist(), strict=True))
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    for word in query:
        if word in idf:
            scores += idf[word] * (found[word] * (k1 + 1) / (found[word] + norm))
    return scores


def _date(item: Item) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in item["date"].split("-"))
    except ValueError:
        raise DataError(f"not a date of the form year-month-day: {item['date']!r}") from None
