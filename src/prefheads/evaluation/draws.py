"""Random controls: methods drawn several times, whose mean is what others are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prefheads.stats import Array, Estimate, jackknife
from prefheads.tasks.answers import Metric

SEED = ":seed="
"""What the name of a draw has after that of its method, and then its seed."""


def over_draws(
    rows: Sequence[Array], others: Sequence[Array], metric: Metric, users: Sequence[str]
) -> Estimate:
    """A metric's mean over draws, less another method's, with its interval over users and draws.

    Args:
        rows: The metric's rows of each draw, ``(n,)`` or ``(n, k)``, on the same samples.
        others: The same of the method to subtract; none to subtract nothing.
        users: The user of each sample.
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
