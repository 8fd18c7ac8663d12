"""Analyses of scores: planted answers come out, and controls are what chance would give."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from support.planted import SHAPE, noise_maps, scores_of

from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores
from prefheads.report import controls, overlap, reliability, roles, significance, sparsity
from prefheads.users import Clusters

N_HEADS = SHAPE[0] * SHAPE[1]


def planted(n_users, heads, strength=1.0):
    """The same heads for everybody."""
    maps = torch.zeros(n_users, *SHAPE)
    for layer, head in heads:
        maps[:, layer, head] = strength
    return maps


def groups(assignment):
    n = max(assignment.values()) + 1
    return Clusters(np.eye(n, 4, dtype=np.float32), assignment)


# --- significance


def test_planted_heads_are_significant_and_few_others():
    heads = [(2, 1), (5, 7)]
    tests = significance.head_tests(scores_of(planted(20, heads), noise=0.3))
    assert tests.holm[2, 1] < 0.05 and tests.holm[5, 7] < 0.05
    assert (tests.holm < 0.05).sum() == 2
    assert tests.low[2, 1] > 0 and (tests.p <= tests.fdr).all() and (tests.fdr <= tests.holm).all()
    rows = tests.rows("all")
    assert {(r["layer"], r["head"]) for r in rows[:2]} == set(heads) and len(rows) == N_HEADS


def test_noise_has_no_significant_heads_though_single_intervals_exclude_zero():
    tests = significance.head_tests(scores_of(noise_maps(20)))
    assert ((tests.low > 0) | (tests.high < 0)).any()
    assert not tests.significant.any()


def test_sign_test_is_that_of_all_signs():
    values = np.array([0.5, 1.0, -0.2, 0.8, 0.9, 0.3, 0.7, 0.4])
    maps = torch.zeros(8, *SHAPE)
    maps[:, 0, 0] = torch.tensor(values)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    exact = (np.abs(signs.T @ values) >= abs(values.sum()) - 1e-9).mean()
    assert significance.head_tests(scores_of(maps)).p[0, 0] == pytest.approx(exact, abs=0.005)


def test_samples_of_a_user_share_their_sign():
    few = significance.head_tests(scores_of(planted(6, [(0, 0)]), each=50))
    assert few.p[0, 0] == pytest.approx(2 / 2**6, abs=0.005)  # 300 samples, but 6 users


def test_too_few_users_are_not_tested():
    tests = significance.head_tests(scores_of(planted(5, [(0, 0)])))
    assert np.isnan(tests.p).all() and not tests.significant.any()


def test_dots_stand_on_significant_heads():
    scores = scores_of(planted(20, [(2, 1)]), noise=0.2)
    figure = significance.pcs_figure({"all": significance.head_tests(scores)}, "title")
    large = [line for line in figure.axes[0].lines if line.get_label() == "_holm"]
    assert [tuple(p) for line in large for p in line.get_xydata()] == [(2, 1)]  # (layer, head)
    with pytest.raises(DataError, match="one shape"):
        significance.pcs_figure({}, "title")


# --- sparsity


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 1, 1, 1], 0), ([1, 0, 0, 0], 0.75), ([1, -5, -5, -5], 0.75), ([1, 2, 3, 4], 0.25)],
)
def test_gini_by_hand(values, expected):
    assert sparsity.gini(np.array([values], dtype=float)) == pytest.approx(expected)


def test_gini_of_a_map_without_positive_heads_is_unknown():
    assert np.isnan(sparsity.gini(-np.ones((2, 2))))


def test_planted_sparse_heads_are_sparse():
    found = sparsity.sparsity(scores_of(planted(20, [(2, 1)]), noise=0.001))
    assert found.gini.mean > 0.98 and found.gini.low > 0.98
    assert found.share[0] > 0.95 and found.held_out[0] > 0.95
    assert found.random[0] == pytest.approx(1 / N_HEADS, rel=0.1)
    assert found.negative.mean < 0.05
    assert (np.diff(found.share) >= 0).all() and found.share[-1] == pytest.approx(1)


def test_noise_is_not_sparse_on_other_users_and_its_gini_is_that_of_random_signs():
    found = sparsity.sparsity(scores_of(noise_maps(20)))
    top = N_HEADS // 10
    assert found.share[top - 1] > 0.25  # winners by luck
    assert abs(found.held_out[top - 1] - found.random[top - 1]) < 0.12
    assert found.gini_null.low < found.gini.mean < found.gini_null.high and found.gini_p > 0.05
    assert found.gini_null.mean == pytest.approx(np.sqrt(0.5), abs=0.03)  # of half a normal


def test_equal_heads_have_no_gini():
    found = sparsity.sparsity(scores_of(torch.ones(10, *SHAPE)))
    assert found.gini.mean == pytest.approx(0, abs=1e-6)
    assert found.share[9] == found.random[9] == pytest.approx(10 / N_HEADS)


# --- overlap


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


# --- reliability


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


# --- controls and roles


def test_chosen_heads_transfer_to_users_left_out_where_they_are_shared():
    shared = controls.transfer(scores_of(planted(12, [(0, i) for i in range(3)]), noise=0.1))
    at = next(t for t in shared if t.k == 3)
    assert at.chosen.mean == pytest.approx(1, abs=0.1) and at.difference.low > 0.8
    assert at.random.mean == pytest.approx(3 / N_HEADS, abs=0.02) and at.positive == 1
    alone = controls.transfer(scores_of(noise_maps(40)))
    assert all(t.difference.low < 0.1 for t in alone)
    assert alone[2].difference.low < 0 < alone[2].difference.high


def test_random_maps_are_as_large_and_hold_less():
    scores = scores_of(planted(4, [(0, i) for i in range(3)]))
    maps = controls.control_maps(scores.soft(k=3))
    first, heads, _ = maps.values()
    assert heads.n_active == first.n_active == 3 and first.overlap(heads) == 0
    assert controls.held_share(first, scores) == pytest.approx(1)
    assert controls.held_share(heads, scores) == 0


def test_related_measurements_correlate_and_unrelated_do_not():
    scores = scores_of(planted(12, [(i, i) for i in range(8)]) + noise_maps(1), noise=0.1)
    twice = HeadScores(2 * scores.values, scores.nll, scores.example_ids, scores.user_ids)
    same = roles.relate(scores, twice, ("a", "b"), 5)
    assert same.correlation.mean == pytest.approx(1) and same.overlap == 1
    other = scores_of(noise_maps(1, seed=7).repeat(3, 1, 1))
    found = roles.relate(scores, other, ("a", "b"), 5)
    assert abs(found.correlation.mean) < 0.35 and found.chance < 0.1
    with pytest.raises(DataError, match="other heads"):
        roles.relate(
            scores, HeadScores(torch.ones(1, 2, 2), torch.ones(1), ("e",), ("u",)), ("a", "b"), 1
        )


def test_ties_share_their_rank():
    from scipy.stats import spearmanr

    a, b = noise_maps(2).numpy().reshape(2, -1)
    b[b < 0.5] = 0
    ours = roles.rank_correlation(a[None], b[None])[0]
    assert ours == pytest.approx(spearmanr(a, b).statistic)
