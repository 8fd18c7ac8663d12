"""Figures of steering: every number is drawn, with its interval."""

from __future__ import annotations

from support import results
from support.drawn import marks

from prefheads.report.figures import steering
from prefheads.steering.setting import PLAIN


def test_calibration_curves_show_every_setting_and_ring_the_chosen_one():
    calibration = results.calibration()
    figure = steering.calibration_curves(calibration)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:5] == [
        "contrast, head",
        "contrast (0.1), head",
        "contrast, profile",
        "amplify, head",
        "amplify, profile",
    ]
    expected = calibration.change[calibration.chosen]
    assert marks(figure, "chosen") == [[], [], [], [], [(2.0, expected)], []]
    lines = [container[0] for axes in figure.axes for container in axes.containers]
    drawn = sum(len(line.get_xdata()) - 1 for line in lines)
    assert drawn == len(calibration.settings) - 1  # all but plain, which begins each line


def test_no_ring_where_plain_was_chosen():
    figure = steering.calibration_curves(results.calibration(PLAIN))
    assert not any(marks(figure, "chosen"))


def test_validation_plot_has_every_method_but_plain_with_its_interval():
    validation = results.validation()
    figure = steering.validation_plot(validation)
    left, right = figure.axes
    labels = [t.get_text().replace("\n", " ") for t in left.get_yticklabels()]
    assert labels == list(results.METHODS[1:])
    row = next(r for r in validation.rows() if r.method == "steered")
    assert [row.change.low, row.change.high] in [list(line.get_xdata()) for line in left.lines]
    specific = row.specificity_change
    assert [specific.low, specific.high] in [list(line.get_xdata()) for line in right.lines]


def test_size_figure_has_every_steered_setting_once() -> None:
    calibration = results.calibration()
    figure = steering.size_figure(calibration, "title")
    drawn = sum(len(c[0].get_xdata()) for axes in figure.axes for c in axes.containers)
    assert drawn == len(calibration.settings) - 1
