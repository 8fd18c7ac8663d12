"""Figures as files and as parts of a page."""

from __future__ import annotations

import pytest
from support import results
from support.drawn import many_users

from prefheads.errors import ArtifactError
from prefheads.report.figures import heads, steering, style


def test_zero_is_transparent_in_the_colour_map():
    assert style.DIVERGING(0.5)[3] < 0.02
    assert style.DIVERGING(0.0)[3] == style.DIVERGING(1.0)[3] == 1


def test_save_writes_both_forms(tmp_path):
    figure = steering.validation_plot(results.validation())
    png, svg = style.save(figure, tmp_path / "plot.png")
    assert png.read_bytes().startswith(b"\x89PNG") and png.name == "plot.png"
    assert style.PAPER in svg.read_text() and svg.name == "plot.svg"
    with pytest.raises(ArtifactError, match="cannot be written"):
        style.save(figure, tmp_path / "no" / "folder" / "plot")


def test_a_name_with_a_dot_keeps_it(tmp_path):
    png, _ = style.save(steering.validation_plot(results.validation()), tmp_path / "gamma-0.5")
    assert png.name == "gamma-0.5.png"


def test_inline_svg_takes_the_ink_of_the_page_and_ids_of_its_own():
    scores = many_users()
    first, second = (style.inline_svg(heads.heat_map({"all": scores}), n, "x") for n in "ab")
    assert "currentColor" in first and style.INK not in first
    ids = [{part.split('"')[0] for part in text.split(' id="')[1:]} for text in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert all(i.startswith("a-") for i in ids[0])
    used = {part.split(")")[0] for part in first.split("url(#")[1:]}
    assert used <= ids[0]


def test_global_state_is_left_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    steering.calibration_curves(results.calibration())
    assert dict(mpl.rcParams) == before
