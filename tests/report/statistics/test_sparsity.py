"""How few heads hold the PCS: planted answers come out, and noise is what chance gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.planted import N_HEADS, SHAPE, noise_maps, planted, scores_of

from prefheads.report.statistics import sparsity


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
