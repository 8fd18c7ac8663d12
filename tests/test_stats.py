"""Intervals over users."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, t, ttest_1samp

from prefheads.errors import DataError
from prefheads.stats import (
    Estimate,
    effective_users,
    holm,
    jackknife,
    pairs_jackknife,
    user_means,
)

RNG = np.random.default_rng(0)
NAN = float("nan")


def each(n: int) -> list[str]:
    """A user for every sample."""
    return [f"u{i:03}" for i in range(n)]


def test_user_means_are_plain_means_of_each_user_in_sorted_order():
    values = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 0.0]])
    assert user_means(values, ["b", "b", "a"]).tolist() == [[8.0, 0.0], [2.0, 20.0]]


def test_with_a_sample_a_user_it_is_the_t_test():
    values = RNG.normal(0.4, 1, 7)
    known = ttest_1samp(values, 0)
    found, ends = Estimate.of(values, each(7)), known.confidence_interval()
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.p == pytest.approx(known.pvalue)


def test_users_are_left_out_with_all_of_their_samples():
    values, users = np.array([1.0, 3.0, 8.0, 2.0, 4.0, 9.0]), list("aabccc")
    without = np.array([(8 + 2 + 4 + 9) / 4, (1 + 3 + 2 + 4 + 9) / 5, (1 + 3 + 8) / 3])
    mean = values.mean()
    stderr = np.sqrt(2 / 3 * ((without - mean) ** 2).sum())
    reach = t.ppf(0.95, 36 / (4 + 1 + 9) - 1) * stderr  # Kish: the square of 6 over 2², 1², 3²
    found = jackknife(values, users)
    assert found.stderr == pytest.approx(stderr)
    assert found.interval(0.9) == pytest.approx((mean - reach, mean + reach))


def test_functions_of_a_mean_are_computed_without_each_user():
    values, users = RNG.random((9, 2)), [f"u{i // 3}" for i in range(9)]
    found = jackknife(values, users, lambda means: means[:, 0] / means[:, 1])

    def quotient(kept: np.ndarray) -> float:
        return values[kept, 0].mean() / values[kept, 1].mean()

    rows = np.arange(9)
    without = np.array([quotient(rows // 3 != i) for i in range(3)])
    assert found.value == pytest.approx(quotient(rows >= 0))
    assert found.stderr == pytest.approx(np.sqrt(2 / 3 * ((without - found.value) ** 2).sum()))


def test_pairs_are_left_out_with_either_user():
    values = RNG.random((4, 4))
    found = pairs_jackknife(values)

    def mean(of: list[int]) -> float:
        return np.mean([values[i, j] for i in of for j in of if i != j])

    without = np.array([mean([j for j in range(4) if j != i]) for i in range(4)])
    assert found.value == pytest.approx(mean([0, 1, 2, 3]))
    assert found.stderr == pytest.approx(np.sqrt(3 / 4 * ((without - found.value) ** 2).sum()))
    assert np.isnan(pairs_jackknife(values[:2, :2]).stderr)  # one pair only


def test_effective_users_are_those_of_equal_counts():
    assert effective_users([5, 5, 5]) == pytest.approx(3)
    assert effective_users([9, 1, 1, 1]) == pytest.approx(144 / 84)


def test_many_samples_of_a_user_are_no_more_certain_than_the_user():
    values = np.repeat(RNG.normal(size=20), 10)
    by_user = jackknife(values, [f"u{i // 10}" for i in range(200)])
    assert by_user.stderr == pytest.approx(values[::10].std(ddof=1) / 20**0.5)
    assert by_user.stderr > 3 * jackknife(values, each(200)).stderr


@pytest.mark.parametrize(("k", "n"), [(0, 100), (7, 100), (2, 2), (50, 50), (1, 3)])
def test_shares_are_exact_with_a_sample_a_user(k: int, n: int):
    found = Estimate.of_share([1.0] * k + [0.0] * (n - k), each(n))
    known = binomtest(k, n).proportion_ci()
    assert found.mean == k / n
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9)


def test_alike_samples_of_a_user_count_as_the_user_does():
    values, users = np.repeat([1.0] * 6 + [0.0] * 14, 5), [f"u{i // 5:02}" for i in range(100)]
    found, known = Estimate.of_share(values, users), binomtest(6, 20).proportion_ci()
    assert found.mean == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.03)
    never = Estimate.of_share(np.zeros(100), users)
    assert (never.low, never.high) == pytest.approx((0, binomtest(0, 20).proportion_ci().high))


def test_a_difference_of_shares_that_was_not_seen_is_not_known_to_be_none():
    found = Estimate.of_difference(np.zeros(20), each(20))
    # with one won and one lost: 22 users, of whom two differ
    reach = t.ppf(0.975, 21) * np.sqrt(2 / 21 / 22)
    assert found.mean == 0 and (found.low, found.high) == pytest.approx((-reach, reach))
    assert Estimate.of_difference([1.0, 1.0], ["a", "b"]).high == 1
    assert np.isnan(Estimate.of_difference([1.0, 0.0], ["a", "a"]).low)


def test_one_user_has_no_interval_and_nan_is_shown_as_not_measured():
    for found in (Estimate.of([1.0, 2.0], ["a", "a"]), Estimate.of_share([1.0, 0.0], ["a", "a"])):
        assert np.isnan([found.low, found.high, found.p]).all() and not found.excludes_zero
    assert str(Estimate.of([1.0, 2.0], ["a", "a"])) == "+1.500"
    assert str(Estimate.of([NAN, NAN], ["a", "b"])) == "n/a"
    assert str(Estimate.of_share([NAN, NAN], ["a", "b"])) == "n/a"
    assert not Estimate.of([NAN, NAN], ["a", "b"]).excludes_zero


def test_the_p_value_agrees_with_the_interval():
    agree = [Estimate.of(RNG.normal(0.5, 1, n), each(n)) for n in range(2, 40)]
    assert len({e.excludes_zero for e in agree}) == 2
    assert all(e.excludes_zero == (e.p < 0.05) for e in agree)
    assert Estimate.of([1.0, 1.0], ["a", "b"]).p == 0
    assert Estimate.of([0.0, 0.0], ["a", "b"]).p == 1


def test_zero_has_no_minus():
    assert str(Estimate(-0.0001, -0.0, 0.0004)) == "+0.000 [+0.000, +0.000]"
    assert str(Estimate(-0.001, -0.002, 0.0)) == "-0.001 [-0.002, +0.000]"


def test_excludes_zero():
    assert Estimate(1, 0.5, 2).excludes_zero and Estimate(-1, -2, -0.5).excludes_zero
    assert not Estimate(1, -0.5, 2).excludes_zero
    cut = Estimate(0.5, -0.2, 1.2).within(0, 1)
    assert (cut.mean, cut.low, cut.high) == (0.5, 0, 1)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, NAN])
def test_impossible_intervals_are_refused(level: float):
    with pytest.raises(DataError, match="level"):
        jackknife([1.0, 2.0], ["a", "b"]).interval(level)


def test_infinity_has_no_interval_and_is_shown():
    values = np.array([[1.0, 0.0], [np.inf, 2.0], [0.0, 1.0]])
    low, high = jackknife(values, ["a", "b", "c"]).interval()
    assert np.isnan([low[0], high[0]]).all() and np.isfinite([low[1], high[1]]).all()
    found = Estimate.of(values[:, 0], ["a", "b", "c"])
    assert str(found) == "+inf" and not found.excludes_zero


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, and never falling.
    assert holm([0.02, 0.5, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.7]).tolist() == pytest.approx([1, 1])
    assert holm([]).tolist() == []
    for bad in (NAN, -0.1, 1.1):
        with pytest.raises(DataError):
            holm([0.5, bad])
