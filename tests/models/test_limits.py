"""What bounds a pass: slices that fit, and halves where memory runs out."""

from __future__ import annotations

import pytest
import torch

from prefheads.models.limits import Budget


def rows_of(budget: Budget, n: int, per_row: int, work=lambda rows: torch.zeros(1)) -> list:
    return [(rows.start, rows.stop) for rows, _ in budget.run(n, per_row, work)]


def test_slices_cover_all_rows_within_the_budget() -> None:
    assert rows_of(Budget(10), 7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert rows_of(Budget(1), 2, 3) == [(0, 1), (1, 2)]
    assert rows_of(Budget(10), 0, 3) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("not enough memory: 3 GB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 GB"),
    ],
)
def test_halves_for_good_when_memory_runs_out(error) -> None:
    def work(rows: slice) -> torch.Tensor:
        if rows.stop - rows.start > 3:
            raise error
        return torch.zeros(1)

    budget = Budget(80)
    assert rows_of(budget, 9, 10, work) == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]
    assert budget.tokens == 20


def test_a_row_too_large_and_other_errors_are_passed_on() -> None:
    def too_large(rows: slice) -> torch.Tensor:
        raise torch.OutOfMemoryError

    def wrong(rows: slice) -> torch.Tensor:
        raise RuntimeError("shapes")

    with pytest.raises(torch.OutOfMemoryError):
        rows_of(Budget(80), 9, 10, too_large)
    with pytest.raises(RuntimeError, match="shapes"):
        rows_of(Budget(80), 9, 10, wrong)
