"""Chosen heads on users left out, and random maps."""

from __future__ import annotations

import pytest
from support.planted import N_HEADS, noise_maps, planted, scores_of

from prefheads.report.statistics import transfer


def test_chosen_heads_transfer_to_users_left_out_where_they_are_shared():
    shared = transfer.transfer(scores_of(planted(12, [(0, i) for i in range(3)]), noise=0.1))
    at = next(t for t in shared if t.k == 3)
    assert at.chosen.mean == pytest.approx(1, abs=0.1) and at.difference.low > 0.8
    assert at.random.mean == pytest.approx(3 / N_HEADS, abs=0.02) and at.positive == 1
    alone = transfer.transfer(scores_of(noise_maps(40)))
    assert all(t.difference.low < 0.1 for t in alone)
    assert alone[2].difference.low < 0 < alone[2].difference.high


def test_random_maps_are_as_large_and_hold_less():
    scores = scores_of(planted(4, [(0, i) for i in range(3)]))
    maps = transfer.control_maps(scores.soft(k=3))
    first, heads, _ = maps.values()
    assert heads.n_active == first.n_active == 3 and first.overlap(heads) == 0
    assert transfer.held_share(first, scores) == pytest.approx(1)
    assert transfer.held_share(heads, scores) == 0
