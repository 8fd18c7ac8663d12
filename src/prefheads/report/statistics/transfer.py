"""Discovered heads beside random heads and random masks (6.4, Fig. 5), on users left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.report.statistics.overlap import head_totals, sizes, top_sets, user_maps
from prefheads.report.wording import columns
from prefheads.stats import Estimate


@dataclass(frozen=True)
class Transfer:
    """Mean PCS of the top heads on a user whose scores had no part in choosing them.

    Attributes:
        k: Heads of a set, at most.
        chosen: Mean PCS of the chosen heads, in nats a token, with its interval over users.
        random: Expected of random heads: the mean over all heads of the same user.
        difference: chosen - random.
        positive: Share of users whose difference is above 0.
    """

    k: int
    chosen: Estimate
    random: Estimate
    difference: Estimate
    positive: float

    def row(self) -> dict[str, Any]:
        """One line of a table over numbers of heads."""
        line: dict[str, Any] = {"heads": self.k}
        for name in ("chosen", "random", "difference"):
            line |= columns(getattr(self, name), name, f"{name}_")
        return line | {"users_above_random": self.positive}


def transfer(scores: HeadScores, seed: int = 0) -> list[Transfer]:
    """Leave out each user in turn, choose the top heads by all others, and look at this user's.

    Raises:
        DataError: Fewer than two users.
    """
    users, own = user_maps(scores)
    if len(users) < 2:
        raise DataError("leaving out a user needs at least two of them")
    totals, counts = head_totals(scores)
    others = (totals.sum(0) - totals) / (counts.sum() - counts)[:, None]
    everywhere = own.mean(1)
    found = []
    for k in sizes(own.shape[1]):
        chosen = top_sets(others, k)
        held = (own * chosen).sum(1) / np.maximum(chosen.sum(1), 1)
        gain = held - everywhere
        chosen_pcs, random, above = (Estimate.of(x, users) for x in (held, everywhere, gain))
        found.append(Transfer(k, chosen_pcs, random, above, float((gain > 0).mean())))
    return found


def control_maps(weights: HeadWeights, seed: int = 0) -> dict[str, HeadWeights]:
    """A map of heads and its two random controls, by name."""
    return {
        "discovered heads": weights,
        "random heads (as many)": weights.random_like(seed, "heads"),
        "random mask (as sparse)": weights.random_like(seed, "mask"),
    }


def held_share(weights: HeadWeights, scores: HeadScores) -> float:
    """Share of the positive PCS that the heads of a map hold."""
    positive = scores.mean.double().clamp(min=0)
    return float(positive[weights.values > 0].sum() / positive.sum())
