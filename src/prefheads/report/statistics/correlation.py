"""What else the heads do: PCS beside the run's other measurements of the same heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores
from prefheads.report.statistics.overlap import chance, jaccard, top_sets
from prefheads.report.wording import columns
from prefheads.stats import Array, Estimate, jackknife

MEASURED = {
    "head": "PCS, head removed",
    "profile": "PCS, profile hidden from the head",
    "copy": "copy score",
    "attention": "attention to the profile",
}


@dataclass(frozen=True)
class Relation:
    """Two measurements of all heads.

    Attributes:
        names: What was measured.
        means: Mean of each, ``(n_heads_in_all,)``.
        correlation: Rank correlation over heads (Spearman's), 0 expected if unrelated, with its
            95 % interval over the users of the first measurement (and of the second, left out
            together, where the samples are the same).
        k: Heads of a top set.
        overlap: Of both top sets (Jaccard).
        chance: Overlap expected of random sets.
    """

    names: tuple[str, str]
    means: tuple[Array, Array]
    correlation: Estimate
    k: int
    overlap: float
    chance: float

    def row(self) -> dict[str, Any]:
        """One line."""
        return {
            "first": self.names[0],
            "second": self.names[1],
            **columns(self.correlation, "rank_correlation"),
            "heads": self.k,
            "overlap": self.overlap,
            "chance": self.chance,
        }


def relate(first: HeadScores, second: HeadScores, names: tuple[str, str], k: int) -> Relation:
    """Compare two measurements of the heads of one model.

    Raises:
        DataError: They are of another number of heads.
    """
    if first.shape[1:] != second.shape[1:]:
        raise DataError(f"{names[0]} and {names[1]} are of models with other heads")
    a, b = (s.mean.double().numpy().ravel() for s in (first, second))
    values = first.values.double().numpy().reshape(first.n_examples, -1)
    if first.example_ids == second.example_ids:
        other = second.values.double().numpy().reshape(values.shape)
        values = np.stack([values, other], axis=1)

    def of_mean(means: Array) -> Array:
        paired = means if means.ndim == 3 else np.stack([means, np.tile(b, (len(means), 1))], 1)
        return rank_correlation(paired[:, 0], paired[:, 1])

    rho = Estimate.from_jackknife(jackknife(values, first.user_ids, of_mean)).within(-1, 1)
    sets = [top_sets(x, k)[None] for x in (a, b)]
    expected = chance(int(sets[0].sum()), int(sets[1].sum()), len(a))
    return Relation(names, (a, b), rho, k, float(jaccard(*sets)[0, 0]), expected)


def rank_correlation(a: Array, b: Array) -> Array:
    """Spearman's correlation of rows ``(n, h)``; heads that copy nothing tie at 0."""
    ranks = [rankdata(side, axis=1) for side in (a, b)]
    x, y = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    return np.asarray((x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1)))
