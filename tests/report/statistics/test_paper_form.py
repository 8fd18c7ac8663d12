"""The paper's form over K and gamma: all that was tried is drawn, and it is said whose it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import results

from prefheads.calibration.calibrate import Calibration
from prefheads.report.figures.steering import paper_form_figure
from prefheads.report.statistics.paper_form import paper_form, told
from prefheads.steering.setting import PLAIN, Setting

SHARES = (1, 4, 16)
GAMMAS = (0.1, 0.25, 1.0)
T_OF_4 = 3.182  # of a 95 % interval over 4 users: 3 degrees of freedom


def calibration() -> Calibration:
    """The paper's form with both strengths, among settings of other forms."""
    paper = [
        Setting(f"top {share}% by head PCS", "contrast", "head", gamma, 1.0, schedule)
        for schedule in ("constant", "entropy")
        for share in SHARES
        for gamma in GAMMAS
    ]
    others = [
        Setting("top 4% by profile PCS", "contrast", "head", 0.5),
        Setting("top 4% by head PCS", "contrast", "head", 0.5, 0.1),
        Setting("top 4% by head PCS", "amplify", "head", 0.5),
        Setting("top 4% by head PCS", "contrast", "profile", 0.5),
    ]
    change = [0.02 * i - 0.1 for i in range(len(paper))]
    change[1] = float("inf")  # rules out what somebody wrote
    n = 1 + len(paper) + len(others)
    return replace(
        results.calibration(),
        settings=(PLAIN, *paper, *others),
        change=(0.0, *change, *[-9.0] * len(others)),
        stderr=(0.0,) + (0.01,) * (n - 1),
        divergence=(0.0,) * n,
        chosen=0,
    )


def test_it_holds_all_settings_of_the_form_and_no_other() -> None:
    given = calibration()
    found = paper_form(given)
    assert len(found) == 2 * len(SHARES) * len(GAMMAS) - 1  # one is infinite
    assert min(p.change.mean for p in found) > -9
    by_choice = {p.choice: p.change for p in found}
    ours = by_choice[0.04, "constant", None, 0.25]
    assert ours.mean == pytest.approx(0.02 * 4 - 0.1)
    assert ours.high - ours.mean == pytest.approx(T_OF_4 * 0.01, rel=1e-3)
    assert (
        paper_form(replace(given, settings=given.settings[:1], change=(0.0,), stderr=(0.0,))) == []
    )


def test_the_figure_draws_every_point_with_its_interval_and_marks_two_choices() -> None:
    found = paper_form(calibration())
    figure = paper_form_figure(found, "title")
    assert [a.get_title() for a in figure.axes] == [
        "constant strength",
        "strength gamma x entropy of the next token",
    ]
    for axes, schedule in zip(figure.axes, ("constant", "entropy"), strict=True):
        own = [p for p in found if p.schedule == schedule]
        drawn = np.concatenate([c[0].get_ydata() for c in axes.containers])
        assert sorted(drawn) == pytest.approx(sorted(p.change.mean for p in own))
        ends = [s[:, 1] for c in axes.containers for s in c[2][0].get_segments()]
        expected = sorted((p.change.low, p.change.high) for p in own)
        assert np.allclose(sorted(map(tuple, ends)), expected)
        assert axes.get_xscale() == "log" and any(0 in line.get_ydata() for line in axes.lines)
        assert {c.get_label() for c in axes.containers} == {f"K = {s} % of heads" for s in SHARES}
    marked = {
        line.get_label(): (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for axes in figure.axes
        for line in axes.lines
        if ":" in str(line.get_label())
    }
    at = {p.choice: p.change.mean for p in found}
    ours, authors = marked["ours: 4 %, gamma 0.25"], marked["authors' code: 4 %, gamma 1"]
    assert ours == pytest.approx((0.25, at[0.04, "constant", None, 0.25]), rel=0.05)
    assert authors == pytest.approx((1.0, at[0.04, "entropy", None, 1.0]), rel=0.05)


def test_the_words_say_whose_choice_each_number_is() -> None:
    given = calibration()
    text = told(paper_form(given), given)
    assert "the paper gives neither K nor gamma" in text
    assert "4 % of the heads is the choice in its authors' code" in text
    assert "constant gamma of 0.25 is ours" in text
    assert "authors' code: +0.180 [+0.148, +0.212]; 4 % with gamma 0.25: -0.020 [" in text
    assert "The lowest is 1 % of the heads, gamma 0.1, -0.100 [-0.132, -0.068]" in text
    assert "3 of 17 intervals lie below 0" in text
    constant = replace(given, settings=given.settings[:10], change=given.change[:10],
                       stderr=given.stderr[:10])  # fmt: skip
    assert "authors' code: not tried here" in told(paper_form(constant), constant)


def test_large_and_small_changes_are_both_seen() -> None:
    """Entropy as strength costs nats, where gamma 0.1 costs hundredths: linear would hide these."""
    given = calibration()
    change = [20.0 * c if s.schedule == "entropy" else c
              for s, c in zip(given.settings, given.change, strict=True)]  # fmt: skip
    figure = paper_form_figure(paper_form(replace(given, change=tuple(change))), "title")
    axes = figure.axes[0]
    assert axes.get_yscale() == "symlog"
    where = axes.transData.transform([(0.1, y) for y in (0.0, 0.1, 1.0)])[:, 1]
    assert where[2] - where[1] < 2 * (where[1] - where[0])
    assert "0" in [label.get_text() for label in axes.get_yticklabels()]
