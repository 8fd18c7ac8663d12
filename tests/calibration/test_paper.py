"""The paper's form of steering beside the calibrated one, and whose numbers it has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import results

from prefheads.calibration.paper import BEST, is_paper, paper_rows, whose
from prefheads.steering.setting import PLAIN, Setting

PAPER = Setting("top 4% by head PCS", "contrast", "head", 0.25)


@pytest.mark.parametrize(
    ("setting", "right"),
    [
        (PAPER, True),
        (replace(PAPER, schedule="entropy"), True),
        (replace(PAPER, heads="top 4% by profile PCS"), False),
        (replace(PAPER, heads="mine"), False),
        (replace(PAPER, suppression=0.1), False),
        (replace(PAPER, mode="amplify"), False),
        (replace(PAPER, target="profile"), False),
        (PLAIN, False),
    ],
)
def test_the_form(setting: Setting, right: bool) -> None:
    assert is_paper(setting) == right


def test_whose_numbers_a_setting_has() -> None:
    assert "gamma ours" in whose(PAPER)
    assert "its authors' code" in whose(replace(PAPER, gamma=1.0, schedule="entropy"))
    for other in ({"gamma": 0.5}, {"heads": "top 8% by head PCS"}, {"suppression": 0.5}):
        assert whose(replace(PAPER, **other)) == ""
    assert whose(replace(PAPER, gamma=1.0, schedule="entropy", cap=2.0)) == ""


def test_rows_of_the_form_and_of_its_best() -> None:
    steerer = results.steerer(PLAIN)
    tried = (PLAIN, PAPER, replace(PAPER, gamma=0.5))
    calibration = replace(
        steerer.calibration, settings=tried, change=(0.0, 0.2, 0.1), stderr=(0.0,) * 3,
        divergence=(0.0,) * 3, chosen=0,
    )  # fmt: skip
    weights = np.full((2, steerer.clusters.n_clusters), 1 / steerer.clusters.n_clusters)
    rows = paper_rows(steerer.scores["head"], steerer.clusters, calibration, weights)
    (best,) = (name for name in rows if name.startswith(BEST))
    assert len(rows) == 3 and "2: " in best
    assert rows[best][1] == tried[2]
    assert all(len(maps) == 2 for maps, _ in rows.values())
    nothing = replace(calibration, settings=(PLAIN,), change=(0.0,))
    assert len(paper_rows(steerer.scores["head"], steerer.clusters, nothing, weights)) == 2
