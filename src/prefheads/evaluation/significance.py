"""Intervals and paired tests of a benchmark's metrics, over users.

Users, not samples, are what is left out or swapped: samples of one user are alike, so counting
them as independent would find differences where there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import permutation_test

from prefheads.errors import DataError
from prefheads.stats import Array, Estimate, jackknife, user_totals
from prefheads.tasks.answers import Metric

_BATCH = 1000  # swaps at a time: bounds the memory whatever the number of users
_TIE = 1e-10  # relative; statistics of equal data differ by rounding, and must count as ties


def interval(rows: Any, metric: Metric, users: Sequence[str]) -> Estimate:
    """A metric with its 95 % interval over users, see :mod:`prefheads.stats`.

    Args:
        rows: ``(n,)`` or ``(n, k)``: the metric's rows, see ``tasks.metrics.sample_scores``.

    Returns:
        The metric over all samples. The ends are NaN if there is only one user, and, but for a
        share, where all users agree exactly: then nothing tells how far others would differ.

    Raises:
        DataError: Rows and users differ in number, there are none, or rows that are not finite.
    """
    values = _checked(rows, users)
    if metric.share:
        return Estimate.of_share(values, users)
    found = jackknife(values, users, metric.of_mean)
    ends = np.clip(found.interval() if found.stderr > 0 else [np.nan, np.nan], *metric.bounds)
    low, high = metric.outer(ends)
    return Estimate(metric.aggregate(values), float(low), float(high))


def difference(rows_a: Any, rows_b: Any, metric: Metric, users: Sequence[str]) -> Estimate:
    """Metric of a minus metric of b on the same samples, with its 95 % interval over users.

    Args:
        rows_a, rows_b: ``(n,)`` or ``(n, k)``: the metric's rows for each method.

    Raises:
        DataError: Rows and users differ in number, there are none, or rows that are not finite.
    """
    both = _paired(rows_a, rows_b, users)
    if metric.share:
        return Estimate.of_difference(both[:, 0] - both[:, 1], users)
    return Estimate.from_jackknife(jackknife(both, users, partial(_difference, metric)))


def over_draws(
    rows: Sequence[Array], others: Sequence[Array], metric: Metric, users: Sequence[str]
) -> Estimate:
    """A random control's mean over its draws, less another method's, with its interval over users
    and draws.

    Args:
        rows: The metric's rows of each draw, ``(n,)`` or ``(n, k)``, on the same samples.
        others: The same of the method to subtract; none to subtract nothing.
    """
    n = len(rows)
    both = np.stack([*rows, *others], axis=1)
    if not np.isfinite(both).all():
        return Estimate(float("nan"), float("nan"), float("nan"))
    if metric.share and (both == both[:1]).all():
        # All users agree, so that nothing tells how far others would differ: as of one draw.
        first, other = both[:, :n].mean(1), both[:, n:].mean(1) if others else 0.0
        of = Estimate.of_difference if others else Estimate.of_share
        return replace(of(first - other, users), p=float("nan"))

    def of_mean(mean: Array) -> Array:
        found = np.asarray(metric.of_mean(mean))
        if not others:
            return np.asarray(found.mean(-1))
        found = np.asarray(metric.outer(found))
        return np.asarray(found[..., :n].mean(-1) - found[..., n:].mean(-1))

    each = np.asarray(metric.of_mean(both.mean(0)))
    each = np.asarray(metric.outer(each)) if others else each
    found = jackknife(both, users, of_mean).over_draws([each[:n], each[n:]])
    if not found.stderr > 0:
        found = replace(found, stderr=np.full_like(found.stderr, np.nan))
    shown = Estimate.from_jackknife(found)
    if others:
        return shown
    low, high = metric.outer(np.clip([shown.low, shown.high], *metric.bounds))
    return Estimate(float(metric.outer(np.asarray(shown.mean))), float(low), float(high), shown.p)


def paired_test(
    rows_a: Any,
    rows_b: Any,
    metric: Metric,
    users: Sequence[str],
    n_permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p value of two methods being equally good, by approximate randomisation.

    If they are, a user's results of the two may be swapped. p is the share of random swaps that
    make the metrics differ by at least as much as they do, the given assignment counted in; of all
    swaps where ``n_permutations`` allows for them.

    Args:
        rows_a, rows_b: As for :func:`difference`.

    Returns:
        p, never 0. A single user gives 1.

    Raises:
        DataError: As for :func:`difference`, or no permutations.
    """
    if n_permutations < 1:
        raise DataError(f"a permutation test needs n_permutations >= 1: {n_permutations}")
    both = _paired(rows_a, rows_b, users)
    totals, _ = user_totals(both, users)
    n_users = len(totals)
    if n_users == 1:
        return 1.0
    kept, swapped = totals.reshape(n_users, -1), totals[:, ::-1].reshape(n_users, -1)

    def distance(swap: Array) -> Array:
        sums = (1 - swap) @ kept + swap @ swapped
        return np.abs(_difference(metric, sums.reshape(-1, *both.shape[1:]) / len(both)))

    observed = distance(np.zeros((1, n_users)))[0]

    def statistic(swap: Array, _: Array, axis: int) -> Array:
        found = distance(np.atleast_2d(swap))
        tied = np.isclose(found, observed, rtol=_TIE, atol=0)
        return np.where(tied, observed, found).reshape(swap.shape[:-1])

    # What is permuted are not rows but which users are swapped: a 0 and a 1 for each.
    found = permutation_test(
        (np.zeros(n_users), np.ones(n_users)),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_permutations,
        batch=_BATCH,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _difference(metric: Metric, mean: Array) -> Array:
    """Metric of a minus metric of b from mean rows ``(..., 2)`` or ``(..., 2, k)``."""
    values = metric.outer(metric.of_mean(mean))
    return np.asarray(values[..., 0] - values[..., 1])


def _paired(rows_a: Any, rows_b: Any, users: Sequence[str]) -> Array:
    """Rows of both methods, ``(n, 2)`` or ``(n, 2, k)``."""
    a, b = _checked(rows_a, users), _checked(rows_b, users)
    if a.shape != b.shape:
        raise DataError(f"rows of two methods must have one shape: {a.shape} and {b.shape}")
    return np.stack([a, b], axis=1)


def _checked(rows: Any, users: Sequence[str]) -> Array:
    values = np.asarray(rows, dtype=np.float64)
    if len(values) != len(users) or not len(users):
        raise DataError(
            f"needs the user of each row, and at least one: {len(values)} rows, {len(users)} users"
        )
    if not np.isfinite(values).all():
        raise DataError("rows hold NaN or infinity: neither has an interval or a test")
    return values
