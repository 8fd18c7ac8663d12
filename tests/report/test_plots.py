"""Figures: that the marks stand where the numbers are."""

from __future__ import annotations

import pytest
import torch
from support import results

from prefheads.errors import ArtifactError, DataError
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.report import plots
from prefheads.steering.setting import PLAIN


def marks(figure, name):
    """Points of all lines of this name: a list of (x, y) for each panel."""
    return [
        [
            tuple(p)
            for line in axes.lines
            if line.get_label() == f"_{name}"
            for p in line.get_xydata()
        ]
        for axes in figure.axes
    ]


def many_users(n=8):
    """Head 2.1 is 0.5 for everybody, 4.3 is -0.5; the rest cancels out between users."""
    values = 0.1 * torch.tensor([1.0, -1.0]).repeat(n // 2)[:, None, None].expand(n, 6, 4).clone()
    values[:, 2, 1], values[:, 4, 3] = 0.5, -0.5
    names = tuple(f"u{i}" for i in range(n))
    return HeadScores(values, torch.ones(n), names, names)


def test_heat_map_marks_significant_and_chosen_heads():
    chosen = HeadWeights.from_heads((6, 4), [(2, 1), (5, 0)])
    figure = plots.heat_map({"all": many_users()}, [chosen])
    panel = figure.axes[0]
    assert marks(figure, "significant")[0] == [(2, 1), (4, 3)]  # (layer, head)
    assert [p.get_xy() for p in panel.patches] == [(1.5, 0.5), (4.5, -0.5)]
    image = panel.images[0]
    assert image.get_array().shape == (4, 6)  # heads down, layers across
    assert image.get_array()[1, 2] == pytest.approx(0.5)
    low, high = image.get_clim()
    assert low == -high  # zero in the middle of the colours
    assert "nats a token" in figure.axes[-1].get_xlabel()


def test_heat_map_marks_no_heads_of_one_user():
    figure = plots.heat_map({"one": many_users().select(users="u0")})
    assert marks(figure, "significant")[0] == []


def test_heat_map_has_a_panel_each_and_takes_matching_maps_only():
    scores = many_users()
    figure = plots.heat_map({"all": scores, "some": scores.select(users=["u0", "u1"])})
    assert [axes.get_title() for axes in figure.axes[:2]] == ["all", "some"]
    with pytest.raises(DataError, match="one map of heads each"):
        plots.heat_map({"all": scores}, [scores.soft(k=1)] * 2)
    with pytest.raises(DataError, match="one shape"):
        plots.heat_map({})


def test_zero_is_transparent_in_the_colour_map():
    assert plots.DIVERGING(0.5)[3] < 0.02
    assert plots.DIVERGING(0.0)[3] == plots.DIVERGING(1.0)[3] == 1


def test_calibration_curves_show_every_setting_and_ring_the_chosen_one():
    calibration = results.calibration()
    figure = plots.calibration_curves(calibration)
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
    figure = plots.calibration_curves(results.calibration(PLAIN))
    assert not any(marks(figure, "chosen"))


def test_validation_plot_has_every_method_but_plain_with_its_interval():
    validation = results.validation()
    figure = plots.validation_plot(validation)
    left, right = figure.axes
    labels = [t.get_text().replace("\n", " ") for t in left.get_yticklabels()]
    assert labels == list(results.METHODS[1:])
    row = next(r for r in validation.rows() if r.method == "steered")
    assert [row.change.low, row.change.high] in [list(line.get_xdata()) for line in left.lines]
    specific = row.specificity_change
    assert [specific.low, specific.high] in [list(line.get_xdata()) for line in right.lines]


def test_save_writes_both_forms_with_the_theme_of_the_figure(tmp_path):
    figure = plots.validation_plot(results.validation(), theme=plots.DARK)
    png, svg = plots.save(figure, tmp_path / "plot.png")
    assert png.read_bytes().startswith(b"\x89PNG") and png.name == "plot.png"
    assert plots.DARK.paper in svg.read_text() and svg.name == "plot.svg"
    with pytest.raises(ArtifactError, match="cannot be written"):
        plots.save(figure, tmp_path / "no" / "folder" / "plot")


def test_a_name_with_a_dot_keeps_it(tmp_path):
    png, _ = plots.save(plots.validation_plot(results.validation()), tmp_path / "gamma-0.5")
    assert png.name == "gamma-0.5.png"


def test_inline_svg_takes_the_ink_of_the_page_and_ids_of_its_own():
    scores = many_users()
    first, second = (plots.inline_svg(plots.heat_map({"all": scores}), n, "x") for n in "ab")
    assert "currentColor" in first and plots.LIGHT.ink not in first
    ids = [{part.split('"')[0] for part in text.split(' id="')[1:]} for text in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert all(i.startswith("a-") for i in ids[0])
    used = {part.split(")")[0] for part in first.split("url(#")[1:]}
    assert used <= ids[0]


def test_global_state_is_left_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plots.calibration_curves(results.calibration(), theme=plots.DARK)
    assert dict(mpl.rcParams) == before
