"""One forward pass with branches: rows that leave a shared row where they begin to differ.

Below the first layer with a changed head a branch is identical to its base row, so it does not
exist there. On entering that layer it is appended to the batch, as a copy of the base row's hidden
state. Steering uses one branch a row (the depersonalised one); discovery and calibration use
hundreds, all in one pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prefheads.interventions.hooks import (
    AttentionCall,
    AttentionHook,
    AttentionOutput,
    attribute_set_to,
    hooked,
)
from prefheads.interventions.layout import HeadLayout
from prefheads.interventions.plan import ALL_POSITIONS, ActivePositions, BranchPlan
from prefheads.interventions.shared_prompt import SharedPrompt, as_bias, attend_shared


class BranchedForward(AttentionHook):
    """One forward pass of a plan's rows.

    Args:
        plan: Rows and gains.
        n_keys: Tokens of the text when the pass is over, those of the pass included.
        profile: ``(n_base, n_keys)`` bool, the profile's tokens; needed for target ``"profile"``.
        prompt: Prompts that rows share; the model's cache must then give back the keys and values
            of the new tokens only.
        layer_inputs: What entered each layer when the base rows ran before. Branches leave from
            there; the base rows run again only if the plan has them.
        active: The positions of this call at which gains act.
    """

    def __init__(
        self,
        plan: BranchPlan,
        n_keys: int,
        profile: Tensor | None = None,
        prompt: SharedPrompt | None = None,
        layer_inputs: Mapping[int, Tensor] | None = None,
        active: ActivePositions = ALL_POSITIONS,
    ) -> None:
        self.plan = plan
        self.layer_inputs = layer_inputs
        self.n_keys = n_keys
        self.profile = profile
        self.prompt = prompt
        self.active = active
        self._may_hide_all: bool | None = None
        self._memo: dict[tuple[int, ...], tuple[Any, Any]] = {}

    @contextmanager
    def running(self, layout: HeadLayout) -> Iterator[None]:
        """Run these rows when the model is called inside the block. The layers below the first
        branch return what enters them if the base rows have run before."""

        def skip(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden,) if layout.tuples else hidden

        n_skipped = 0 if self.layer_inputs is None else self.plan.first
        with ExitStack() as stack:
            stack.enter_context(hooked(self))
            for layer in layout.layers[:n_skipped]:
                stack.enter_context(attribute_set_to(layer, "forward", skip))
            yield

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Append the branches that leave here; give the layer's other inputs as many rows."""
        n, base, n_query = self.plan.rows(index), hidden, hidden.shape[1]
        if self.layer_inputs is not None:
            if index < self.plan.first:  # a skipped layer
                return hidden, rest
            base = self.layer_inputs[index]
            hidden = hidden[:0] if index == self.plan.first else hidden
        if n > len(hidden):
            new = self.plan.origins[len(hidden) : n].to(hidden.device)
            hidden = torch.cat([hidden, base.index_select(0, new)])
        # Rows of one prompt broadcast over one row of mask and positions; others need as many.
        if n != self.plan.n_base and (self.prompt is None or self.prompt.per_row):
            # Expanded once for all layers that get the same inputs.
            args, kwargs = rest if isinstance(rest, tuple) else ((), rest)
            same = (n, *map(id, args), *map(id, kwargs.values()))
            rows = functools.partial(self._rows, n)
            expand = functools.partial(_expand, rest, self.plan.n_base, n_query, rows)
            rest = self._remember(same, rest, expand)
        return hidden, rest

    def _rows(self, n: int, x: Tensor, axis: int = 0) -> Any:
        """Rows of ``x``, one a base row, for the first ``n`` rows of the batch."""
        origins = self.plan.origins[:n].to(x.device)
        return self._remember((id(x), n), x, lambda: x.index_select(axis, origins))

    def _remember(self, key: tuple[int, ...], source: Any, make: Callable[[], Any]) -> Any:
        if key not in self._memo:
            self._memo[key] = (source, make())  # the source is kept too, so that its id stays taken
        return self._memo[key][1]

    def attend(self, call: AttentionCall) -> AttentionOutput:
        """Run the attention function with this layer's gains."""
        changed = self.plan.changed[call.layer]
        prompt_kv = None if self.prompt is None else self.prompt.prompt_kv(call)
        if prompt_kv is None and not changed:
            return call.run()
        gain = self.plan.gain(call.layer, call.query.device) if changed else None
        if gain is not None and self.plan.target == "query":
            query = self._scaled(call.query.transpose(1, 2), gain).transpose(1, 2)
            call, gain = call.replace(query=query), None
        if gain is not None and self.plan.target == "profile":
            if prompt_kv is None and self.active.start:
                return self._attend_in_turn(call, gain)
            return self._attend(call, gain, prompt_kv)
        out, weights = self._attend(call, None, prompt_kv)
        if gain is None:
            return out, weights
        means = None if self.plan.means is None else self.plan.means[call.layer]
        return self._scaled(out, gain, means), weights

    def _attend_in_turn(self, call: AttentionCall, gain: Tensor) -> AttentionOutput:
        """Run all queries as they are, and the active ones once more with gains on the profile."""
        start, n_query, n_keys = self.active.start, call.query.shape[2], call.key.shape[2]
        out, weights = call.run()
        if start >= n_query:
            return out, weights
        mask = call.mask
        if mask is None:
            mask = as_bias(None, call.query, min(n_keys, self.n_keys) - n_query, n_keys)
        kwargs = dict(call.kwargs)
        for name, given in kwargs.items():  # such as a bias of positions, for each query
            if isinstance(given, Tensor) and given.dim() == 4 and given.shape[2] == n_query:
                kwargs[name] = given[:, :, start:]
        late = call.replace(
            query=call.query[:, :, start:], mask=mask[..., start:, :], kwargs=kwargs
        )
        return torch.cat([out[:, :start], self._attend(late, gain, None)[0]], 1), weights

    def _attend(
        self, call: AttentionCall, gain: Tensor | None, prompt_kv: tuple[Tensor, Tensor] | None
    ) -> AttentionOutput:
        """Run the attention of rows that may share prompts, with gains ``(rows, n_heads)`` on the
        profile if there are any."""
        rows, mask, hidden = len(call.query), call.mask, None
        past = 0 if prompt_kv is None else prompt_kv[0].shape[2]
        if self.prompt is not None:
            mask = self.prompt.mask(call)
            if mask is not None and len(mask) not in (1, rows):  # one of base rows
                mask = self._rows(rows, mask)
        seen, source = (id(mask), rows, past), mask  # shared by layers with as many rows and keys
        if gain is not None:
            mask, hidden = self._profile_bias(gain, mask, call.query, past + call.key.shape[2])
            if prompt_kv is None and source is not None and source.dtype == torch.bool:
                # Queries that see nothing, of padding, are left to the attention function.
                nothing = ~source[..., : mask.shape[-1]].any(-1, keepdim=True)
                mask = mask.masked_fill(nothing, float("-inf"))
        call = call.replace(mask=mask)
        if self.prompt is None or prompt_kv is None:
            out, weights = call.run()
        else:

            def once(make: Callable[[], Any]) -> Any:
                return make() if gain is not None else self._remember(seen, source, make)

            out, weights = attend_shared(call, prompt_kv, self.prompt.per_row, once)
        if hidden is not None:
            out = out.masked_fill(hidden.transpose(1, 2)[..., None], 0)
        return out, weights

    def _scaled(self, x: Tensor, gain: Tensor, means: Tensor | None = None) -> Tensor:
        """Outputs or queries of heads ``(rows, query, heads, head_dim)`` times their gains; the
        means ``(heads, head_dim)`` make up for what a gain takes away."""
        gains, start = gain[:, None, :, None].to(x.dtype), self.active.start
        if self.active.row_starts is not None:
            rows = self._active_rows(start, x.shape[1], len(x), x.device)
            gains = torch.where(rows[:, :, None, None], gains, 1.0)
        scaled = x[:, start:] * gains
        if means is not None:
            scaled = scaled + (1 - gains) * means.to(x)
        # Models take a view of what attention returns, which must be contiguous for that.
        return torch.cat([x[:, :start], scaled], 1) if start else scaled.contiguous()

    def _active_rows(self, first: int, end: int, n: int, device: torch.device) -> Tensor:
        """Which positions are active in each row of the batch, where rows differ."""
        mask = self.active.mask(first, end, device)
        assert mask is not None
        return mask[self.plan.origins[:n].to(device)]

    def _profile_bias(
        self, gain: Tensor, mask: Tensor | None, query: Tensor, n_key: int
    ) -> tuple[Tensor, Tensor | None]:
        """The mask with log(gain) added at profile tokens ``(rows, n_heads, n_query, n_key)``; and
        where all that a head could see is hidden from it, so that its output is zero ``(rows,
        n_heads, n_query)``, or None if nowhere."""
        assert self.profile is not None
        origins = self.plan.origins[: len(gain)].to(gain.device)
        profile = self.profile.to(gain.device)
        if n_key <= self.n_keys:  # a layer with a window has the last keys
            profile = profile[:, self.n_keys - n_key : self.n_keys]
        else:  # a static cache has room after them
            profile = nn.functional.pad(profile, (0, n_key - self.n_keys))
        columns = profile[origins][:, None, None, :]
        if self.active.row_starts is not None:
            start = self.active.start
            active = self._active_rows(start, start + query.shape[2], len(gain), gain.device)
            columns = columns & active[:, None, :, None]
        log_gain = torch.where(columns, gain.log()[..., None, None], 0.0).to(query.dtype)
        past = min(n_key, self.n_keys) - query.shape[2]
        seen = as_bias(mask, query, past, n_key)
        low = torch.finfo(query.dtype).min
        bias = (seen + log_gain).clamp_min(low)
        if self._may_hide_all is None:  # a token outside the profile sees at least itself
            own = self.profile[:, self.n_keys - query.shape[2] : self.n_keys]
            self._may_hide_all = bool(own.any())
        if not self._may_hide_all:
            return bias, None
        visible = seen > low / 2
        return bias, visible.any(-1) & ~(visible & (log_gain > float("-inf"))).any(-1)


class CompiledStep(AttentionHook):
    """One new token a row, under a plan whose branches leave in the lowest layer, of target
    ``"head"`` or ``"query"``.

    It does what :class:`BranchedForward` does, in a form that is traced as one graph, and not again
    for other numbers: gains are tensors, and every layer has its own.
    """

    def __init__(self, plan: BranchPlan, layout: HeadLayout) -> None:
        self.n_base, self.has_branches = plan.n_base, bool(plan.starts)
        self.of_query = plan.target == "query"
        self.gains = [
            plan.gain(i, next(layer.parameters()).device)[:, None, :, None]
            for i, layer in enumerate(layout.layers)
        ]

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Double the rows."""
        if not self.has_branches:
            return hidden, rest
        hidden = _twice(hidden) if index == 0 else hidden
        return hidden, _expand(rest, self.n_base, 1, _twice)

    def attend(self, call: AttentionCall) -> AttentionOutput:
        """Run the attention function with this layer's gains."""
        gains = self.gains[call.layer].to(call.query.dtype)
        if self.of_query:
            return call.replace(query=call.query * gains.transpose(1, 2)).run()
        out, weights = call.run()
        return out * gains, weights


def _twice(x: Tensor, axis: int = 0) -> Tensor:
    return torch.cat([x, x], axis)


def _expand(value: Any, n_base: int, n_query: int, take: Callable[[Tensor, int], Tensor]) -> Any:
    """A layer's inputs beside its hidden states, with other rows where they have rows."""
    if isinstance(value, Tensor):
        axis = _axis_of_rows(value, n_base, n_query)
        return value if axis is None else take(value, axis)
    if isinstance(value, tuple | list):
        return type(value)([_expand(v, n_base, n_query, take) for v in value])
    if isinstance(value, dict):
        return {k: _expand(v, n_base, n_query, take) for k, v in value.items()}
    return value


def _axis_of_rows(x: Tensor, n_base: int, n_query: int) -> int | None:
    """Where a tensor has the rows of a batch: first, or after the three or four kinds of positions
    (in time, height and width) of models that see pictures."""
    if x.dim() >= 3 and len(x) in (3, 4) and x.shape[1:3] == (n_base, n_query):
        return 1
    return 0 if x.dim() >= 2 and len(x) == n_base else None
