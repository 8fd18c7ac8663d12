"""Uncertainty of means over samples that come in groups: users, each with several samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefheads.errors import DataError

Array = NDArray[np.float64]


def user_totals(values: Any, users: Sequence[str]) -> tuple[Array, NDArray[np.int64]]:
    """Sums over each user's samples, users in sorted order.

    Returns:
        The sums, ``(n, ...)`` to ``(n_users, ...)``, and the number of samples ``(n_users,)``.
    """
    values = np.asarray(values, dtype=np.float64)
    _, index, counts = np.unique(list(users), return_inverse=True, return_counts=True)
    totals = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(totals, index, values)
    return totals, counts


def user_means(values: Any, users: Sequence[str]) -> Array:
    """Mean over each user's samples: ``(n, ...)`` to ``(n_users, ...)``, users in sorted order."""
    totals, counts = user_totals(values, users)
    return totals / counts.reshape(-1, *([1] * (totals.ndim - 1)))


def bootstrap(
    values: Any,
    users: Sequence[str],
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
    of_mean: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:
    """Bootstrap interval of the mean over samples ``(n, ...)``, or of a function of that mean.

    Users are drawn, each with all of their samples: samples of one user are alike, and drawing
    them one by one would make the interval too narrow.

    Args:
        values: One value, or array of values, a sample.
        users: The user of each sample.
        level: Probability that the interval covers what it estimates.
        n_boot: Number of draws.
        seed: Of the draws.
        of_mean: Applied to the means of all draws at once, ``(n_boot, ...)``; keeps the first axis.

    Returns:
        Lower and upper end, each of shape ``(...)``; NaN if there is only one user, or a value
        that is not finite.
    """
    if not 0 < level < 1 or n_boot < 1:
        raise DataError(f"an interval needs 0 < level < 1 and n_boot >= 1: {level}, {n_boot}")
    totals, counts = user_totals(values, users)
    totals[~np.isfinite(totals)] = np.nan
    n = len(counts)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)
    means = (draws @ totals.reshape(n, -1)) / (draws @ counts)[:, None]
    means = means.reshape(n_boot, *totals.shape[1:])
    drawn = means if of_mean is None else of_mean(means)
    if n == 1:
        drawn = np.full_like(drawn, np.nan)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return np.asarray(low), np.asarray(high)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval over users."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Any, users: Sequence[str], seed: int = 0) -> Estimate:
        """Estimate from one value a sample ``(n,)``."""
        low, high = bootstrap(values, users, seed=seed)
        return cls(float(np.mean(values)), float(low), float(high))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if not np.isfinite(self.mean):
            return "n/a" if np.isnan(self.mean) else f"{self.mean:+}"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
