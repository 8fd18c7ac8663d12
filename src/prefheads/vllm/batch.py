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

# Of a request: its slot in the table of gains (0: not steered), its first steered position.
_ROW = np.dtype(
    [("slot", np.int64), ("start", np.int64), ("gamma", np.float32), ("contrast", bool)]
)
_EMPTY = np.array((0, np.iinfo(np.int64).max, 0, False), _ROW)


@dataclass(frozen=True)
class Heads:
    """The heads of a model that this process has: ``count`` from the ``first`` in every layer."""

    shape: tuple[int, int]  # (n_layers, n_heads) of the whole model
    first: int
    count: int
    fork: int  # the layer that the second branch begins at; n_layers if there is none
    static: bool  # whether shapes must not depend on data (compilation, CUDA graphs)


@dataclass(frozen=True)
class Plan:
    """A step with rows of just the tokens that need them (not ``static``)."""

    slots: Tensor  # row of the table of gains of each token, then of each row of the second branch
    rows: Tensor  # the tokens that the second branch runs
    gammas: Tensor  # (len(rows), 1) float32
    layers: NDArray[np.bool_]  # whether any gain of this step differs from 1, by layer
    mirrors: bool  # whether the second cache needs this step's keys and values
    requests: NDArray[np.int64]  # those with tokens in the second branch
    counts: NDArray[np.int64]  # how many tokens each of these has


class Batch:
    """The steered rows of a worker's batch, in steps of so many requests and tokens at most."""

    def __init__(
        self, max_requests: int, max_tokens: int, heads: Heads, device: Any, dtype: torch.dtype
    ) -> None:
        self.heads = heads
        n_layers = heads.shape[0]
        self._rows = np.full(max_requests, _EMPTY, _ROW)
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
        self._rows[row] = (slot, n_prompt - 1, steering.setting.gamma, steering.contrasts)

    def remove(self, row: int) -> None:
        """A row becomes empty."""
        if slot := int(self._rows["slot"][row]):
            self._free.append(slot)
        self._rows[row] = _EMPTY

    def move(self, source: int, target: int, swap: bool) -> None:
        """A request moves to another row, whose own comes back in exchange or is gone."""
        if not swap:
            self.remove(target)
        self._rows[[source, target]] = self._rows[[target, source]]

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
        self._clear()
        self.current, self._stale = self._idle, True

    def fill(self, n: int) -> None:
        """The next pass has no requests, but as many rows as could be (memory is measured)."""
        branched = self.heads.fork < self.heads.shape[0] and not self.heads.static
        self.current, self._stale = self._rest(n if branched else 0), True

    def _make(self, common: CommonAttentionMetadata) -> Plan:
        self._clear()
        n = common.num_reqs
        rows = self._rows["slot"][:n].nonzero()[0]
        if not len(rows):
            return self._idle
        how = self._rows[rows]
        assert common.seq_lens_cpu_upper_bound is not None
        ends = common.query_start_loc_cpu.numpy()[: n + 1].astype(np.int64)
        lengths = common.seq_lens_cpu_upper_bound.numpy()[rows]
        begin, end = ends[rows], ends[rows + 1]
        count = np.clip(lengths - how["start"], 0, end - begin)
        of = np.repeat(np.arange(len(rows)), count)  # the request of each steered token
        tokens = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        tokens += np.repeat(end - count, count)
        slots, second = how["slot"][of], how["contrast"][of]
        own = np.zeros(common.num_actual_tokens, np.int64)
        own[tokens[~second]] = slots[~second]
        branched, branch_slots = self._tensor(tokens[second]), slots[second]
        gammas = self._tensor(how["gamma"][of][second].reshape(-1, 1))
        if self.heads.static:  # tokens beyond the step's are padding
            self.own[: len(own)] = self._tensor(own)
            self.branch[branched] = self._tensor(branch_slots)
            self.gammas[branched] = gammas
            return self._idle
        mine = how["contrast"] & (count > 0)
        return Plan(
            self._tensor(np.concatenate([own, branch_slots])),
            branched,
            gammas,
            np.logical_or.reduce(self._touched[slots]),
            bool(how["contrast"].any()),
            rows[mine],
            count[mine],
        )

    def _clear(self) -> None:
        if self.heads.static:
            for buffer in (self.own, self.branch, self.gammas):
                buffer.zero_()

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.table.device)

    def _rest(self, n: int) -> Plan:
        """No steering, with ``n`` rows in the second branch all the same."""
        none = np.zeros(0, np.int64)
        rows, gammas = self._tensor(np.arange(n)), self._tensor(np.zeros((n, 1), np.float32))
        layers = np.zeros(self.heads.shape[0], bool)
        return Plan(self._tensor(none), rows, gammas, layers, False, none, none)
