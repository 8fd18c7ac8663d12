"""Intervals over users."""

from __future__ import annotations

import numpy as np
import pytest

from prefheads.errors import DataError
from prefheads.stats import Estimate, bootstrap, user_means

RNG = np.random.default_rng(0)


def test_user_means_are_plain_means_of_each_user_in_sorted_order():
    values = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 0.0]])
    assert user_means(values, ["b", "b", "a"]).tolist() == [[8.0, 0.0], [2.0, 20.0]]


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        own = rng.normal(1.0, 1.0, 30)  # a level for each user, then three samples
        values = np.repeat(own, 3) + rng.normal(0, 0.3, 90)
        low, high = bootstrap(values, [f"u{i // 3}" for i in range(90)], n_boot=400, seed=seed)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_drawing_users_is_wider_than_drawing_samples_one_by_one():
    values = np.repeat(RNG.normal(size=20), 10)
    by_user = bootstrap(values, [f"u{i // 10}" for i in range(200)])
    by_sample = bootstrap(values, [f"s{i}" for i in range(200)])
    assert by_user[1] - by_user[0] > 2 * (by_sample[1] - by_sample[0])


def test_the_same_seed_gives_the_same_interval_and_keeps_the_shape():
    values = RNG.normal(size=(12, 2, 3))
    users = [f"u{i % 4}" for i in range(12)]
    a, b = bootstrap(values, users, seed=5), bootstrap(values, users, seed=5)
    assert a[0].shape == (2, 3) and np.array_equal(a, b)
    assert (a[0] <= values.mean(0)).all() and (values.mean(0) <= a[1]).all()


def test_one_user_has_no_interval_and_nan_is_shown_as_not_measured():
    assert np.isnan(bootstrap([1.0, 2.0], ["a", "a"])).all()
    assert str(Estimate.of([np.nan, np.nan], ["a", "b"])) == "n/a"
    assert not Estimate.of([np.nan, np.nan], ["a", "b"]).excludes_zero


def test_excludes_zero():
    assert Estimate(1, 0.5, 2).excludes_zero and Estimate(-1, -2, -0.5).excludes_zero
    assert not Estimate(1, -0.5, 2).excludes_zero


@pytest.mark.parametrize(("level", "n_boot"), [(0.0, 10), (1.0, 10), (0.9, 0)])
def test_impossible_intervals_are_refused(level: float, n_boot: int):
    with pytest.raises(DataError):
        bootstrap([1.0], ["a"], level, n_boot)


def test_infinity_has_no_interval_and_is_shown():
    values = np.array([[1.0, 0.0], [np.inf, 2.0], [0.0, 1.0]])
    low, high = bootstrap(values, ["a", "b", "c"])
    assert np.isnan([low[0], high[0]]).all() and np.isfinite([low[1], high[1]]).all()
    found = Estimate.of(values[:, 0], ["a", "b", "c"])
    assert str(found) == "+inf" and not found.excludes_zero
