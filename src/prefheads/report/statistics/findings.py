"""What a validation shows and what it does not, in plain words; each claim beside its control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from prefheads.calibration.paper import BEST
from prefheads.calibration.validate import Row, Validation
from prefheads.optional import require
from prefheads.report.wording import interval, known
from prefheads.stats import Estimate, holm
from prefheads.users.cluster import Clusters

Verdict = Literal["shown", "not shown", "contradicted", "too few to tell"]
LEVEL = 0.05
# Of six claims with fewer users, not one can be told by signs alone, which assume nothing of how
# users are spread (6 * 2 / 2**7 > 5 %): a verdict would rest on t's assumption of normal data.
MIN_USERS = 8
VERDICTS = (
    f"Verdicts are corrected for the number of claims (Holm, {LEVEL:.0%}), intervals are of one "
    f"claim alone. With fewer than {MIN_USERS} people there is no verdict."
)


@dataclass(frozen=True)
class Claim:
    """A claim, whether the test users bear it out, and the figures.

    Attributes:
        estimate: The difference the verdict rests on, in nats a token, with its 95 % interval,
            which is that of this claim alone.
        p: Of no difference, corrected for the number of claims (Holm); NaN where it is infinite.
    """

    claim: str
    verdict: Verdict
    estimate: Estimate
    against: str
    p: float = float("nan")

    @property
    def p_shown(self) -> str:
        """The corrected p in few digits; empty where there is none."""
        if np.isnan(self.p):
            return ""
        return "< 0.0001" if self.p < 1e-4 else f"{self.p:.2g}"

    def __str__(self) -> str:
        p = f", corrected p {self.p_shown}" if self.p_shown else ""
        return f"{self.verdict.upper()}: {self.claim} ({self.against}: {self.estimate}{p})"


def findings(validation: Validation) -> list[Claim]:
    """Judge each claim of steering by a paired difference on test users.

    A claim is shown if its difference lies on the claimed side of 0 by a test (t over users) that
    is corrected for the number of claims, and contradicted if it lies on the other. With fewer
    than ``MIN_USERS`` users there are too few to tell. Empty if calibration chose not to steer.
    """
    if validation.setting.plain:
        return []
    rows = {row.method: row for row in validation.rows()}

    def named(start: str) -> str | None:
        return next((name for name in rows if name.startswith(start)), None)

    found = [
        _judge(
            "Steering makes what people really wrote more likely",
            rows["steered"].change,
            "change of NLL against plain decoding",
        )
    ]
    pairs = [
        (
            "The gain is more than a better temperature",
            named("steered, temperature"),
            named("plain, temperature"),
            "each at its best temperature, steered - plain",
        ),
        (
            "The heads that were found do better than random heads",
            "steered",
            named("random heads"),
            "steered - random heads",
        ),
        (
            "Heads of the person's cluster do better than one map for everybody",
            "steered",
            named("one map"),
            "steered - one map",
        ),
    ]
    for claim, method, baseline, against in pairs:
        if method is not None and baseline is not None:
            found.append(_judge(claim, validation.difference(method, baseline), against))
    found.append(
        _judge(
            "Steering is more personal: it helps more with the own profile than with another's",
            rows["steered"].specificity_change,
            "change of specificity",
            helps="above",
        )
    )
    best = named(BEST)
    if paper := best or named("the paper's"):
        found.append(
            _judge(
                "The paper's own form of steering (DPS) helps"
                + (", as it calibrated best" * bool(best)),
                rows[paper].change,
                "change of NLL against plain decoding",
            )
        )
    if len(set(validation.user_ids)) < MIN_USERS:
        return [replace(f, verdict="too few to tell") for f in found]
    corrected = holm(np.nan_to_num([f.estimate.p for f in found], nan=1.0).tolist())
    return [
        replace(f, p=float(p), verdict=f.verdict if p < LEVEL else "not shown")
        for f, p in zip(found, corrected, strict=True)
    ]


def validation_cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Every method with its controls as a table to read: shares in %, NLL in nats a token."""
    return [
        {
            "method": row.method,
            "NLL": f"{row.nll:.3f}",
            "change": str(row.change),
            "other's profile": str(row.other),
            "no profile": str(row.none),
            "specificity": known(f"{row.specificity.mean:+z.3f}"),
            "its change": str(row.specificity_change),
            "own wins, %": interval(row.own_wins, "z.0f", 100),
        }
        for row in rows
    ]


def _judge(
    claim: str, estimate: Estimate, against: str, helps: Literal["below", "above"] = "below"
) -> Claim:
    """With the verdict that holds if the difference is told from 0."""
    on_side = estimate.mean < 0 if helps == "below" else estimate.mean > 0
    return Claim(claim, "shown" if on_side else "contradicted", estimate, against)


@dataclass(frozen=True)
class Agreement:
    """How well clusters match kinds of people that are known from elsewhere.

    Attributes:
        rand: Adjusted Rand index: 1 for the same groups, about 0 for chance.
        counts: Users of each kind, by cluster.
    """

    rand: float
    counts: Sequence[Mapping[str, int]]


def agreement(clusters: Clusters, kinds: Mapping[str, str]) -> Agreement:
    """Compare the clusters of discovery users with their kinds, one of each user."""
    users = sorted(clusters.assignment)
    rand = require("sklearn.metrics", "cluster").adjusted_rand_score(
        [kinds[user] for user in users], [clusters.assignment[user] for user in users]
    )
    counts = [
        dict(sorted(Counter(kinds[user] for user in clusters.members(c)).items()))
        for c in range(clusters.n_clusters)
    ]
    return Agreement(float(rand), counts)
