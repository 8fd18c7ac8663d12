"""Is personalisation sparse (6.3)? How much of the positive PCS how few heads hold.

A Gini coefficient says little by itself: the positive half of mere noise has one of 0.7. So it
stands beside that of the same scores with random signs, and the share that the top heads hold is
measured on users by whom they were not chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prefheads.heads.scores import HeadScores
from prefheads.report.statistics.overlap import head_totals, pooled, range_of
from prefheads.report.statistics.significance import random_signs
from prefheads.report.wording import columns
from prefheads.stats import Array, Estimate, jackknife, user_means, user_totals

N_SPLITS = 200
N_NULL = 1000
MIN_USERS = 4  # two in each half


@dataclass(frozen=True)
class Sparsity:
    """How the positive PCS spreads over heads.

    Attributes:
        share: ``(n,)`` share of the positive PCS that the top 1, 2, ... n heads hold; ``low`` and
            ``high`` are its 95 % interval over users.
        held_out: ``(n,)`` the same for heads chosen by one half of the users and measured on the
            other (mean over random halves), net of negative scores; ``held_low`` and
            ``held_high`` hold 95 % of the halves. NaN with fewer than ``MIN_USERS`` users.
        random: ``(n,)`` expected of as many random heads, on the same half.
        gini: Gini coefficient of the positive PCS of the mean map.
        gini_null: The same with random signs of users, as if heads acted as strongly but in no
            direction: mean and 95 % range.
        gini_p: Share of such draws that are at least as unequal.
        gini_users: Mean Gini coefficient of single users' maps.
        negative: Sum of the negative PCS over that of the positive: 1 if they balance.
        n_users: Users behind it.
    """

    share: Array
    low: Array
    high: Array
    held_out: Array
    held_low: Array
    held_high: Array
    random: Array
    gini: Estimate
    gini_null: Estimate
    gini_p: float
    gini_users: Estimate
    negative: Estimate
    n_users: int

    def rows(self) -> list[dict[str, Any]]:
        """A line a number of heads."""
        n = len(self.share)
        columns = {"share": self.share, "low": self.low, "high": self.high}
        columns |= {"held_out": self.held_out, "held_out_low": self.held_low}
        columns |= {"held_out_high": self.held_high, "random_heads": self.random}
        return [
            {"heads": k + 1, "share_of_heads": (k + 1) / n}
            | {name: float(values[k]) for name, values in columns.items()}
            for k in range(n)
        ]

    def summary(self) -> list[dict[str, Any]]:
        """The coefficients, a line each."""
        lines = {
            "Gini of the mean map": self.gini,
            "Gini with random signs of users": self.gini_null,
            "Gini of single users' maps, mean": self.gini_users,
            "negative over positive PCS of the mean map": self.negative,
        }
        p = {"Gini of the mean map": self.gini_p}
        return [
            {"quantity": name, **columns(e), "p": p.get(name, np.nan), "users": self.n_users}
            for name, e in lines.items()
        ]


def _quotient(above: Array, below: Array) -> Array:
    """NaN where there is nothing to divide by."""
    result = np.full(np.broadcast_shapes(np.shape(above), np.shape(below)), np.nan)
    return np.asarray(np.divide(above, below, out=result, where=below > 0))


def gini(maps: Array) -> Array:
    """Gini coefficient of the positive part of maps ``(..., n_layers, n_heads)``.

    0 if all heads hold the same, (n - 1) / n if one of n holds everything, NaN if none is positive.
    """
    flat = np.sort(np.clip(maps.reshape(*maps.shape[:-2], -1), 0, None), axis=-1)
    n = flat.shape[-1]
    total = n * flat.sum(-1)
    weighted = (flat * (2 * np.arange(1, n + 1) - n - 1)).sum(-1)
    return _quotient(weighted, total)


def concentration(maps: Array) -> Array:
    """Share of the positive part of maps ``(..., L, H)`` in the top 1 .. n heads, ``(..., n)``."""
    flat = -np.sort(-np.clip(maps.reshape(*maps.shape[:-2], -1), 0, None), axis=-1)
    return _quotient(flat.cumsum(-1), flat.sum(-1, keepdims=True))


def sparsity(scores: HeadScores, seed: int = 0) -> Sparsity:
    """Measure how few heads hold the positive PCS, beside its controls."""
    values, users = scores.values.double().numpy(), scores.user_ids
    mean = scores.mean.double().numpy()

    def estimate(of_mean: Any) -> Estimate:
        return Estimate.from_jackknife(jackknife(values, users, of_mean)).within(0, np.inf)

    low, high = (end.clip(0, 1) for end in jackknife(values, users, concentration).interval())
    coefficient = estimate(gini).within(0, 1)
    null = _null_gini(scores, seed)
    own = gini(user_means(values, users))
    single = Estimate.of(own, sorted(set(users))).within(0, 1)
    held, random = _held_out(scores, seed)
    held_low, held_high = np.quantile(held, [0.025, 0.975], axis=0)
    return Sparsity(
        share=concentration(mean),
        low=low,
        high=high,
        held_out=held.mean(0),
        held_low=held_low,
        held_high=held_high,
        random=random,
        gini=coefficient,
        gini_null=range_of(null),
        gini_p=(1 + int((null >= coefficient.mean).sum())) / (1 + len(null)),
        gini_users=single,
        negative=estimate(_negative),
        n_users=len(own),
    )


def _negative(maps: Array) -> Array:
    above = np.clip(maps, 0, None).sum((-2, -1))
    below = np.clip(-maps, 0, None).sum((-2, -1))
    return _quotient(below, above)


def _null_gini(scores: HeadScores, seed: int) -> Array:
    totals, _ = user_totals(scores.values.numpy(), scores.user_ids)
    signs = random_signs(N_NULL, len(totals), seed)
    return gini(np.tensordot(signs, totals, 1) / scores.n_examples)


def _held_out(scores: HeadScores, seed: int) -> tuple[Array, Array]:
    """Shares ``(N_SPLITS, n)`` on the other half, and those of random heads ``(n,)``."""
    totals, counts = head_totals(scores)
    n_users, n = totals.shape
    if n_users < MIN_USERS:
        return np.full((1, n), np.nan), np.full(n, np.nan)
    rng = np.random.default_rng(seed)
    held, net = [], []
    for _ in range(N_SPLITS):
        halves = np.array_split(rng.permutation(n_users), 2)
        first, second = pooled(totals, counts, halves)
        positive = np.clip(second, 0, None).sum() or np.nan
        held.append(second[np.argsort(-first, kind="stable")].cumsum() / positive)
        net.append(second.sum() / positive)
    return np.array(held), np.mean(net) * np.arange(1, n + 1) / n
