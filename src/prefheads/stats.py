"""Uncertainty of means over samples that come in groups: users, each with several samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefheads.errors import DataError

Array = NDArray[np.float64]


def user_means(values: Any, users: Sequence[str]) -> Array:
    """Mean over each user's samples: ``(n, ...)`` to ``(n_users, ...)``, users in sorted order."""
    values = np.asarray(values, dtype=np.float64)
    _, index, counts = np.unique(list(users), return_inverse=True, return_counts=True)
    totals = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(totals, index, values)
    return totals / counts.reshape(-1, *([1] * (values.ndim - 1)))


def bootstrap(
    values: Any, users: Sequence[str], level: float = 0.95, n_boot: int = 2000, seed: int = 0
) -> tuple[Array, Array]:
    """Bootstrap interval of the mean over samples ``(n, ...)``.

    Users are drawn, each with all of their samples: samples of one user are alike, and drawing
    them one by one would make the interval too narrow.

    Returns:
        Lower and upper end, each of shape ``(...)``; NaN if there is only one user.
    """
    if not 0 < level < 1 or n_boot < 1:
        raise DataError(f"an interval needs 0 < level < 1 and n_boot >= 1: {level}, {n_boot}")
    values = np.asarray(values, dtype=np.float64)
    _, index, counts = np.unique(list(users), return_inverse=True, return_counts=True)
    n = len(counts)
    if n == 1:
        nan = np.full(values.shape[1:], np.nan)
        return nan, nan.copy()
    totals = np.zeros((n, int(np.prod(values.shape[1:], dtype=int))))
    np.add.at(totals, index, values.reshape(len(values), -1))
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)
    means = (draws @ totals) / (draws @ counts)[:, None]
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


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
        if np.isnan(self.mean):
            return "n/a"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
