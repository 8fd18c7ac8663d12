"""Random controls as the mean over draws: which draws, their statistics, and what they add."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.coverage import KINDS, coverage
from prefheads.calibration.validate import Validation
from prefheads.errors import DataError
from prefheads.evaluation.methods import Method
from prefheads.evaluation.run import Measured
from prefheads.evaluation.significance import difference, interval, over_draws
from prefheads.evaluation.tables import cells
from prefheads.steering.setting import PLAIN
from prefheads.tasks.answers import Metric, answers_of

USERS = [f"u{i}" for i in range(9)]
NLL, ACCURACY, F1 = Metric("NLL", False), *answers_of("LaMP-1").metrics


def test_a_control_is_its_own_draws_alone() -> None:
    names = [one.name for one in Method.parse("random-heads").drawn(4)]
    assert names == [f"random-heads:seed={seed}" for seed in (4, 5, 6, 7, 8)]
    assert [one.name for one in Method.parse("random-mask:draws=2:of=calibrated").drawn(0)] == [
        "random-mask:draws=2:of=calibrated:seed=0",
        "random-mask:draws=2:of=calibrated:seed=1",
    ]
    for alone in ("random-heads:seed=3", "dps", "plain"):
        assert [one.name for one in Method.parse(alone).drawn(0)] == [alone]
    one = Method.parse("random-heads").drawn(3)[0]
    again = Method.parse("random-heads:seed=3")
    assert (one.base, one.options["seed"]) == (again.base, again.options["seed"])
    with pytest.raises(DataError, match="give it or draws"):
        Method.parse("random-heads:draws=2:seed=1")
    for bad in ("draws=0", "draws=1.5"):
        with pytest.raises(DataError, match="draws"):
            Method.parse(f"random-heads:{bad}")


def test_draws_that_do_not_differ_are_one() -> None:
    rng = np.random.default_rng(0)
    rows, other = rng.normal(size=9), rng.normal(size=9)
    alone, three = interval(rows, NLL, USERS), over_draws([rows] * 3, [], NLL, USERS)
    assert [three.mean, three.low, three.high] == pytest.approx([alone.mean, alone.low, alone.high])
    paired = difference(rows, other, NLL, USERS)
    drawn = over_draws([rows] * 3, [other], NLL, USERS)
    assert [drawn.mean, drawn.low, drawn.high] == pytest.approx(
        [paired.mean, paired.low, paired.high]
    )
    assert drawn.p == pytest.approx(paired.p)


def test_what_draws_differ_by_is_in_the_interval() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=9)
    apart = [rows - 1, rows, rows + 1]
    alike = over_draws([rows] * 3, [], NLL, USERS)
    wide = over_draws(apart, [], NLL, USERS)
    assert wide.mean == pytest.approx(alike.mean)
    # By hand: Welch and Satterthwaite, of the users' error and of the draws'.
    users, draws = rows.var(ddof=1) / 9, np.var([-1, 0, 1], ddof=1) / 3
    df = (users + draws) ** 2 / (users**2 / 8 + draws**2 / 2)
    from scipy.stats import t

    reach = t.ppf(0.975, df) * np.sqrt(users + draws)
    assert wide.high - wide.mean == pytest.approx(reach)


def test_a_metric_of_draws_is_the_mean_of_theirs() -> None:
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, 2, (9, 4)).astype(float) for _ in range(3)]
    found = over_draws(rows, [], F1, USERS)
    assert found.mean == pytest.approx(np.mean([F1.aggregate(r) for r in rows]))
    assert 0 <= found.low <= found.high <= 1
    perplexity = Metric("perplexity", False, outer=np.exp)
    nll = rng.normal(size=9)
    one, many = interval(nll, perplexity, USERS), over_draws([nll, nll], [], perplexity, USERS)
    assert [many.low, many.high] == pytest.approx([one.low, one.high])


def test_agreement_of_all_users_is_no_certainty() -> None:
    """As for one draw: 0 of 3 is not [0, 0], and nothing is told from three."""
    three = USERS[:3]
    wrong, right = np.zeros(3), np.ones(3)
    alone = interval(wrong, ACCURACY, three)
    drawn = over_draws([wrong] * 5, [], ACCURACY, three)
    assert (drawn.low, drawn.high) == pytest.approx((alone.low, alone.high)) != (0, 0)
    told = over_draws([wrong] * 5, [right], ACCURACY, three)
    assert told.mean == -1 and np.isnan(told.p) and told.high > -1
    flat = over_draws([np.ones(3)] * 2, [], NLL, three)
    assert flat.mean == 1 and np.isnan(flat.low)


def test_tables_hold_the_mean_over_draws() -> None:
    """Also as the baseline, whose own change is none."""
    rng = np.random.default_rng(3)
    draws = rng.normal(3, 1, (9, 3, 4))
    plain = rng.normal(3, 1, (9, 3))
    names = ("random-heads:draws=4", "plain")
    nll = np.stack([draws.mean(-1), plain], -1)
    validation = Validation(PLAIN, names, nll, tuple(USERS), tuple(USERS), {names[0]: draws})
    made = cells(Measured("LaMP-7", {}, validation, {}, 1))
    found = {(c.method, c.metric): c for c in made}
    assert found[names[0], "NLL"].value == pytest.approx(draws[:, 0].mean())
    assert found[names[0], "change of NLL"].value == pytest.approx(0, abs=1e-12)
    change = found["plain", "change of NLL"]
    assert change.value == pytest.approx(plain[:, 0].mean() - draws[:, 0].mean())
    specificity = (draws[:, 1] - draws[:, 0]).mean()
    assert found[names[0], "specificity"].value == pytest.approx(specificity)
    again = Validation.from_dict(validation.to_dict())
    assert np.array_equal(again.of(names[0]), draws)
    assert again.difference(*names) == validation.difference(*names)


@pytest.mark.parametrize("kind", ["draws as unlike as users", "draws much alike"])
@pytest.mark.parametrize("n_users", [5, 12])
def test_coverage(kind: str, n_users: int) -> None:
    assert coverage(KINDS[f"random control, {kind}"], n_users, 600) == pytest.approx(0.95, abs=0.03)
