"""Agreement of sets with themselves: of users' own sets, of groups, and of sizes."""

from __future__ import annotations

import numpy as np
import pytest
from support.planted import N_HEADS, noise_maps, planted, scores_of

from prefheads.report.statistics import overlap, reliability


def test_users_with_heads_of_their_own_agree_with_themselves_only():
    maps = 5 * noise_maps(12)
    found = reliability.own_reliability(scores_of(maps, each=6, noise=0.5), 6)
    assert found is not None and found.within.mean > 0.7
    assert found.between.mean == pytest.approx(found.chance, abs=0.03)
    assert found.difference.low > 0.5


def test_users_with_shared_heads_and_noise_agree_no_more_with_themselves():
    maps = planted(20, [(0, i) for i in range(6)])
    found = reliability.own_reliability(scores_of(maps, each=4, noise=0.6), 6)
    assert found is not None and found.within.mean > 2 * found.chance
    assert found.difference.low < 0.03 and found.difference.high > -0.03


def test_one_sample_a_user_says_nothing_of_reliability():
    assert reliability.own_reliability(scores_of(noise_maps(10)), 5) is None


def test_groups_agree_the_more_users_they_pool():
    maps = planted(32, [(0, i) for i in range(6)])
    found = reliability.group_reliability(scores_of(maps, noise=1.0), 6)
    assert found is not None and found.group_sizes == (1, 2, 4, 8, 16)
    means = [e.mean for e in found.overlap]
    assert means == sorted(means) and means[-1] > 0.7 and means[0] < 0.4
    single = overlap.user_overlap(scores_of(maps, noise=1.0), 6).mean
    assert means[0] == pytest.approx(single.mean, abs=0.05)


def test_groups_of_noise_agree_by_chance_however_many():
    found = [reliability.group_reliability(scores_of(noise_maps(32, i)), 6) for i in range(20)]
    means = np.mean([[e.mean for e in f.overlap] for f in found if f is not None], axis=0)
    assert means == pytest.approx(np.full(5, overlap.chance(6, 6, N_HEADS)), abs=0.02)
    assert reliability.group_reliability(scores_of(noise_maps(3)), 6) is None


def test_sets_of_one_ranking_overlap_by_the_quotient_of_their_sizes():
    found = reliability.scale_overlap(scores_of(noise_maps(20).abs()))
    quotients = [[min(a, b) / max(a, b) for b in found.heads] for a in found.heads]
    assert found.same == pytest.approx(np.array(quotients))
    noise = reliability.scale_overlap(scores_of(noise_maps(20)))
    assert noise.halves == pytest.approx(noise.chance, abs=0.06)
