"""The plan of a branched forward pass: its rows in each layer, and their gains."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefheads.types import Target


class BranchPlan:
    """The rows of a forward pass in each layer, and the gain of every head in each row.

    Args:
        gains: ``(n_base + n_branches, n_layers, n_heads)``, non-negative; 1 leaves a head alone.
            Base rows come first, then branches in ascending order of ``starts``. Where the base
            rows have run before, ``(n_branches, n_layers, n_heads)``.
        n_base: Rows that the model is called with.
        starts: The layer at which each branch leaves its base row, ascending.
        origins: The base row that each branch copies.
        target: What a gain multiplies: the head's output, its unnormalised attention to the
            profile's tokens, or its query.
        means: What a gain of 0 puts in place of a head's output, of each layer ``(n_heads,
            head_dim)``; zeros if None. For target ``"head"``.
    """

    @torch.inference_mode(False)  # its tensors may be used later, where there are gradients
    def __init__(
        self,
        gains: Tensor,
        n_base: int,
        starts: Sequence[int],
        origins: Sequence[int],
        target: Target,
        means: Sequence[Tensor] | None = None,
    ) -> None:
        self.means = means
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


def without_branches(gains: Tensor, target: Target) -> BranchPlan:
    """The plan of rows that the model is called with, under ``gains`` (R, L, H)."""
    return BranchPlan(gains, len(gains), [], [], target)


def branches_of_one(
    gains: Tensor,
    target: Target,
    *,
    any_layer: bool = True,
    means: Sequence[Tensor] | None = None,
) -> tuple[BranchPlan, Tensor]:
    """The plan of branches of one base row, run before, that leave where ``gains`` (R, L, H)
    change it, or all in the lowest layer if not ``any_layer``; and their ``order`` (R,): branch
    ``i`` of the plan is row ``order[i]`` of ``gains``."""
    changed = (gains != 1).any(dim=2)
    last = gains.shape[1] - 1
    starts = torch.where(changed.any(1), changed.int().argmax(1), last) * any_layer
    order = starts.argsort(stable=True)
    origins = [0] * len(order)
    return BranchPlan(gains[order], 1, starts[order].tolist(), origins, target, means), order


@dataclass(frozen=True)
class ActivePositions:
    """The positions of a call at which gains act: all from a first one on."""

    start: int = 0  # the first one of any row
    row_starts: Tensor | None = None  # that of each base row (n_base,), where rows differ

    def after(self, start: int) -> ActivePositions:
        """The same positions in a call that begins at the position ``start`` of this one."""
        rows = None if self.row_starts is None else (self.row_starts - start).clamp_min(0)
        return ActivePositions(max(0, self.start - start), rows)

    def mask(self, first: int, end: int, device: torch.device) -> Tensor | None:
        """Which positions from ``first`` to ``end`` are active ``(1 or n_base, end - first)``; None
        if all are."""
        if first >= self.start and self.row_starts is None:
            return None
        starts = torch.tensor([self.start]) if self.row_starts is None else self.row_starts
        return torch.arange(first, end, device=device) >= starts.to(device)[:, None]


ALL_POSITIONS = ActivePositions()
