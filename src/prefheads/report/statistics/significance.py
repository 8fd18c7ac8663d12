"""Which heads matter at all (Fig. 3): PCS with intervals, and tests that mind their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from prefheads.heads.scores import HeadScores
from prefheads.stats import Array, holm, user_totals

LEVEL = 0.05
MIN_USERS = 6  # with fewer, users who all agree have p = 2 / 2**n > 0.05 even for one head
FLIPS = 10_000
_PER_HEAD = 40  # flips a head: the smallest p, times the number of heads, must come below LEVEL
_BATCH = 500


@dataclass(frozen=True)
class HeadTests:
    """PCS of every head, each array ``(n_layers, n_heads)``, in nats a token.

    Attributes:
        mean: Over samples (Eq. 4).
        low, high: 95 % interval over users (jackknife, t), for one head looked at alone.
        p: Two-sided, of a PCS of 0, by random signs of whole users.
        fdr: ``p`` corrected over all heads by Benjamini and Hochberg (false discovery rate).
        holm: ``p`` corrected over all heads by Holm (no false discovery at all).
        n_users: Users behind it; with fewer than ``MIN_USERS`` all p are NaN.
    """

    mean: Array
    low: Array
    high: Array
    p: Array
    fdr: Array
    holm: Array
    n_users: int

    @property
    def significant(self) -> Any:
        """Heads whose PCS differs from 0 at a false discovery rate of 5 %, as booleans."""
        return self.fdr < LEVEL

    def rows(self, group: str) -> list[dict[str, Any]]:
        """A line a head, the highest PCS first."""
        order = np.argsort(-self.mean, axis=None, kind="stable")
        places = np.stack(np.unravel_index(order, self.mean.shape), -1).tolist()
        columns = {"pcs": self.mean, "low": self.low, "high": self.high, "p": self.p}
        columns |= {"p_fdr": self.fdr, "p_holm": self.holm}
        return [
            {"group": group, "layer": layer, "head": head, "users": self.n_users}
            | {name: float(values[layer, head]) for name, values in columns.items()}
            for layer, head in places
        ]


def head_tests(scores: HeadScores, seed: int = 0) -> HeadTests:
    """Test every head's PCS against 0.

    If a head does nothing, a user's PCS may as well have the other sign. p is the share of random
    signs, one a user and the same for all their samples and heads, that bring the mean as far
    from 0 as it is; the correction then minds that hundreds of heads are tested.
    """
    low, high = (end.double().numpy() for end in scores.interval())
    totals, _ = user_totals(scores.values.numpy(), scores.user_ids)
    n_users, shape = len(totals), totals.shape[1:]
    p = np.full(shape, np.nan)
    fdr, strict = p.copy(), p.copy()
    if n_users >= MIN_USERS:
        flat = totals.reshape(n_users, -1)
        p = _sign_test(flat, seed).reshape(shape)
        fdr = false_discovery_control(p, axis=None).reshape(shape)
        strict = holm(p.ravel().tolist()).reshape(shape)
    return HeadTests(scores.mean.double().numpy(), low, high, p, fdr, strict, n_users)


def random_signs(n_draws: int, n_users: int, seed: int) -> Array:
    """Signs of users ``(n_draws, n_users)``, each +1 or -1."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(n_draws, n_users))


def _sign_test(totals: Array, seed: int) -> Array:
    n_users, n_heads = totals.shape
    observed = np.abs(totals.sum(0)) * (1 - 1e-10)  # equal sums may differ by rounding
    batches = -(-max(FLIPS, _PER_HEAD * n_heads) // _BATCH)
    extreme = np.ones(n_heads)  # the signs as they are count, so that no p is 0
    for batch in range(batches):
        signs = random_signs(_BATCH, n_users, seed + batch)
        extreme += (np.abs(signs @ totals) >= observed).sum(0)
    return np.asarray(extreme / (batches * _BATCH + 1))


def user_rows(scores: HeadScores, users: Sequence[str]) -> list[dict[str, Any]]:
    """PCS of single users, a line a user and head."""
    rows = []
    for user in users:
        own = scores.select(users=[user])
        rows += [
            {"user": user, "samples": own.n_examples, "layer": layer, "head": head, "pcs": mean}
            for layer, head, mean, _ in own.ranked()
        ]
    return rows
