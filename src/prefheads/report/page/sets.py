"""The analyses of top sets: between users, between clusters, and against themselves."""

from __future__ import annotations

import numpy as np

from prefheads.report.figures import sets as figures
from prefheads.report.page.discovery import TargetScores
from prefheads.report.page.entry import Entry
from prefheads.report.statistics import overlap as between
from prefheads.report.statistics import reliability as agreement
from prefheads.report.wording import show


def overlap(c: TargetScores) -> Entry:
    """Overlap between users."""
    clusters = c.discovery.clusters
    found = between.user_overlap(c.scores, c.k, clusters)
    n_heads = c.scores.shape[1] * c.scores.shape[2]
    by_size = [
        between.user_overlap(c.scores, k, clusters).summary() for k in between.sizes(n_heads)
    ]
    return c.entry(
        "overlap",
        "Overlap of users' top heads",
        "Fig. 4",
        shows=(
            f"Top {c.k} heads of {len(found.users)} users, each found alone: mean Jaccard "
            f"overlap {show(found.mean, 3)} over {len(found.pairs)} pairs, by chance "
            f"{found.chance:.3f}. A low overlap proves nothing by itself: see how far such a "
            "set agrees with itself, below."
        ),
        figure=figures.overlap_figure(found, c.title("Overlap between users")),
        tables={"": found.rows(), "sizes": by_size},
    )


def reliability(c: TargetScores) -> Entry:
    """How far sets agree with themselves."""
    own = agreement.own_reliability(c.scores, c.k, c.seed)
    groups = agreement.group_reliability(c.scores, c.k, c.seed)
    said, missing = [], ""
    if own is None:
        missing = (
            "how far a user's own set agrees with itself. Fewer than two of these users have "
            "more than one sample, so that differences between users and noise of a sample cannot "
            "be told apart, and a low overlap between users is no evidence of user-specific heads. "
            "Scores are kept by sample, not by token, so resampling tokens is no way out. Name "
            f"data with several samples of each user: `{c.discovery.fit}`."
        )
    else:
        said.append(
            f"Sets of two halves of one user's samples overlap by {show(own.within, 3)}, of "
            f"halves of two users by {show(own.between, 3)} ({own.n_users} users, chance "
            f"{own.chance:.3f}); difference {show(own.difference, 3)}. Above 0, sets are the "
            "user's own; at 0 they are shared or noise."
        )
    if groups is not None:
        first, last = groups.overlap[0], groups.overlap[-1]
        said.append(
            f"Pooled sets of two disjoint groups of users overlap by {first.mean:.2f} with "
            f"{groups.group_sizes[0]} user in each and {last.mean:.2f} with "
            f"{groups.group_sizes[-1]} (chance {groups.chance:.3f}; bars: range of 95 % of "
            "random groups of these users, no interval for others). A rise shows heads that "
            "users share, hidden by noise in single samples."
        )
    else:
        missing += " Agreement of groups needs four users or more."
    title = c.title("How far top sets agree with themselves")
    tables = {name: x.rows() for name, x in (("own", own), ("groups", groups)) if x}
    return c.entry(
        "reliability",
        "Reliability of the top heads",
        "Fig. 4, its ceiling",
        shows=" ".join(said),
        missing=missing.strip(),
        figure=groups and figures.reliability_figure(groups, own, title),
        tables=tables,
    )


def clusters(c: TargetScores) -> Entry:
    """Overlap between clusters."""
    clusters, missing = c.discovery.clusters, ""
    head = "clusters", "Overlap of clusters' top heads", "Fig. 4, 5.2"
    if clusters is None or len(c.members()) < max(2, clusters.n_clusters):
        missing = f"two clusters or more, each with samples; `{c.discovery.fit} --clusters 4`."
    elif len(c.users) == clusters.n_clusters:
        missing = (
            "a cluster of two users or more, to compare users within and across clusters; name "
            f"more users, or fewer clusters: `{c.discovery.fit}`."
        )
    if clusters is None or missing:
        return c.entry(*head, missing=missing)
    found = between.cluster_overlap(c.scores, clusters, c.k, c.seed)
    return c.entry(
        *head,
        shows=(
            f"Top {c.k} heads of {len(found.names)} clusters: mean overlap "
            f"{found.between:.2f}; of random groups of the same users and sizes "
            f"{show(found.random)} (95 % of deals), of random heads {found.chance:.3f}. Users "
            f"of one cluster overlap by {found.within:+z.3f} more than users of different "
            f"ones, and in {found.p:.2g} of random deals by as much: above 0.05, these "
            "clusters do not have heads of their own as far as this can tell."
        ),
        figure=figures.cluster_figure(found, c.title("Overlap between clusters")),
        tables={"": found.rows()},
    )


def scales(c: TargetScores) -> Entry:
    """Overlap of sets of different sizes."""
    found = agreement.scale_overlap(c.scores, c.seed)
    own = ", ".join(f"{x:.2f}" for x in np.diagonal(found.halves))
    return c.entry(
        "scales",
        "Overlap of sets of different sizes",
        "Fig. 7",
        shows=(
            "Sets of one ranking lie within each other, so that their overlap is the quotient "
            "of their sizes (fewer where fewer heads are positive), whatever the scores are: "
            "by itself that shows no stability. The second matrix compares rankings by two "
            f"halves of the users; with K of {', '.join(map(str, found.heads))} heads in both "
            f"these overlap by {own}; its table has ranges and chance."
        ),
        figure=figures.scale_figure(found, c.title("Overlap of top K and top K'")),
        tables={"": found.rows()},
    )
