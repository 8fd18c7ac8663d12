"""Intervals and paired tests of metrics over users."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test

from prefheads.errors import DataError
from prefheads.evaluation.significance import difference, interval, paired_test
from prefheads.stats import Estimate, jackknife
from prefheads.tasks.answers import Metric, answers_of
from prefheads.tasks.metrics import sample_scores

MEAN = Metric("mean")
PERPLEXITY = Metric("perplexity", False, outer=np.exp)
MAE, RMSE = answers_of("LaMP-3").metrics
F1 = answers_of("LaMP-1").metrics[1]


def each(n: int) -> list[str]:
    """A user for every sample."""
    return [f"u{i:04}" for i in range(n)]


def answers(n: int, right: float, seed: int, golds: list[str]) -> list[str]:
    rng = np.random.default_rng(seed)
    wrong = {"[1]": "[2]", "[2]": "[1]"}
    return [g if rng.random() < right else wrong[g] for g in golds[:n]]


def f1_rows(n: int, right: float, seed: int) -> np.ndarray:
    golds = [str(g) for g in np.random.default_rng(0).choice(["[1]", "[2]"], n)]
    return sample_scores("LaMP-1", answers(n, right, seed, golds), golds)["f1"]


def test_the_interval_of_a_mean_is_that_of_the_jackknife():
    values, users = np.random.default_rng(0).normal(size=30), [f"u{i % 9}" for i in range(30)]
    estimate = interval(values, MEAN, users)
    assert estimate.mean == pytest.approx(values.mean())
    assert np.allclose([estimate.low, estimate.high], jackknife(values, users).interval())


def test_accuracy_has_the_interval_of_a_share_and_other_metrics_none_where_users_agree():
    accuracy, f1 = answers_of("LaMP-2").metrics
    wrong = sample_scores("LaMP-2", ["action"] * 100, ["comedy"] * 100)
    never = interval(wrong["accuracy"], accuracy, each(100))
    assert never.mean == never.low == 0 and never.high == pytest.approx(0.0362, abs=1e-4)
    unknown = interval(wrong["f1"], f1, each(100))
    assert unknown.mean == 0 and np.isnan([unknown.low, unknown.high]).all()
    both = difference(wrong["accuracy"], wrong["accuracy"], accuracy, each(100))
    assert both.mean == 0 and both.high == -both.low == pytest.approx(0.0275, abs=2e-4)


def test_ends_stay_where_the_metric_can_be():
    rows = np.array([0.9, 1.0, 1.0])
    assert interval(rows, answers_of("LaMP-7").metrics[0], each(3)).high == 1
    errors = interval(np.array([0.0, 0.0, 1.0]), MAE, each(3))
    assert errors.low == 0 and errors.high > 1


def test_perplexity_has_the_interval_of_the_nll():
    nll = np.random.default_rng(3).normal(3, 1, 12)
    found, of = interval(nll, PERPLEXITY, each(12)), Estimate.of(nll, each(12))
    assert (found.mean, found.low, found.high) == pytest.approx(
        tuple(np.exp([of.mean, of.low, of.high]))
    )


@pytest.mark.parametrize("kind", ["rmse", "f1"])
def test_intervals_agree_with_scoring_every_draw(kind: str):
    metric = RMSE if kind == "rmse" else F1
    rows = np.random.default_rng(1).random(40) ** 2 if kind == "rmse" else f1_rows(40, 0.7, 1)
    rng = np.random.default_rng(9)
    draws = [metric.aggregate(rows[rng.integers(0, 40, 40)]) for _ in range(4000)]
    estimate = interval(rows, metric, each(40))
    assert estimate.mean == metric.aggregate(rows)
    assert [estimate.low, estimate.high] == pytest.approx(
        np.quantile(draws, [0.025, 0.975]), abs=0.03
    )


@pytest.mark.parametrize("kind", ["mean", "f1"])
def test_the_interval_of_a_difference_is_paired(kind: str):
    if kind == "mean":
        metric, b = MEAN, np.random.default_rng(2).normal(0, 10, 50)
        a = b + 1
    else:
        metric, a, b = F1, f1_rows(50, 0.9, 1), f1_rows(50, 0.3, 2)
    estimate = difference(a, b, metric, each(50))
    assert estimate.mean == pytest.approx(metric.aggregate(a) - metric.aggregate(b))
    assert estimate.excludes_zero and estimate.low > 0
    if kind == "mean":  # the same for every sample, so certain, however much samples differ
        assert (estimate.low, estimate.high) == pytest.approx((1, 1))


def test_one_user_has_no_interval():
    estimate = interval(f1_rows(4, 0.5, 0), F1, ["a"] * 4)
    assert np.isnan([estimate.low, estimate.high]).all()


def test_few_users_are_tested_exactly():
    rng = np.random.default_rng(4)
    a, b = rng.random(8), rng.random(8) + 0.3
    for metric in (MEAN, RMSE):
        reference = permutation_test(
            (a, b),
            lambda x, y, metric=metric: abs(metric.aggregate(x) - metric.aggregate(y)),
            permutation_type="samples",
            alternative="greater",
            n_resamples=np.inf,
            vectorized=False,
        )
        assert paired_test(a, b, metric, each(8)) == pytest.approx(reference.pvalue)


def test_random_swaps_come_near_all_swaps():
    rng = np.random.default_rng(5)
    a, b = rng.random(12), rng.random(12) + 0.15
    exact = paired_test(a, b, MEAN, each(12))
    assert 0.01 < exact < 0.9
    assert paired_test(a, b, MEAN, each(12), n_permutations=4000) == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("metric", [MEAN, RMSE, F1], ids=lambda metric: metric.name)
def test_p_is_uniform_where_there_is_no_difference(metric: Metric):
    p = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        if metric is F1:
            a, b = f1_rows(60, 0.6, 2 * seed), f1_rows(60, 0.6, 2 * seed + 1)
        else:
            a, b = rng.random(60), rng.random(60)
        p.append(paired_test(a, b, metric, each(60), n_permutations=300, seed=seed))
    assert np.mean(np.array(p) <= 0.05) <= 0.1
    assert 0.4 < np.mean(p) < 0.65  # ties push it above one half
    assert 0.1 < np.mean(np.array(p) <= 0.3) < 0.45


@pytest.mark.parametrize("metric", [MEAN, RMSE, F1], ids=lambda metric: metric.name)
def test_p_is_small_for_a_clear_difference_and_1_for_none(metric: Metric):
    if metric is F1:
        a, b = f1_rows(80, 0.95, 1), f1_rows(80, 0.5, 2)
    else:
        a = np.random.default_rng(6).random(80)
        b = a + np.random.default_rng(7).random(80)
    assert paired_test(a, b, metric, each(80)) == pytest.approx(1 / 10_001)
    assert paired_test(a, a, metric, each(80)) == 1
    assert paired_test(b, a, metric, each(80)) == paired_test(a, b, metric, each(80))


def test_samples_of_one_user_are_swapped_together():
    a, b = np.repeat([1.0, 0.0, 1.0], 20), np.repeat([0.0, 1.0, 0.0], 20)
    users = [f"u{i // 20}" for i in range(60)]
    assert paired_test(a, b, MEAN, users) == 1  # 2 of 3 users, however many samples
    assert paired_test(a, b, MEAN, each(60)) < 0.05
    assert paired_test(a, b, MEAN, ["one"] * 60) == 1


def test_the_same_seed_gives_the_same_p():
    rng = np.random.default_rng(8)
    a, b = rng.random(50), rng.random(50) + 0.1
    first, again, other = (paired_test(a, b, MAE, each(50), 999, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_rows_that_do_not_belong_together_are_refused():
    with pytest.raises(DataError, match="2 rows, 3 users"):
        interval([1.0, 2.0], MEAN, ["a", "b", "c"])
    with pytest.raises(DataError, match="one shape"):
        paired_test(np.ones((2, 4)), np.ones(2), MEAN, ["a", "b"])
    with pytest.raises(DataError, match="at least one"):
        paired_test([], [], MEAN, [])
    with pytest.raises(DataError, match="n_permutations"):
        paired_test([1.0], [2.0], MEAN, ["a"], n_permutations=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_are_refused(bad):
    rows, other, users = [1.0, bad, 2.0], [1.0, 1.0, 1.0], ["a", "b", "c"]
    for of in (
        lambda: interval(rows, MEAN, users),
        lambda: difference(rows, other, MEAN, users),
        lambda: paired_test(other, rows, MEAN, users),
    ):
        with pytest.raises(DataError, match="NaN or infinity"):
            of()
