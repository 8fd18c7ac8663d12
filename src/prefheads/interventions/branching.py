"""One forward pass, several branches: rows that leave a shared row where they begin to differ.

Below the first layer with a changed head a branch is identical to its base row, so it does not
exist there: it is appended to the batch, as a copy of the base row's hidden state, on entering
that layer. Steering uses one branch a row (the depersonalised one); discovery and calibration use
hundreds, all in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prefheads.interventions.hooks import AttentionFunction, Observer, layer_index
from prefheads.interventions.intercept import HeadLayout
from prefheads.interventions.masks import as_bias
from prefheads.interventions.plan import ALL, Plan, Where
from prefheads.interventions.shared_prompt import Prompt, attend_shared


class Pass(Observer):
    """One run of a plan through the model.

    Args:
        plan: Rows and gains.
        n_keys: Tokens seen when the pass is over, its own included.
        profile: ``(n_base, n_keys)`` bool, the profile's tokens among them; needed for target
            ``"profile"``.
        prompt: Keys and values of prompts that rows share
        (:mod:`prefheads.interventions.shared_prompt`); the model's
            cache must give back those of the new tokens only.
        entered: What entered each layer when the base rows ran; branches take off from there, and
            the base rows, if the plan has them, run again with them. Layers below the first branch
            do nothing; let the model skip them (:func:`prefheads.interventions.forward.skipped`).
        where: Where in this call gains act.
    """

    def __init__(
        self,
        plan: Plan,
        n_keys: int,
        profile: Tensor | None = None,
        prompt: Prompt | None = None,
        entered: Mapping[int, Tensor] | None = None,
        where: Where = ALL,
    ) -> None:
        self.plan = plan
        self.entered = entered
        self.n_keys = n_keys
        self.profile = profile
        self.prompt = prompt
        self.where = where
        self._may_be_blind: bool | None = None
        self._memo: dict[tuple[int, ...], tuple[Any, Any]] = {}

    # -- rows --

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Append the branches that leave here; give the layer's other inputs as many rows."""
        n, base, n_query = self.plan.rows(index), hidden, hidden.shape[1]
        if self.entered is not None:
            if index < self.plan.first:  # nobody is there yet
                return hidden, rest
            base = self.entered[index]
            hidden = hidden[:0] if index == self.plan.first else hidden
        if n > len(hidden):
            new = self.plan.origins[len(hidden) : n].to(hidden.device)
            hidden = torch.cat([hidden, base.index_select(0, new)])
        # Rows of one prompt broadcast over one row of mask and positions; others need as many.
        if n != self.plan.n_base and (self.prompt is None or self.prompt.apart):
            rest = self._expand_once(rest, n, n_query)
        return hidden, rest

    def _expand_once(self, rest: Any, n: int, n_query: int) -> Any:
        """:func:`_expand` to ``n`` rows, once for all layers that get the same things."""
        args, kwargs = rest if isinstance(rest, tuple) else ((), rest)
        same = (n, *map(id, args), *map(id, kwargs.values()))

        def expand() -> Any:
            return _expand(rest, self.plan.n_base, n_query, lambda x, axis: select(x, n, axis))

        def select(x: Tensor, n: int, axis: int) -> Tensor:
            return self._rows_of(x, n, axis)

        return self._remember(same, rest, expand)

    def _rows_of(self, x: Tensor, n: int, axis: int = 0) -> Tensor:
        def select() -> Tensor:
            return x.index_select(axis, self.plan.origins[:n].to(x.device))

        rows: Tensor = self._remember((id(x), n), x, select)
        return rows

    def _remember(self, key: tuple[int, ...], source: Any, make: Callable[[], Any]) -> Any:
        if key not in self._memo:
            self._memo[key] = (source, make())  # the source is kept too, so that its id stays taken
        return self._memo[key][1]

    # -- heads --

    def attend(
        self,
        inner: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """The attention function, with this layer's gains. Shapes as transformers passes them."""
        layer = layer_index(module)
        changed = self.plan.changed[layer]
        shared = None if self.prompt is None else self.prompt.held(layer, key, value)
        if shared is None and not changed:
            return inner(module, query, key, value, mask, **kwargs)
        gain = self.plan.gain(layer, query.device) if changed else None
        if gain is not None and self.plan.target == "query":
            query, gain = self._scaled(query.transpose(1, 2), gain).transpose(1, 2), None
        if gain is not None and self.plan.target == "profile":
            if shared is None and self.where.start:
                return self._attend_in_turn(inner, module, query, key, value, mask, gain, kwargs)
            return self._attend(inner, module, query, key, value, mask, gain, shared, kwargs)
        out, weights = self._attend(inner, module, query, key, value, mask, None, shared, kwargs)
        return out if gain is None else self._scaled(out, gain), weights

    def _attend_in_turn(
        self,
        inner: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        gain: Tensor,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """All as they are, and those after whom gains on the profile act once more with them."""
        start = self.where.start
        out, weights = inner(module, query, key, value, mask, **kwargs)
        if start >= query.shape[2]:
            return out, weights
        if mask is None:
            n_key = min(key.shape[2], self.n_keys)
            mask = as_bias(None, query, n_key - query.shape[2], key.shape[2])
        n_query, kwargs = query.shape[2], dict(kwargs)
        for name, given in kwargs.items():  # such as a bias of positions, for each query
            if isinstance(given, Tensor) and given.dim() == 4 and given.shape[2] == n_query:
                kwargs[name] = given[:, :, start:]
        late, _ = self._attend(
            inner, module, query[:, :, start:], key, value, mask[..., start:, :], gain, None, kwargs
        )
        return torch.cat([out[:, :start], late], 1), weights

    def _attend(
        self,
        inner: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        gain: Tensor | None,
        shared: tuple[Tensor, Tensor] | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of rows that may share prompts, with gains ``(rows, n_heads)`` on the profile
        if there are any."""
        rows, past, blind = len(query), 0 if shared is None else shared[0].shape[2], None
        if self.prompt is not None:
            mask = self._mask_of_rows(self.prompt.mask(layer_index(module), mask), rows)
        seen = (id(mask), rows, past)  # the same for all layers with as many rows and keys
        source = mask
        if gain is not None:
            mask, blind = self._hide(gain, mask, query, past + key.shape[2])
            if shared is None and source is not None and source.dtype == torch.bool:
                # Queries that see nothing, of padding, are left to the attention function.
                nothing = ~source[..., : mask.shape[-1]].any(-1, keepdim=True)
                mask = mask.masked_fill(nothing, float("-inf"))
        if self.prompt is None or shared is None:
            out, weights = inner(module, query, key, value, mask, **kwargs)
        else:

            def once(make: Callable[[], Any]) -> Any:
                return make() if gain is not None else self._remember(seen, source, make)

            out, weights = attend_shared(
                inner, module, query, key, value, mask, shared, self.prompt.apart, once, kwargs
            )
        if blind is not None:
            out = out.masked_fill(blind.transpose(1, 2)[..., None], 0)
        return out, weights

    def _mask_of_rows(self, mask: Tensor | None, rows: int) -> Tensor | None:
        """A mask of base rows, or of all, for ``rows``."""
        if mask is None or len(mask) in (1, rows):
            return mask
        return self._rows_of(mask, rows)

    def _scaled(self, out: Tensor, gain: Tensor) -> Tensor:
        """What heads hand on, or ask for, ``(rows, query, heads, head_dim)``, times their gains."""
        gains, start = gain[:, None, :, None].to(out.dtype), self.where.start
        if self.where.of_rows is not None:
            active = self.where.active(start, out.shape[1], out.device)
            assert active is not None
            rows = active[self.plan.origins[: len(out)].to(out.device)]
            gains = torch.where(rows[:, :, None, None], gains, 1.0)
        # Models take a view of what attention returns, which must lie in order for that.
        if not start:
            return (out * gains).contiguous()
        return torch.cat([out[:, :start], out[:, start:] * gains], 1)

    def _hide(
        self, gain: Tensor, mask: Tensor | None, query: Tensor, n_key: int
    ) -> tuple[Tensor, Tensor | None]:
        """Add log(gain) to the mask where keys are profile tokens.

        Returns:
            The bias ``(rows, n_heads, n_query, n_key)``; and where a head is blind
            ``(rows, n_heads, n_query)``, or None if none can be: a head from which all it could
            see is hidden reads nothing, so its output is zero.
        """
        assert self.profile is not None
        origins = self.plan.origins[: len(gain)].to(gain.device)
        columns = self._columns(self.profile.to(gain.device), n_key)[origins][:, None, None, :]
        if self.where.of_rows is not None:
            start = self.where.start
            active = self.where.active(start, start + query.shape[2], gain.device)
            assert active is not None
            columns = columns & active[origins][:, None, :, None]
        log_gain = torch.where(columns, gain.log()[..., None, None], 0.0).to(query.dtype)
        past = min(n_key, self.n_keys) - query.shape[2]
        seen = as_bias(mask, query, past, n_key)
        low = torch.finfo(query.dtype).min
        bias = (seen + log_gain).clamp_min(low)
        if self._may_be_blind is None:  # a token outside the profile sees at least itself
            own = self.profile[:, self.n_keys - query.shape[2] : self.n_keys]
            self._may_be_blind = bool(own.any())
        if not self._may_be_blind:
            return bias, None
        visible = seen > low / 2
        return bias, visible.any(-1) & ~(visible & (log_gain > float("-inf"))).any(-1)

    def _columns(self, profile: Tensor, n_key: int) -> Tensor:
        """The profile mask over a layer's keys: the last ones, or padded for a static cache."""
        if n_key <= self.n_keys:
            return profile[:, self.n_keys - n_key : self.n_keys]
        return nn.functional.pad(profile, (0, n_key - self.n_keys))


class Step(Observer):
    """One new token a row, under a plan whose branches leave at the bottom, of target ``"head"`` or
    ``"query"``.

    The same as :class:`Pass` makes of it, in a form that is traced as one graph, and again for no
    other numbers: gains are tensors, and every layer has its own.
    """

    def __init__(self, plan: Plan, layout: HeadLayout) -> None:
        self.n_base, self.forks = plan.n_base, bool(plan.starts)
        self.of_query = plan.target == "query"
        self.gains = [
            plan.gain(i, next(layer.parameters()).device)[:, None, :, None]
            for i, layer in enumerate(layout.layers)
        ]

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Double the rows."""
        if not self.forks:
            return hidden, rest
        hidden = _twice(hidden) if index == 0 else hidden
        return hidden, _expand(rest, self.n_base, 1, _twice)

    def attend(
        self,
        inner: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """The attention function, with this layer's gains. Shapes as transformers passes them."""
        gains = self.gains[layer_index(module)].to(query.dtype)
        if self.of_query:
            return inner(module, query * gains.transpose(1, 2), key, value, mask, **kwargs)
        out, weights = inner(module, query, key, value, mask, **kwargs)
        return out * gains, weights


def _twice(x: Tensor, axis: int = 0) -> Tensor:
    return torch.cat([x, x], axis)


def _expand(value: Any, n_base: int, n_query: int, take: Callable[[Tensor, int], Tensor]) -> Any:
    """What a layer is given beside its hidden states, with other rows where it has rows."""
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
