"""Figures of heads: that the marks stand where the numbers are."""

from __future__ import annotations

import pytest
from support.drawn import many_users, marks

from prefheads.errors import DataError
from prefheads.heads.scores import HeadWeights
from prefheads.report.figures import heads


def test_heat_map_marks_significant_and_chosen_heads():
    chosen = HeadWeights.from_heads((6, 4), [(2, 1), (5, 0)])
    figure = heads.heat_map({"all": many_users()}, [chosen])
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
    figure = heads.heat_map({"one": many_users().select(users="u0")})
    assert marks(figure, "significant")[0] == []


def test_heat_map_has_a_panel_each_and_takes_matching_maps_only():
    scores = many_users()
    figure = heads.heat_map({"all": scores, "some": scores.select(users=["u0", "u1"])})
    assert [axes.get_title() for axes in figure.axes[:2]] == ["all", "some"]
    with pytest.raises(DataError, match="one map of heads each"):
        heads.heat_map({"all": scores}, [scores.soft(k=1)] * 2)
    with pytest.raises(DataError, match="one shape"):
        heads.heat_map({})
