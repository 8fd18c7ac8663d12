"""Which heads matter: planted ones do, noise does not, however many heads are tested."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.planted import N_HEADS, SHAPE, noise_maps, planted, scores_of

from prefheads.errors import DataError
from prefheads.report.figures.heads import pcs_figure
from prefheads.report.statistics import significance


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
    figure = pcs_figure({"all": significance.head_tests(scores)}, "title")
    large = [line for line in figure.axes[0].lines if line.get_label() == "_holm"]
    assert [tuple(p) for line in large for p in line.get_xydata()] == [(2, 1)]  # (layer, head)
    with pytest.raises(DataError, match="one shape"):
        pcs_figure({}, "title")
