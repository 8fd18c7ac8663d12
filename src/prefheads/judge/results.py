"""What the judgements say: win rates, agreement, mean ratings, and where order mattered."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import krippendorff
import numpy as np

from prefheads.errors import DataError
from prefheads.judge.llm import DIMENSIONS, ORDERS, Ratings
from prefheads.judge.store import TIE, Vote, Votes
from prefheads.stats import Array, Estimate

WINS = "alignment wins"


@dataclass(frozen=True)
class HumanResults:
    """Win rates by majority vote, over the voted pairs and the pairs of equal texts (ties).

    Attributes:
        wins: Share of the pairs that each method wins, and share of ties, with 95 % intervals
            over users (Clopper-Pearson).
        difference: Share of the second method less that of the first.
        alpha: Krippendorff's alpha of the annotators (nominal); NaN where no pair has two votes or
            all votes are the same.
        first_wins: Of votes that are no ties, the share for the text that stood first.
        votes: Number of votes of each annotator.
        pairs, same, open: Sampled pairs, those of them with equal texts, those without a vote.
    """

    task: str
    methods: tuple[str, str]
    wins: dict[str, Estimate]
    difference: Estimate
    alpha: float
    first_wins: Estimate
    votes: dict[str, int]
    pairs: int
    same: int
    open: int


def human_results(votes: Votes) -> HumanResults:
    """Results of a study from its votes.

    Raises:
        DataError: There is no vote.
    """
    study = votes.study
    a, b = study["methods"]
    cast = votes.all()
    if not cast:
        raise DataError("no votes yet; open the page of `prefheads judge serve` and vote")
    by_pair: dict[str, list[str]] = defaultdict(list)
    for vote in cast:
        by_pair[vote.pair].append(vote.choice)
    settled = [p for p in study["pairs"] if p["same"] or p["id"] in by_pair]
    winners = [TIE if p["same"] else majority(by_pair[p["id"]]) for p in settled]
    won = {name: np.array([w == name for w in winners], dtype=np.float64) for name in (a, b, TIE)}
    user = {p["id"]: p["user_id"] for p in study["pairs"]}
    users = [user[p["id"]] for p in settled]
    decided = [v for v in cast if v.choice != TIE]
    first = np.array([v.choice == v.first for v in decided], dtype=np.float64)
    of = [user[v.pair] for v in decided]
    return HumanResults(
        task=study["task"],
        methods=(a, b),
        wins={name: Estimate.of_share(values, users) for name, values in won.items()},
        difference=Estimate.of_difference(won[b] - won[a], users),
        alpha=agreement(cast, (a, b, TIE)),
        first_wins=Estimate.of_share(first, of) if decided else Estimate(*[float("nan")] * 3),
        votes=dict(sorted(Counter(v.annotator for v in cast).items())),
        pairs=len(study["pairs"]),
        same=sum(p["same"] for p in study["pairs"]),
        open=len(study["pairs"]) - len(settled),
    )


def majority(choices: Sequence[str]) -> str:
    """The choice with more votes than any other; a tie if there is none."""
    ranked = Counter(choices).most_common(2)
    alone = len(ranked) == 1 or ranked[0][1] > ranked[1][1]
    return ranked[0][0] if alone else TIE


def agreement(votes: Iterable[Vote], choices: Sequence[str]) -> float:
    """Krippendorff's alpha for nominal choices; NaN where it is not defined."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * len(choices))
    for vote in votes:
        counts[vote.pair][choices.index(vote.choice)] += 1
    shared = np.array([c for c in counts.values() if sum(c) > 1])
    if not len(shared) or np.count_nonzero(shared.sum(axis=0)) < 2:
        return float("nan")
    return float(krippendorff.alpha(value_counts=shared, level_of_measurement="nominal"))


@dataclass(frozen=True)
class Rating:
    """One row of the table of ratings, with 95 % intervals over users.

    Attributes:
        name: A dimension, or the share of pairs won on preference alignment.
        means: Of the two methods, over pairs and both orders.
        difference: The second method less the first.
        bias: What standing first adds to a text; None for the share of wins.
    """

    name: str
    means: tuple[Estimate, Estimate]
    difference: Estimate
    bias: Estimate | None


def rating_rows(ratings: Ratings) -> list[Rating]:
    """The paper's Table 4 from ratings: wins first, then every dimension.

    A pair is won by the method with the higher mean of both orders; pairs of equal texts count as
    ties. Their scores were not asked for, so the means are those of the differing pairs.

    Raises:
        DataError: There are no ratings.
    """
    if not ratings.pairs:
        why = next(iter(ratings.problems.values()), "all pairs have the same text twice")
        raise DataError(f"no pair was rated: {why}")
    users = [p.user_id for p in ratings.pairs]

    def row(name: str, values: Array, bias: Array) -> Rating:
        a, b = values[:, 0], values[:, 1]
        means = (Estimate.of(a, users).within(1, 5), Estimate.of(b, users).within(1, 5))
        return Rating(name, means, Estimate.of(b - a, users), Estimate.of(bias, users))

    means = ratings.scores.mean(axis=1)  # over orders: (n_pairs, 2 methods, dimensions)
    shown_first = ratings.scores[:, (0, 1), (0, 1)]  # (n_pairs, 2 methods, dimensions)
    shown_second = ratings.scores[:, (1, 0), (0, 1)]
    bias = (shown_first - shown_second).mean(axis=1)
    alignment = means[:, :, DIMENSIONS.index("preference_alignment")]
    wins = (alignment > alignment[:, ::-1]).astype(np.float64)
    same = [p.user_id for p in ratings.study.pairs if p.same]
    a, b = np.concatenate([wins, np.zeros((len(same), 2))]).T
    of = users + same
    shares = (Estimate.of_share(a, of), Estimate.of_share(b, of))
    return [
        Rating(WINS, shares, Estimate.of_difference(b - a, of), None),
        *(row(name, means[:, :, i], bias[:, i]) for i, name in enumerate(DIMENSIONS)),
    ]


def votes_csv(votes: Votes) -> str:
    """All votes, a line each."""
    user = {p["id"]: p["user_id"] for p in votes.study["pairs"]}
    lines = ((v.pair, user[v.pair], v.annotator, v.choice, v.first, v.at) for v in votes.all())
    return _csv(("pair", "user_id", "annotator", "choice", "shown_first", "at"), lines)


def ratings_csv(ratings: Ratings) -> str:
    """All scores, a line each."""
    lines = (
        (pair.id, pair.user_id, ratings.study.methods[o], method, name, int(scores[o, m, d]))
        for pair, scores in zip(ratings.pairs, ratings.scores, strict=True)
        for o in range(len(ORDERS))
        for m, method in enumerate(ratings.study.methods)
        for d, name in enumerate(DIMENSIONS)
    )
    return _csv(("pair", "user_id", "shown_first", "method", "dimension", "score"), lines)


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue()
