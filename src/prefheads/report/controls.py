"""Discovered heads beside random heads and random masks (6.4, Fig. 5), on users left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.report.charts import BLUE, SHADES, chart, head_map, intervals, map_height
from prefheads.report.overlap import sizes, top_sets, user_maps
from prefheads.report.plots import GREY, colour_bar
from prefheads.stats import Array, Estimate, user_totals


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
            found: Estimate = getattr(self, name)
            line |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        return line | {"users_above_random": self.positive}


def transfer(scores: HeadScores, seed: int = 0) -> list[Transfer]:
    """Leave out each user in turn, choose the top heads by all others, and look at this user's.

    Raises:
        DataError: Fewer than two users.
    """
    users, own = user_maps(scores)
    if len(users) < 2:
        raise DataError("leaving out a user needs at least two of them")
    totals, counts = user_totals(scores.values.numpy(), scores.user_ids)
    totals = totals.reshape(len(totals), -1)
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


def transfer_figure(found: Sequence[Transfer], title: str) -> Any:
    """Mean PCS against the number of heads, for chosen and for random heads."""
    where = np.arange(len(found))
    with chart(3.3, title) as figure:
        axes = figure.subplots()
        intervals(axes, where, [t.chosen for t in found], BLUE, "chosen by the others", fmt="o-")
        intervals(axes, where, [t.random for t in found], GREY, "random heads", fmt="s--")
        axes.axhline(0, color=GREY, lw=0.6)
        axes.set_xticks(where, [str(t.k) for t in found])
        axes.set_xlabel("top heads")
        axes.set_ylabel("mean PCS on the user\nleft out, nats a token")
        axes.legend()
    return figure


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


def control_figure(maps: dict[str, HeadWeights], title: str) -> Any:
    """The maps, one under the other."""
    shape = next(iter(maps.values())).shape
    with chart(1.1 + len(maps) * map_height(*shape), title) as figure:
        grid = figure.subplots(len(maps), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (name, weights) in zip(grid, maps.items(), strict=True):
            values: Array = weights.values.double().numpy()
            image = head_map(axes, values, 1.0, SHADES)
            axes.set_title(name)
        grid[-1].set_xlabel("layer")
        colour_bar(figure, image, grid, "weight of the head")
    return figure
