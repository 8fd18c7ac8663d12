"""Verdicts on the claims of steering: they follow the numbers, and mind how many there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from support import results

from prefheads.report.statistics.findings import agreement, findings
from prefheads.steering.setting import PLAIN
from prefheads.users import Clusters


def verdicts(validation):
    return [found.verdict for found in findings(validation)]


def test_findings_follow_the_intervals():
    # The made-up gains: real, beyond temperature and random heads, the same for any map or
    # profile; the paper's form does harm.
    assert verdicts(results.validation()) == [
        "shown",
        "shown",
        "shown",
        "not shown",
        "not shown",
        "contradicted",
    ]
    assert findings(results.validation(PLAIN)) == []


def test_findings_are_corrected_for_their_number():
    given = results.validation()
    nll = given.nll.copy()
    nll[:, :, 1:] = nll[:, :, :1] + np.random.default_rng(1).normal(0, 1, (8, 1, 1))
    steered = given.methods.index("steered")
    nll[:, 0, steered] = nll[:, 0, 0] - [0.1, 0.2, 0.3, 0.2, 0.1, 0.2, -0.2, 0.2]
    found = findings(replace(given, nll=nll))
    alone = found[0].estimate
    known = ttest_1samp(nll[:, 0, steered] - nll[:, 0, 0], 0).pvalue
    assert alone.excludes_zero and alone.p == pytest.approx(known) and 0.01 < known < 0.05
    assert found[0].verdict == "not shown"  # as one of six
    assert found[0].p == pytest.approx(min(1, alone.p * 6)) and f"{found[0].p:.2g}" in str(found[0])
    assert [f.estimate.excludes_zero for f in found] == [f.estimate.p < 0.05 for f in found]


def test_few_people_give_no_verdict():
    given = results.validation()
    users = tuple("abcdefga")  # seven of them
    found = findings(replace(given, user_ids=users))
    assert {f.verdict for f in found} == {"too few to tell"}
    assert np.isfinite([f.estimate.low for f in found]).all()
    assert "TOO FEW TO TELL" in str(found[0])


def test_findings_turn_with_the_measurements():
    given = results.validation()
    nll = given.nll.copy()
    steered = given.methods.index("steered")
    nll[:, 0, steered] = nll[:, 0, 0] + 1  # worse with the own profile,
    nll[:, 1, steered] = nll[:, 1, 0] + 3  # and far worse with another's
    found = findings(replace(given, nll=nll))
    assert found[0].verdict == "contradicted" and found[0].estimate.mean == pytest.approx(1)
    assert found[4].verdict == "shown" and found[4].estimate.mean == pytest.approx(2)


def test_agreement_is_one_for_equal_groups_whatever_their_numbers():
    clusters = Clusters(np.eye(2, dtype=np.float32), {"a": 1, "b": 1, "c": 0})
    match = agreement(clusters, {"a": "x", "b": "x", "c": "y"})
    assert match.rand == 1
    assert match.counts == [{"y": 1}, {"x": 2}]
    assert agreement(clusters, {"a": "x", "b": "y", "c": "y"}).rand < 0.5
