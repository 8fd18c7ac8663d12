"""All analyses of one discovery: which heads matter, how few, what they do, beside random ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from prefheads.heads.scores import HeadScores
from prefheads.report.figures import heads as figures
from prefheads.report.page import sets
from prefheads.report.page.discovery import FRACTION, Discovery, TargetScores, set_size
from prefheads.report.page.entry import Entry
from prefheads.report.statistics import correlation, significance
from prefheads.report.statistics.roles import TopHeads
from prefheads.report.statistics.significance import HeadTests
from prefheads.report.statistics.sparsity import sparsity as measure_sparsity
from prefheads.report.statistics.transfer import control_maps, held_share
from prefheads.report.statistics.transfer import transfer as measure_transfer
from prefheads.report.wording import counted, named, show
from prefheads.stats import Estimate

N_SHOWN = 4  # users with a map of their own
N_GROUPS = 6  # clusters with a map of their own; the table has all


def entries(discovery: Discovery, seed: int = 0) -> list[Entry]:
    """All analyses of a discovery, in the order of the page."""
    found: list[Entry] = []
    for target, scores in discovery.scores.items():
        found += _of_target(TargetScores(discovery, target, scores, seed))
    measured = {correlation.MEASURED[t]: scores for t, scores in discovery.scores.items()}
    if discovery.copying is not None:
        measured[correlation.MEASURED["copy"]] = discovery.copying
    if discovery.roles is not None:
        measured[correlation.MEASURED["attention"]] = discovery.roles.attention
    return found + _relations(discovery, measured)


def _of_target(c: TargetScores) -> list[Entry]:
    found = [pcs_maps(c), single_users(c), sparsity(c), roles(c)]
    if len(c.users) > 1:
        of_sets = (sets.overlap, sets.reliability, sets.clusters, sets.scales)
        return [*found, *(analysis(c) for analysis in (*of_sets, controls, transfer))]
    missing = (
        "overlap, reliability and controls compare users, and this run has one; discover with "
        f"samples of more users: `{c.discovery.fit}`."
    )
    return [*found, c.entry("overlap", "Overlap between users", "Fig. 4", missing=missing)]


def roles(c: TargetScores) -> Entry:
    """Attention to the profile, copy score and logit effect of the top heads."""
    title, paper = "What the top heads do", "6.3, what heads do"
    measured = c.discovery.roles
    effects = () if measured is None else measured.effects.get(c.target, ())
    if measured is None or not effects:
        return c.entry("roles", title, paper, missing=c.discovery.unmeasured)
    found = TopHeads(measured, effects, c.scores, c.discovery.copying)
    return c.entry(
        "roles",
        title,
        paper,
        shows=str(found),
        figure=figures.roles_figure(found.names, found.measures(), c.title(title)),
        tables={"": found.rows(), "tokens": found.token_rows()},
    )


def pcs_maps(c: TargetScores) -> Entry:
    """PCS of all users and of each cluster, with tests."""
    everyone = f"all {len(c.users)} users" if len(c.users) > 1 else "the one user"
    groups = {everyone: c.scores, **c.members()}
    tests = {name: significance.head_tests(s, c.seed) for name, s in groups.items()}
    everybody = next(iter(tests.values()))
    clusters = c.discovery.clusters
    missing = ""
    if clusters is None:
        missing = f"maps of clusters; `{c.discovery.fit}` finds clusters."
    elif clusters.n_clusters < 2:
        missing = (
            "maps of clusters: all users were put into one; "
            f"ask for more, and users enough for them: `{c.discovery.fit} --clusters 4`."
        )
    return c.entry(
        "pcs",
        "PCS of every head, all users and clusters",
        "Fig. 3",
        shows=f"Mean PCS with 95 % intervals over users (jackknife, t). {_counted(everybody)}",
        missing=missing,
        figure=figures.pcs_figure(dict(list(tests.items())[: 1 + N_GROUPS]), c.title("Mean PCS")),
        tables={"": [row for name, t in tests.items() for row in t.rows(name)]},
    )


def single_users(c: TargetScores) -> Entry:
    """PCS of some users, drawn at random; the table has all."""
    rng = np.random.default_rng(c.seed)
    picked = sorted(rng.choice(c.users, min(N_SHOWN, len(c.users)), replace=False))
    tests = {}
    for user in picked:
        own = c.scores.select(users=[user])
        name = f"user {user} ({counted(own.n_examples, 'sample')})"
        tests[name] = significance.head_tests(_by_sample(own), c.seed)
    several = sum(n > 1 for n in Counter(c.scores.user_ids).values())
    return c.entry(
        "users",
        f"PCS of every head, {counted(len(picked), 'user')} drawn at random",
        "Fig. 3",
        shows=(
            f"{several} of {len(c.users)} users have more than one sample. A user's map shows what "
            "their samples gave, noise included: heads are marked only for users with "
            f"{significance.MIN_USERS} samples or more, tested over these."
        ),
        figure=figures.pcs_figure(tests, c.title("PCS of single users")),
        tables={"": significance.user_rows(c.scores, c.users)},
    )


def sparsity(c: TargetScores) -> Entry:
    """How few heads hold the positive PCS."""
    found = measure_sparsity(c.scores, c.seed)
    i = c.k - 1
    top = Estimate(*(float(x[i]) for x in (found.share, found.low, found.high)))
    held = ""
    if not np.isnan(found.held_out[i]):
        held = (
            f" and {found.held_out[i]:.0%} on users by whom they were not chosen, as many random "
            f"heads {found.random[i]:.1%}"
        )
    return c.entry(
        "sparsity",
        "How few heads hold the PCS",
        "6.3, sparsity",
        shows=(
            f"The top {c.k} of {len(found.share)} heads hold {show(top)} of the positive "
            f"PCS (interval: over users){held}. Gini coefficient "
            f"{show(found.gini)}; with random signs of users, as if heads acted as strongly but in "
            f"no direction, {show(found.gini_null)}, p = {found.gini_p:.2g}. "
            f"Negative over positive PCS: {show(found.negative)}; at 1 they "
            "balance. Intervals tell how far other users would differ, not how much noise adds to "
            "each of these: the random signs do."
        ),
        figure=figures.sparsity_figure(found, c.title("Share of the positive PCS")),
        tables={"": found.rows(), "gini": found.summary()},
    )


def controls(c: TargetScores) -> Entry:
    """Discovered heads beside random heads and a random mask."""
    maps = control_maps(c.scores.soft(fraction=FRACTION), c.seed)
    shares = {name: held_share(m, c.scores) for name, m in maps.items()}
    rows = [
        {"map": name, "heads": m.n_active, "share_of_positive_pcs": shares[name]}
        for name, m in maps.items()
    ]
    return c.entry(
        "controls",
        "Discovered heads and random controls, as maps",
        "Fig. 5",
        shows=(
            "Share of the positive PCS that each map holds: "
            + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            + ". Discovered heads are chosen by that very PCS; the next analysis does not."
        ),
        figure=figures.control_figure(maps, c.title("Discovered heads and controls")),
        tables={"": rows},
    )


def transfer(c: TargetScores) -> Entry:
    """Chosen and random heads on users left out."""
    found = measure_transfer(c.scores, c.seed)
    at = next(t for t in found if t.k == c.k)
    return c.entry(
        "transfer",
        "Discovered and random heads on users left out",
        "Fig. 5",
        shows=(
            f"The top {c.k} heads by all other users have a mean PCS of "
            f"{show(at.chosen, 4)} nats a token on the user left out, random heads "
            f"{show(at.random, 4)}; difference {show(at.difference, 4)}, above 0 for "
            f"{at.positive:.0%} of users. It shows heads that matter to users in general."
        ),
        figure=figures.transfer_figure(found, c.title("PCS on users left out")),
        tables={"": [t.row() for t in found]},
    )


def _relations(d: Discovery, measured: Mapping[str, HeadScores]) -> list[Entry]:
    """Each pair of measurements of the same heads."""
    found = []
    short = {long: target for target, long in correlation.MEASURED.items()}
    for first, second in combinations(measured, 2):
        k = set_size(measured[first])
        relation = correlation.relate(measured[first], measured[second], (first, second), k)
        found.append(
            Entry(
                named(d.name, "relation", short[first], short[second]),
                f"{d.where}{first}, and {second}",
                "6.3, what heads do",
                shows=(
                    f"Rank correlation over heads {show(relation.correlation)}, 0 if unrelated "
                    "(users drawn anew add noise, which pulls the interval towards 0). "
                    f"The top {k} by the one and by the other overlap by {relation.overlap:.2f}, "
                    f"by chance {relation.chance:.3f}."
                ),
                figure=figures.relation_figure(
                    relation, f"{d.where}Two measurements of every head"
                ),
                tables={"": [relation.row()]},
            )
        )
    return found


def _by_sample(scores: HeadScores) -> HeadScores:
    """One user's scores with every sample as a unit of its own, for intervals and tests."""
    return HeadScores(
        scores.values, scores.nll, scores.example_ids, scores.example_ids, scores.info
    )


def _counted(tests: HeadTests) -> str:
    if tests.n_users < significance.MIN_USERS:
        return f"No head can be tested with {counted(tests.n_users, 'user')}."
    alone = int(((tests.low > 0) | (tests.high < 0)).sum())
    holm = int((tests.holm < significance.LEVEL).sum())
    up = int((tests.significant & (tests.mean > 0)).sum())
    return (
        f"Of {tests.mean.size} heads {alone} have an interval that excludes 0, looked at one by "
        f"one; corrected for their number (random signs of users) {int(tests.significant.sum())} "
        f"differ from 0 at a false discovery rate of 5 % (Benjamini-Hochberg), {up} of them "
        f"upwards, and {holm} by Holm."
    )
