"""Uncertainty over users: intervals and tests of statistics of samples that users have written.

Samples of one user are alike, so users are what counts. One concept serves all: the jackknife. A
statistic is computed again without each user, with all of their samples; how far it moves gives
its standard error, and Student's t the interval, which holds for few users too. The degrees of
freedom are the effective number of users (Kish's: a user with most of the samples counts for most
of them) less one. Shares of yes and no have the exact interval of Clopper and Pearson instead,
which knows that 0 of 100 is not never. What each covers in simulation: docs/science.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtr, stdtrit

from prefheads.errors import DataError

Array = NDArray[np.float64]

LEVEL = 0.95
INTERVALS = "95 % intervals over users (jackknife and t; shares: Clopper-Pearson)"
"""What captions call them."""


def user_totals(values: Any, users: Sequence[str]) -> tuple[Array, NDArray[np.int64]]:
    """Sums over each user's samples ``(n, ...)`` to ``(n_users, ...)``, users in sorted order, and
    their numbers ``(n_users,)``."""
    values = np.asarray(values, dtype=np.float64)
    _, index, counts = np.unique(list(users), return_inverse=True, return_counts=True)
    totals = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(totals, index, values)
    return totals, counts


def user_means(values: Any, users: Sequence[str]) -> Array:
    """Mean over each user's samples: ``(n, ...)`` to ``(n_users, ...)``, users in sorted order."""
    totals, counts = user_totals(values, users)
    return np.asarray(totals / _column(counts, totals.ndim))


@dataclass(frozen=True)
class Jackknife:
    """A statistic and how far it moves as users are left out.

    Attributes:
        value: The statistic of all users, ``(...)``.
        stderr: Its standard error, ``(...)``; NaN for one user, and where samples are not finite.
        df: Degrees of freedom of t: the effective number of users less one.
    """

    value: Array
    stderr: Array
    df: float

    @classmethod
    def of(cls, value: Any, without: Any, counts: Any) -> Jackknife:
        """From the statistic, the same without each user ``(n_users, ...)``, and their samples."""
        value, without = np.asarray(value, np.float64), np.asarray(without, np.float64)
        n = len(without)
        with np.errstate(invalid="ignore"):
            squares = ((without - value) ** 2).sum(0)
        stderr = np.sqrt(squares * (n - 1) / n) if n > 1 else np.full_like(value, np.nan)
        stderr = np.where(np.isfinite(stderr), stderr, np.nan)
        return cls(value, np.asarray(stderr), effective_users(counts) - 1)

    def over_draws(self, draws: Sequence[Array]) -> Jackknife:
        """With what a choice of random draws adds to the error over users (Welch, Satterthwaite):
        ``draws`` has the statistic of each draw ``(n_draws,)``, of everything whose mean it is
        of; one draw alone tells nothing."""
        parts = [(float(self.stderr) ** 2, self.df)]
        parts += [(float(d.var(ddof=1)) / len(d), len(d) - 1.0) for d in draws if len(d) > 1]
        total = sum(square for square, _ in parts)
        if len(parts) == 1 or not total > 0:
            return self
        df = total**2 / sum(square**2 / df for square, df in parts if square > 0)
        return Jackknife(self.value, np.asarray(np.sqrt(total)), df)

    def interval(self, level: float = LEVEL) -> tuple[Array, Array]:
        """Lower and upper end, each ``(...)``; a DataError unless 0 < level < 1."""
        if not 0 < level < 1:
            raise DataError(f"an interval needs 0 < level < 1: {level}")
        reach = _t(self.df, level) * self.stderr
        return np.asarray(self.value - reach), np.asarray(self.value + reach)

    @property
    def p(self) -> Array:
        """Two-sided p of the statistic being 0, below 5 % where the 95 % interval excludes 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.where(self.value == 0, 0 * self.stderr, np.abs(self.value) / self.stderr)
        return np.asarray(2 * stdtr(self.df, -t))


def jackknife(
    values: Any, users: Sequence[str], of_mean: Callable[[Array], Array] | None = None
) -> Jackknife:
    """The mean over samples ``(n, ...)`` of users, with its jackknife; or a function of that mean,
    which is applied to several at once, ``(m, ...)``."""
    totals, counts = user_totals(values, users)
    mean = totals.sum(0, keepdims=True) / counts.sum()
    if len(counts) == 1:
        without = np.full_like(totals, np.nan)
    else:
        with np.errstate(invalid="ignore"):  # infinity less infinity
            without = (totals.sum(0) - totals) / _column(counts.sum() - counts, totals.ndim)
    if of_mean is not None:
        mean, without = of_mean(mean), of_mean(without)
    return Jackknife.of(mean[0], without, counts)


def pairs_jackknife(values: Any) -> Jackknife:
    """The mean of ``values[i, j]`` over pairs of different users, ``(n_users, n_users)``.

    A user is left out with all of their pairs. Four users are the fewest with an interval: without
    one of three a single pair is left.
    """
    mean, without = pair_means(values)
    return Jackknife.of(mean, without, np.ones(len(without)))


def pair_means(values: Any) -> tuple[float, Array]:
    """Means over pairs of different users: of all, and without each user ``(n_users,)``."""
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    off = values * (1 - np.eye(n))
    mean = float(off.sum() / (n * (n - 1)))
    if n < 4:
        return mean, np.full(n, np.nan)
    return mean, np.asarray((off.sum() - off.sum(0) - off.sum(1)) / ((n - 1) * (n - 2)))


def effective_users(counts: Any) -> float:
    """Kish's number of equal users that tell as much as users with so many samples each."""
    counts = np.asarray(counts, dtype=np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval over users.

    Attributes:
        mean: The statistic.
        low, high: The ends; NaN where there is no interval.
        p: Two-sided, of its being 0 (t, not corrected for other tests); NaN where not computed.
    """

    mean: float
    low: float
    high: float
    p: float = float("nan")

    @classmethod
    def of(cls, values: Any, users: Sequence[str]) -> Estimate:
        """A mean, from one value a sample ``(n,)``."""
        return cls.from_jackknife(jackknife(values, users))

    @classmethod
    def from_jackknife(cls, found: Jackknife) -> Estimate:
        """Of a single statistic."""
        low, high = found.interval()
        return cls(float(found.value), float(low), float(high), float(found.p))

    @classmethod
    def of_share(cls, values: Any, users: Sequence[str]) -> Estimate:
        """A share, from a 0 or 1 a sample ``(n,)``: Clopper's and Pearson's exact interval.

        Where users have several samples, these count for as many independent ones as have the
        jackknife's standard error, and fewer for few users (Korn and Graubard). Where all samples
        agree nothing tells how alike a user's are: each user then counts for one.
        """
        found = jackknife(values, users)
        share, n, counts = float(found.value), len(users), user_totals(values, users)[1]
        if not np.isfinite(found.stderr):
            return cls(share, float("nan"), float("nan"))
        if 0 < share < 1:
            alike = float(found.stderr) ** 2 * (n - 1) / (share * (1 - share))
            size = n / max(alike, 1) * float(_t(n - 1, LEVEL) / _t(found.df, LEVEL)) ** 2
        else:
            size = effective_users(counts)
        tail, yes, no = (1 - LEVEL) / 2, share * size, (1 - share) * size
        low = betaincinv(yes, no + 1, tail) if yes else 0.0
        high = betaincinv(yes + 1, no, 1 - tail) if no else 1.0
        return cls(share, float(low), float(high))

    @classmethod
    def of_difference(cls, values: Any, users: Sequence[str]) -> Estimate:
        """A difference of two paired shares, from a 1, 0 or -1 a sample ``(n,)``.

        The interval is that of the data and two more users, one won and one lost (Bonett and
        Price), as many samples each as users have: no difference seen is not none at all.
        """
        totals, counts = user_totals(values, users)
        mean = float(np.mean(values))
        if len(counts) == 1:
            return cls(mean, float("nan"), float("nan"))
        size = counts.mean()
        totals, counts = np.append(totals, [size, -size]), np.append(counts, [size, size])
        without = (totals.sum() - totals) / (counts.sum() - counts)
        low, high = Jackknife.of(totals.sum() / counts.sum(), without, counts).interval()
        return cls(mean, max(float(low), -1.0), min(float(high), 1.0))

    def within(self, lowest: float, highest: float) -> Estimate:
        """With ends that stay in the range of the statistic."""
        low, high = np.clip([self.low, self.high], lowest, highest).tolist()
        return replace(self, low=low, high=high)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if not np.isfinite(self.mean):
            return "n/a" if np.isnan(self.mean) else f"{self.mean:+}"
        if np.isnan(self.low):
            return f"{self.mean:+z.3f}"
        return f"{self.mean:+z.3f} [{self.low:+z.3f}, {self.high:+z.3f}]"


def holm(p_values: Sequence[float]) -> Array:
    """p values of several tests, adjusted by Holm's step-down method, in the given order; a
    DataError if one is outside [0, 1]."""
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"p values must lie in [0, 1]: {list(p_values)}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted


def _t(df: float, level: float) -> Array:
    return np.asarray(stdtrit(df, (1 + level) / 2))


def _column(counts: Any, ndim: int) -> Any:
    return counts.reshape(-1, *([1] * (ndim - 1)))
