"""Overlap of top sets: planted answers come out, and controls are what chance would give."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from support.planted import groups, noise_maps, planted, scores_of

from prefheads.errors import DataError
from prefheads.report.statistics import overlap


def test_chance_is_the_mean_over_all_sets():
    n, a, k_b = 7, {0, 1, 2}, 2
    every = [len(a & set(b)) / len(a | set(b)) for b in combinations(range(n), k_b)]
    assert len(every) == comb(n, k_b)
    assert overlap.chance(3, k_b, n) == pytest.approx(np.mean(every))
    assert overlap.chance(0, 0, n) == 1 and overlap.chance(n, n, n) == 1


def test_identical_users_overlap_fully():
    maps = noise_maps(1).repeat(6, 1, 1)
    found = overlap.user_overlap(scores_of(maps), 5)
    assert (found.values == 1).all() and (found.mean.mean, found.mean.low) == (1, 1)


def test_random_users_overlap_by_chance():
    found = overlap.user_overlap(scores_of(noise_maps(60)), 8)
    assert found.mean.low < found.chance < found.mean.high
    assert found.mean.mean == pytest.approx(found.chance, abs=0.01)
    assert found.summary()["above_chance"] == pytest.approx(0, abs=0.01)


def test_sets_hold_positive_heads_only():
    maps = planted(3, [(0, 0), (1, 1)]) - 0.1
    sets = overlap.top_sets(maps.numpy().reshape(3, -1), 5)
    assert sets.sum(1).tolist() == [2, 2, 2]
    with pytest.raises(DataError, match="choose between"):
        overlap.top_sets(np.ones((1, 4)), 5)


def test_overlap_agrees_with_that_of_head_weights():
    scores = scores_of(noise_maps(2))
    a, b = (scores.select(users=[u]).top(k=9) for u in ("u000", "u001"))
    assert overlap.user_overlap(scores, 9).values[0, 1] == pytest.approx(a.overlap(b))


def test_clusters_with_heads_of_their_own_are_told_from_random_groups():
    maps = torch.cat(
        [planted(8, [(0, i) for i in range(5)]), planted(8, [(5, i) for i in range(5)])]
    )
    assignment = {f"u{i:03d}": i // 8 for i in range(16)}
    found = overlap.cluster_overlap(scores_of(maps, noise=0.1), groups(assignment), 5)
    assert found.between == 0 and (found.values == np.eye(2)).all()
    assert found.within > 0.9 and found.p < 0.01


def test_random_clusters_do_not_differ():
    maps = planted(16, [(0, i) for i in range(5)])
    assignment = {f"u{i:03d}": i % 2 for i in range(16)}
    found = overlap.cluster_overlap(scores_of(maps, noise=2.0), groups(assignment), 5)
    assert found.p > 0.05 and found.random.low <= found.between <= found.random.high


def test_cluster_overlap_needs_clusters_of_these_users():
    scores = scores_of(noise_maps(4))
    with pytest.raises(DataError, match="two or more"):
        overlap.cluster_overlap(scores, groups({f"u{i:03d}": 0 for i in range(4)}), 3)
    with pytest.raises(DataError, match="belongs to no cluster"):
        overlap.cluster_overlap(scores, groups({"u000": 0, "u001": 1}), 3)
    alone = groups({f"u{i:03d}": i for i in range(4)})
    with pytest.raises(DataError, match="two users or more"):
        overlap.cluster_overlap(scores, alone, 3)
