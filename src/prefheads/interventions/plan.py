"""Which rows a pass has in each layer, the gain of every head in each row, and where gains act."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefheads.types import Target


class Plan:
    """Which rows a pass has in each layer, and the gain of every head in each row.

    Args:
        gains: ``(n_base + n_branches, n_layers, n_heads)``, non-negative; 1 leaves a head alone.
            Base rows first, then branches in ascending order of ``starts``. Without the base
            rows, ``(n_branches, ...)``, where these have run already (:class:`Pass`, ``entered``).
        n_base: Rows that the model is called with.
        starts: Layer at which each branch leaves, ascending.
        origins: Base row that each branch copies.
        target: What the gain multiplies: the head's output, its unnormalised attention to profile
            tokens, or its query.
    """

    @torch.inference_mode(False)  # its tensors may be used later, where there are gradients
    def __init__(
        self,
        gains: Tensor,
        n_base: int,
        starts: Sequence[int],
        origins: Sequence[int],
        target: Target,
    ) -> None:
        self.gains = gains.float().clone()
        self.n_base = n_base
        self.target = target
        self.starts = list(starts)
        self.n_live = len(gains) - len(starts)  # base rows that run
        self.origins = torch.tensor([*range(self.n_live), *origins], device=gains.device)
        self.first = min(self.starts, default=gains.shape[1])
        self.changed = [
            bool((self.gains[: self.rows(layer), layer] != 1).any())
            for layer in range(gains.shape[1])
        ]
        self._cached: dict[tuple[int, torch.device], Tensor] = {}

    def rows(self, layer: int) -> int:
        """Rows of the batch in a layer."""
        return self.n_live + bisect_right(self.starts, layer)

    def gain(self, layer: int, device: torch.device) -> Tensor:
        """Gains of the rows present in a layer, ``(rows, n_heads)``, on ``device``."""
        key = (layer, device)
        if key not in self._cached:
            with torch.inference_mode(False):
                self._cached[key] = self.gains[: self.rows(layer), layer].to(device)
        return self._cached[key]


def branch_plan(gains: Tensor, target: Target, *, joins: bool = True) -> tuple[Plan, Tensor]:
    """A plan of branches that leave one base row, run before, where ``gains`` (R, L, H) change it.

    Args:
        joins: Whether they may do so in any layer; else all leave in the lowest.

    Returns:
        The plan and ``order`` (R,): branch ``i`` of the plan is row ``order[i]`` of ``gains``.
    """
    changed = (gains != 1).any(dim=2)
    last = gains.shape[1] - 1
    starts = torch.where(changed.any(1), changed.int().argmax(1), last) * joins
    order = starts.argsort(stable=True)
    return Plan(gains[order], 1, starts[order].tolist(), [0] * len(order), target), order


@dataclass(frozen=True)
class Where:
    """The positions of a call at which gains act.

    Attributes:
        start: The first one, of any row.
        of_rows: The first one of each base row ``(n_base,)``, where they differ.
    """

    start: int = 0
    of_rows: Tensor | None = None

    def active(self, first: int, end: int, device: torch.device) -> Tensor | None:
        """Which of the positions from ``first`` to ``end`` they are ``(n_base, end - first)``; None
        if all."""
        if first >= self.start and self.of_rows is None:
            return None
        starts = torch.tensor([self.start]) if self.of_rows is None else self.of_rows
        return torch.arange(first, end, device=device) >= starts.to(device)[:, None]


ALL = Where()
