"""What a validation shows and what it does not, in plain words; each claim beside its control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prefheads.stats import Estimate
from prefheads.users.cluster import Clusters
from prefheads.users.embed import require
from prefheads.validate import Validation

Verdict = Literal["shown", "not shown", "contradicted"]


@dataclass(frozen=True)
class Finding:
    """A claim, whether the test users bear it out, and the figures.

    Attributes:
        estimate: The difference the verdict rests on, in nats a token, with its 95 % interval.
    """

    claim: str
    verdict: Verdict
    estimate: Estimate
    against: str

    def __str__(self) -> str:
        return f"{self.verdict.upper()}: {self.claim} ({self.against}: {self.estimate})"


def findings(validation: Validation) -> list[Finding]:
    """Judge each claim of steering by a paired difference on test users.

    A claim is shown if the 95 % interval of its difference lies on the claimed side of 0, and
    contradicted if it lies on the other. Empty if calibration chose not to steer.
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
    if paper := named("the paper's"):
        found.append(
            _judge(
                "The paper's own form of steering (DPS) helps",
                rows[paper].change,
                "change of NLL against plain decoding",
            )
        )
    return found


def _judge(
    claim: str, estimate: Estimate, against: str, helps: Literal["below", "above"] = "below"
) -> Finding:
    verdict: Verdict = "not shown"
    if estimate.excludes_zero:
        on_side = estimate.mean < 0 if helps == "below" else estimate.mean > 0
        verdict = "shown" if on_side else "contradicted"
    return Finding(claim, verdict, estimate, against)


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
    rand = require("sklearn.metrics").adjusted_rand_score(
        [kinds[user] for user in users], [clusters.assignment[user] for user in users]
    )
    counts = [
        dict(sorted(Counter(kinds[user] for user in clusters.members(c)).items()))
        for c in range(clusters.n_clusters)
    ]
    return Agreement(float(rand), counts)
