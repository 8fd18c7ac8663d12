"""Choosing the profile items that go into a prompt, as the LaMP benchmark does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from prefheads.errors import DataError
from prefheads.tasks.lamp import Item, Task, require_fields, task_of

Method = Literal["bm25", "recent", "all"]


def retrieve(
    task: str | None, input: str, profile: Sequence[Item], k: int, method: Method = "bm25"
) -> list[Item]:
    """The ``k`` profile items that matter most for an input, best first.

    Args:
        task: Name of the task; it decides what the query is and which fields are searched.
        input: The input of the example.
        profile: All items of the user.
        k: How many items to keep.
        method: ``"bm25"`` (Okapi over whitespace tokens), ``"recent"`` (latest ``date`` first), or
            ``"all"`` (the whole profile in its own order, whatever ``k``).

    Raises:
        DataError: An item without a needed field, an input without a query, an unknown method.
    """
    if method == "all":
        return list(profile)
    if method == "recent":
        require_fields(profile, ("date",), 'retrieval "recent"')
        return sorted(profile, key=_date)[::-1][:k]
    if method != "bm25":
        raise DataError(f"unknown retrieval {method!r}: use one of {', '.join(get_args(Method))}")
    form = task_of(task)
    require_fields(profile, form.corpus, 'retrieval "bm25"')
    corpus = [" ".join(item[field] for field in form.corpus).split() for item in profile]
    scores = okapi_scores(_query(form, input).split(), corpus)
    # Of equal scores the later item comes first, as where the benchmark reverses an ascending sort;
    # its sort is not stable, so there the order of ties depends on the processor.
    order = np.argsort(scores, kind="stable")[::-1][:k]
    return [profile[index] for index in order]


def okapi_scores(
    query: Sequence[str], corpus: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75
) -> NDArray[np.float64]:
    """BM25-Okapi scores of tokenised documents, with the idf floor of the benchmark's retriever.

    The idf of a word in n of N documents is ln((N - n + 0.5) / (n + 0.5)); where that is negative,
    a quarter of the mean idf of all words of the corpus stands in for it.

    Returns:
        ``(n_documents,)``.
    """
    counts = [Counter(document) for document in corpus]
    lengths = np.array([len(document) for document in corpus], dtype=float)
    scores = np.zeros(len(corpus))
    if not lengths.any():
        return scores
    containing = Counter(word for count in counts for word in count)
    frequency = np.array(list(containing.values()))
    raw = np.log(len(corpus) - frequency + 0.5) - np.log(frequency + 0.5)
    idf = dict(zip(containing, np.where(raw < 0, 0.25 * raw.mean(), raw), strict=True))
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    for word in query:
        if word in idf:
            found = np.array([count[word] for count in counts])
            scores += idf[word] * (found * (k1 + 1) / (found + norm))
    return scores


def _query(form: Task, input: str) -> str:
    if form.query is None:
        quoted = re.findall(r'"([^"]*)"', input)
        if len(quoted) < 3:
            raise DataError("the input must quote a title and two candidates")
        return f"{quoted[1]} {quoted[2]}"
    _, marker, query = input.partition(form.query)
    if not marker:
        raise DataError(f'the input has no "{form.query}", so nothing to retrieve for')
    return query


def _date(item: Item) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in item["date"].split("-"))
    except ValueError:
        raise DataError(f"not a date of the form year-month-day: {item['date']!r}") from None
