"""The plan of a branched forward pass."""

from __future__ import annotations

import torch

from prefheads.interventions.plan import (
    ALL_POSITIONS,
    ActivePositions,
    BranchPlan,
    branches_of_one,
    without_branches,
)

CPU = torch.device("cpu")


def test_rows_grow_from_layer_to_layer() -> None:
    gains = torch.ones(5, 3, 2)
    gains[2, 0, 0] = gains[3, 1, 1] = gains[4, 1, 0] = 0
    plan = BranchPlan(gains, 2, [0, 1, 1], [1, 0, 1], "head")
    assert [plan.rows(layer) for layer in range(3)] == [3, 5, 5]
    assert plan.origins.tolist() == [0, 1, 1, 0, 1]
    assert plan.first == 0 and plan.changed == [True, True, False]
    assert torch.equal(plan.gain(1, CPU), gains[:, 1])
    assert torch.equal(plan.gain(0, CPU), gains[:3, 0])


def test_rows_without_branches_are_there_from_the_bottom() -> None:
    plan = without_branches(torch.full((2, 3, 4), 0.5), "query")
    assert plan.n_base == plan.n_live == 2 and plan.first == 3
    assert [plan.rows(layer) for layer in range(3)] == [2, 2, 2]


def test_branches_leave_where_their_gains_first_change_something() -> None:
    gains = torch.ones(4, 3, 2)
    gains[0, 2, 0] = gains[1, 0, 1] = gains[2, 1, 1] = 0  # the last changes nothing
    plan, order = branches_of_one(gains, "head")
    assert order.tolist() == [1, 2, 0, 3] and plan.starts == [0, 1, 2, 2]
    assert plan.n_live == 0 and torch.equal(plan.gains, gains[order])
    plan, order = branches_of_one(gains, "head", any_layer=False)
    assert plan.starts == [0] * 4 and order.tolist() == [0, 1, 2, 3]


def test_a_plan_made_in_inference_mode_serves_outside() -> None:
    with torch.inference_mode():
        plan = without_branches(torch.ones(1, 2, 2), "head")
        gain = plan.gain(0, CPU)
    assert not plan.gains.is_inference() and not gain.is_inference()


def test_active_positions() -> None:
    assert ALL_POSITIONS.mask(0, 5, CPU) is None
    assert ActivePositions(3).mask(3, 5, CPU) is None
    assert ActivePositions(3).mask(1, 5, CPU).tolist() == [[False, False, True, True]]
    rows = ActivePositions(1, torch.tensor([1, 3]))
    assert rows.mask(1, 4, CPU).tolist() == [[True] * 3, [False, False, True]]
    assert ActivePositions(3).after(3) == ALL_POSITIONS
    assert rows.after(1).mask(0, 3, CPU).tolist() == rows.mask(1, 4, CPU).tolist()
