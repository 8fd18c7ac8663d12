"""All analyses of one discovery of heads, in the order of the page."""

from __future__ import annotations

from prefheads.report import chapters_heads as heads
from prefheads.report import chapters_roles as doing
from prefheads.report import chapters_sets as sets
from prefheads.report import roles
from prefheads.report.chapter import Chapter, Part
from prefheads.report.index import Entry


def entries(part: Part, seed: int = 0) -> list[Entry]:
    """All analyses of a discovery."""
    found: list[Entry] = []
    for target, scores in part.scores.items():
        found += _of_target(Chapter(part, target, scores, seed))
    measured = {roles.MEASURED[target]: scores for target, scores in part.scores.items()}
    if part.copying is not None:
        measured[roles.MEASURED["copy"]] = part.copying
    if part.roles is not None:
        measured[roles.MEASURED["attention"]] = part.roles.attention
    return found + heads.relations(part, measured, seed)


def _of_target(chapter: Chapter) -> list[Entry]:
    found = [heads.maps(chapter), heads.single_users(chapter), heads.sparsity(chapter)]
    found.append(doing.roles(chapter))
    if len(chapter.users) < 2:
        missing = (
            "overlap, reliability and controls compare users, and this run has one; discover with "
            f"samples of more users: `{chapter.part.fit}`."
        )
        return [
            *found,
            chapter.entry("overlap", "Overlap between users", "Fig. 4", missing=missing),
        ]
    compared = (sets.overlap, sets.reliability, sets.clusters, sets.scales)
    found += [analysis(chapter) for analysis in compared]
    return [*found, heads.control_maps(chapter), heads.transfer(chapter)]
