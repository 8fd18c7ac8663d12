"""The steps of :meth:`prefheads.PreferenceSteerer.fit`: Algorithm 1, phases 1 and 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prefheads.calibration.headsets import candidates, head_sets
from prefheads.data.example import Example, split_users, spread
from prefheads.errors import DataError, SteeringError
from prefheads.heads.scores import HeadScores
from prefheads.heads.weights import HeadWeights
from prefheads.steering.setting import Setting
from prefheads.types import Scope, Target
from prefheads.users import Clusters, ProfileEncoder, cluster_heads, fit_clusters

PARTS = ("discovery", "calibration", "test")


@dataclass(frozen=True)
class Division:
    """Samples by what they are for; no user is in two parts.

    Attributes:
        parts: All samples, by the name of their part.
        found: Those that discovery scores.
        held: Those that calibration scores.
    """

    parts: Mapping[str, Sequence[Example]]
    found: Sequence[Example]
    held: Sequence[Example]


def divide(
    examples: Iterable[Example],
    fractions: Sequence[float],
    limits: tuple[int | None, int | None],
    seed: int,
) -> Division:
    """Divide samples by their users.

    Args:
        limits: At most so many samples for discovery and for calibration.

    Raises:
        DataError: Fewer than two users for calibration.
    """
    parts = dict(zip(PARTS, split_users(examples, fractions, seed), strict=False))
    found = spread(parts["discovery"], limits[0], seed)
    held = spread(parts["calibration"], limits[1], seed)
    if len({e.user_id for e in held}) < 2:
        raise DataError("calibration needs samples of at least two users; add users or samples")
    return Division(parts, found, held)


def settings_to_try(
    settings: Sequence[Setting] | None, targets: Sequence[Target], scope: Scope
) -> list[Setting]:
    """The settings for calibration, in a scope; by default those of
    :func:`prefheads.calibration.headsets.candidates`.

    Raises:
        SteeringError: A head set that fitting does not make.
    """
    tried = candidates(targets) if settings is None else settings
    known = [heads.name for heads in head_sets(targets)]
    if unknown := {s.heads for s in tried if not s.plain}.difference(known):
        raise SteeringError(
            f"unknown head set {sorted(unknown)[0]!r}; choose from {', '.join(known)}"
        )
    return [replace(s, scope=scope) for s in tried]


def cluster_users(
    encoder: ProfileEncoder,
    division: Division,
    n_clusters: int | None,
    min_samples: int,
    seed: int,
) -> Clusters:
    """Cluster all discovery users by their profiles (5.1), whether or not they are scored."""
    profiles = {e.user_id: e.profile for e in reversed(division.parts["discovery"])}
    names = sorted(profiles)
    return fit_clusters(
        encoder.embed([profiles[name] for name in names]),
        names,
        n_clusters,
        samples_per_user={name: sum(e.user_id == name for e in division.found) for name in names},
        min_samples=min_samples,
        seed=seed,
    )


def maps_by_set(
    scores: Mapping[str, HeadScores], clusters: Clusters, targets: Sequence[Target]
) -> dict[str, tuple[list[HeadWeights], HeadWeights]]:
    """For each head set: the map of each cluster (5.2), and that of all users together."""
    return {
        heads.name: (
            cluster_heads(scores[heads.target], clusters, fraction=heads.share),
            scores[heads.target].soft(fraction=heads.share),
        )
        for heads in head_sets(targets)
    }
