"""The steps of fitting."""

from __future__ import annotations

import pytest
from support import results
from support.people import people

from prefheads.errors import DataError, SteeringError
from prefheads.steerer.fit import divide, maps_by_set, settings_to_try
from prefheads.steering.setting import PLAIN, Setting


def test_samples_are_divided_by_their_users() -> None:
    everyone = people()
    parts, found, held = divide(everyone, (0.5, 0.25, 0.25), (4, None), seed=0)
    users = [{e.user_id for e in part} for part in parts.values()]
    assert sum(map(len, users)) == len(set.union(*users)) == len({e.user_id for e in everyone})
    assert len(found) == 4 and {e.user_id for e in found} <= users[0]
    assert held == parts["calibration"]
    with pytest.raises(DataError, match="at least two users"):
        divide(everyone, (0.5, 0.25, 0.25), (None, 1), seed=0)


def test_settings_are_tried_in_one_scope() -> None:
    given = [PLAIN, Setting("top 4% by head PCS", gamma=1.0)]
    assert [s.scope for s in settings_to_try(given, ("head",), "all")] == ["all", "all"]
    assert {s.target for s in settings_to_try(None, ("head",), "response")} == {"head", "profile"}
    with pytest.raises(SteeringError, match="unknown head set 'top 4% by profile PCS'"):
        settings_to_try([Setting("top 4% by profile PCS", gamma=1.0)], ("head",), "response")


def test_each_head_set_has_a_map_for_each_cluster_and_one_for_all() -> None:
    steerer = results.steerer(PLAIN)
    found = maps_by_set(steerer.scores, steerer.clusters, ("head", "profile"))
    assert len(found) == 7
    maps, shared = found["top 8% by profile PCS"]
    assert len(maps) == steerer.clusters.n_clusters
    assert shared == steerer.scores["profile"].soft(fraction=0.08)
