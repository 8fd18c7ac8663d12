"""Which rows of a step are steered, and how: vLLM's batch, followed request by request.

The runner's batch has a row a request. Rows come, go and move before a step
(:meth:`Batch.add`, ``remove``, ``move``); when the step's attention metadata is built,
:meth:`Batch.plan` finds the tokens that are steered and writes persistent buffers that the
forward pass reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefheads.vllm.request import RequestSteering

if TYPE_CHECKING:
    from vllm.v1.attention.backend import CommonAttentionMetadata

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Heads:
    """The heads of a model that this process has.

    Attributes:
        shape: ``(n_layers, n_heads)`` of the whole model.
        first, count: This rank's heads in every layer.
        fork: The layer that the second branch begins at; ``n_layers`` if there is none.
        static: Whether shapes must not depend on data (compilation, CUDA graphs).
    """

    shape: tuple[int, int]
    first: int
    count: int
    fork: int
    static: bool


@dataclass(frozen=True)
class Plan:
    """A step with rows of just the tokens that need them (not ``static``).

    Attributes:
        slots: Row of the table of gains for each token, then for each row of the second branch.
        rows: The tokens that the second branch runs.
        gammas: ``(len(rows), 1)`` float32.
        layers: Whether any gain of this step differs from 1, by layer.
        mirrors: Whether the second cache needs this step's keys and values.
        requests, counts: Requests with tokens in the second branch, and how many each has.
    """

    slots: Tensor
    rows: Tensor
    gammas: Tensor
    layers: NDArray[np.bool_]
    mirrors: bool
    requests: NDArray[np.int64]
    counts: NDArray[np.int64]


class Batch:
    """The steered rows of a worker's batch.

    Args:
        max_requests, max_tokens: The most that a step can have.
        device: Where the model runs.
        dtype: The model's.
    """

    def __init__(
        self, max_requests: int, max_tokens: int, heads: Heads, device: Any, dtype: torch.dtype
    ) -> None:
        self.heads = heads
        n_layers = heads.shape[0]
        self._slot = np.zeros(max_requests, np.int64)  # by row; 0: not steered
        self._start = np.full(max_requests, _NEVER)  # first position that is steered
        self._gamma = np.zeros(max_requests, np.float32)
        self._contrast = np.zeros(max_requests, bool)
        self._free = list(range(max_requests, 0, -1))
        self._touched = np.zeros((max_requests + 1, n_layers), bool)
        # Slot 0 leaves all heads alone. By layer, so that a layer's part is contiguous.
        shape = (n_layers, max_requests + 1, heads.count)
        self.table = torch.ones(shape, device=device, dtype=dtype)
        self.own = torch.zeros(max_tokens, device=device, dtype=torch.long)
        self.branch = torch.zeros(max_tokens, device=device, dtype=torch.long)
        self.gammas = torch.zeros(max_tokens, 1, device=device)
        self._idle = self._rest(0)
        self._stale, self._tokens = True, 0
        self.current = self._idle

    # -- rows --

    def add(self, row: int, steering: RequestSteering | None, n_prompt: int) -> None:
        """A request enters a row, and replaces what was there."""
        self.remove(row)
        if steering is None:
            return
        slot = self._free.pop()
        gains = steering.gains(self.heads.shape)
        self._touched[slot] = (gains != 1).any(1).numpy()
        mine = gains[:, self.heads.first : self.heads.first + self.heads.count]
        self.table[:, slot] = mine.to(self.table)
        self._slot[row] = slot
        self._start[row] = n_prompt - 1
        self._gamma[row], self._contrast[row] = steering.setting.gamma, steering.contrasts

    def remove(self, row: int) -> None:
        """A row becomes empty."""
        if self._slot[row]:
            self._free.append(int(self._slot[row]))
        self._set(row, (0, _NEVER, 0.0, False))

    def move(self, source: int, target: int, swap: bool) -> None:
        """A request moves to another row, whose own comes back in exchange or is gone."""
        mine, other = self._get(source), self._get(target)
        if not swap:
            self.remove(target)
            other = (0, _NEVER, 0.0, False)
        self._set(target, mine)
        self._set(source, other)

    def _get(self, row: int) -> tuple[Any, ...]:
        return self._slot[row], self._start[row], self._gamma[row], self._contrast[row]

    def _set(self, row: int, values: tuple[Any, ...]) -> None:
        self._slot[row], self._start[row], self._gamma[row], self._contrast[row] = values

    # -- steps --

    def advance(self) -> None:
        """A step begins: what was planned is out of date."""
        self._stale = True

    def plan(self, common: CommonAttentionMetadata) -> Plan:
        """The plan of the step with this metadata, made when first asked for."""
        n = common.num_actual_tokens
        if self._stale or n != self._tokens:
            self.current = self._make(common)
            self._stale, self._tokens = False, n
        return self.current

    def rest(self) -> None:
        """The next pass steers nothing (graph capture)."""
        self.current = self._write(self._idle)
        self._stale = True

    def fill(self, n: int) -> None:
        """The next pass has no requests, but as many rows as could be (memory is measured)."""
        branched = self.heads.fork < self.heads.shape[0] and not self.heads.static
        self.current = self._rest(n if branched else 0)
        self._stale = True

    def _make(self, common: CommonAttentionMetadata) -> Plan:
        n = common.num_reqs
        rows = self._slot[:n].nonzero()[0]
        if not len(rows):
            return self._write(self._idle)
        assert common.seq_lens_cpu_upper_bound is not None
        ends = common.query_start_loc_cpu.numpy()[: n + 1].astype(np.int64)
        lengths = common.seq_lens_cpu_upper_bound.numpy()[rows]
        begin, end = ends[rows], ends[rows + 1]
        count = np.clip(lengths - self._start[rows], 0, end - begin)
        of = np.repeat(np.arange(len(rows)), count)  # the request of each steered token
        tokens = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        tokens += np.repeat(end - count, count)
        slots, contrast = self._slot[rows][of], self._contrast[rows]
        second = contrast[of]
        mine = contrast & (count > 0)

        own, branch = np.zeros((2, common.num_actual_tokens), np.int64)
        own[tokens[~second]] = slots[~second]
        branch[tokens[second]] = slots[second]
        gammas = self._gamma[rows][of][second].reshape(-1, 1)
        plan = self._idle
        if not self.heads.static:
            plan = Plan(
                self._tensor(np.concatenate([own, slots[second]])),
                self._tensor(tokens[second]),
                self._tensor(gammas),
                np.logical_or.reduce(self._touched[slots]),
                bool(contrast.any()),
                rows[mine],
                count[mine],
            )
        return self._write(plan, own, branch, tokens[second], gammas)

    def _write(
        self,
        plan: Plan,
        own: NDArray[Any] | None = None,
        branch: NDArray[Any] | None = None,
        tokens: NDArray[Any] | None = None,
        gammas: NDArray[Any] | None = None,
    ) -> Plan:
        """Bring the persistent buffers up to date; tokens beyond the step's are padding."""
        if self.heads.static:
            for buffer in (self.own, self.branch, self.gammas):
                buffer.zero_()
            if own is not None and branch is not None and tokens is not None:
                self.own[: len(own)] = self._tensor(own)
                self.branch[: len(branch)] = self._tensor(branch)
                self.gammas[self._tensor(tokens)] = self._tensor(gammas)
        return plan

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.table.device)

    def _rest(self, n: int) -> Plan:
        """No steering, with ``n`` rows in the second branch all the same."""
        none = np.zeros(0, np.int64)
        rows, gammas = np.arange(n), np.zeros((n, 1), np.float32)
        layers = np.zeros(self.heads.shape[0], bool)
        return Plan(
            self._tensor(none), self._tensor(rows), self._tensor(gammas), layers, False, none, none
        )
