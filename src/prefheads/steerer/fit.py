"""Steps of :meth:`prefheads.PreferenceSteerer.fit`: Algorithm 1, phases 1 and 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from prefheads.calibration.headsets import candidates, head_sets
from prefheads.data.example import Example, split_users, spread
from prefheads.errors import DataError, SteeringError
from prefheads.heads.scores import HeadScores
from prefheads.heads.weights import HeadWeights
from prefheads.steering.setting import Setting
from prefheads.types import Scope, Target
from prefheads.users import Clusters, ProfileEncoder, cluster_heads, fit_clusters

PARTS = ("discovery", "calibration", "test")
Samples = list[Example]


def divide(
    examples: Iterable[Example],
    fractions: Sequence[float],
    limits: tuple[int | None, int | None],
    seed: int,
) -> tuple[dict[str, Samples], Samples, Samples]:
    """All samples by part, no user in two of them; those that discovery scores, at most so many
    as the first limit; and those that calibration scores, likewise."""
    parts = dict(zip(PARTS, split_users(examples, fractions, seed), strict=False))
    found, held = (spread(parts[p], n, seed) for p, n in zip(PARTS, limits, strict=False))
    if len({e.user_id for e in held}) < 2:
        raise DataError("calibration needs samples of at least two users; add users or samples")
    return parts, found, held


def settings_to_try(
    settings: Sequence[Setting] | None, targets: Sequence[Target], scope: Scope
) -> list[Setting]:
    """What calibration chooses between, in one scope; refuses unknown head sets."""
    tried = candidates(targets) if settings is None else settings
    known = [heads.name for heads in head_sets(targets)]
    if unknown := {s.heads for s in tried if not s.plain}.difference(known):
        raise SteeringError(
            f"unknown head set {sorted(unknown)[0]!r}; choose from {', '.join(known)}"
        )
    return [replace(s, scope=scope) for s in tried]


def cluster_users(
    encoder: ProfileEncoder,
    people: Samples,
    scored: Samples,
    n_clusters: int | None,
    min_samples: int,
    seed: int,
) -> Clusters:
    """Clusters of all discovery users by their profiles (5.1), scored or not."""
    profiles = {e.user_id: e.profile for e in reversed(people)}
    names = sorted(profiles)
    return fit_clusters(
        encoder.embed([profiles[name] for name in names]),
        names,
        n_clusters,
        samples_per_user={name: sum(e.user_id == name for e in scored) for name in names},
        min_samples=min_samples,
        seed=seed,
    )


def maps_by_set(
    scores: Mapping[str, HeadScores], clusters: Clusters, targets: Sequence[Target]
) -> dict[str, tuple[list[HeadWeights], HeadWeights]]:
    """For each head set: the map of each cluster (5.2), and that of all users together."""
    maps = {}
    for heads in head_sets(targets):
        own = cluster_heads(scores[heads.target], clusters, fraction=heads.share)
        maps[heads.name] = own, scores[heads.target].soft(fraction=heads.share)
    return maps
