"""Random controls: methods drawn several times, whose mean is what others are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from prefheads.stats import Array, Estimate, jackknife
from prefheads.tasks.metrics import Metric

SEED = ":seed="
"""What the name of a draw has after that of its method, and then its seed."""


def draws_of(method: str, names: Iterable[str]) -> list[str]:
    """The names of a method's draws among these; its own where it is not drawn."""
    return [name for name in names if name == method or name.rpartition(SEED)[0] == method]


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

    def of_draws(mean: Array) -> Array:
        return np.asarray(metric.outer(metric.of_mean(mean)))

    def of_mean(mean: Array) -> Array:
        found = of_draws(mean)
        less = found[..., n:].mean(-1) if others else 0.0
        return np.asarray(found[..., :n].mean(-1) - less)

    each = of_draws(both.mean(0))
    found = jackknife(both, users, of_mean).over_draws([each[:n], each[n:]])
    low, high = metric.outer(np.array(metric.bounds))
    shown = Estimate.from_jackknife(found)
    return shown if others else shown.within(float(low), float(high))
