"""One forward pass, several branches: rows that leave a shared row where they begin to differ.

Below the first layer with a changed head a branch is identical to its base row, so it does not
exist there: it is appended to the batch, as a copy of the base row's hidden state, on entering
that layer. Steering uses one branch a row (the depersonalised one); discovery and calibration use
hundreds, all in one pass.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Cache

from prefheads.attention import AttentionFunction, Observer, current, layer_index
from prefheads.masks import as_bias

Target = Literal["head", "profile"]


class Plan:
    """Which rows a pass has in each layer, and the gain of every head in each row.

    Args:
        gains: ``(n_base + n_branches, n_layers, n_heads)``, non-negative; 1 leaves a head alone.
            Base rows first, then branches in ascending order of ``starts``.
        n_base: Rows that the model is called with.
        starts: Layer at which each branch leaves, ascending.
        origins: Base row that each branch copies.
        target: What the gain multiplies: the head's output, or its unnormalised attention to
            profile tokens.
    """

    def __init__(
        self,
        gains: Tensor,
        n_base: int,
        starts: Sequence[int],
        origins: Sequence[int],
        target: Target,
    ) -> None:
        self.gains = gains.float()
        self.n_base = n_base
        self.target = target
        self.starts = list(starts)
        self.origins = torch.tensor([*range(n_base), *origins], device=gains.device)
        self.first = min(self.starts, default=gains.shape[1])
        self.changed = [
            bool((self.gains[: self.rows(layer), layer] != 1).any())
            for layer in range(gains.shape[1])
        ]
        self._cached: dict[tuple[int, torch.device], Tensor] = {}

    def rows(self, layer: int) -> int:
        """Rows of the batch in a layer."""
        return self.n_base + bisect_right(self.starts, layer)

    def gain(self, layer: int, device: torch.device) -> Tensor:
        """Gains of the rows present in a layer, ``(rows, n_heads)``, on ``device``."""
        key = (layer, device)
        if key not in self._cached:
            self._cached[key] = self.gains[: self.rows(layer), layer].to(device)
        return self._cached[key]


def branch_plan(gains: Tensor, target: Target) -> tuple[Plan, Tensor]:
    """A plan with one base row that each row of ``gains`` (R, L, H) leaves where it changes.

    Returns:
        The plan and ``order`` (R,): branch ``i`` of the plan is row ``order[i]`` of ``gains``.
    """
    changed = (gains != 1).any(dim=2)
    last = gains.shape[1] - 1
    starts = torch.where(changed.any(1), changed.int().argmax(1), last)
    order = starts.argsort(stable=True)
    rows = torch.cat([torch.ones_like(gains[:1]), gains[order]])
    return Plan(rows, 1, starts[order].tolist(), [0] * len(order), target), order


class Pass(Observer):
    """One run of a plan through the model.

    Args:
        plan: Rows and gains.
        n_keys: Tokens seen when the pass is over, its own included.
        profile: ``(n_base, n_keys)`` bool, the profile's tokens among them; needed for target
            ``"profile"``.
        prompt: Keys and values of a prompt that all rows share (single base row). The model must
            be called with ``ReadOnly(prompt)``; the rows are then folded into the query axis, so
            that the prompt's keys are read once for all of them and each row sees its own tokens
            only.
    """

    def __init__(
        self,
        plan: Plan,
        n_keys: int,
        profile: Tensor | None = None,
        prompt: Cache | None = None,
    ) -> None:
        self.plan = plan
        self.n_keys = n_keys
        self.profile = profile
        self.prompt = prompt
        self._may_be_blind: bool | None = None
        self._memo: dict[tuple[int, ...], tuple[Any, Tensor]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make this the pass of the forward call inside the block, in this thread."""
        token = current.set(self)
        try:
            yield
        finally:
            current.reset(token)

    # -- rows --

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Append the branches that leave here; give the layer's other inputs as many rows."""
        n = self.plan.rows(index)
        if n > len(hidden):
            new = self.plan.origins[len(hidden) : n].to(hidden.device)
            hidden = torch.cat([hidden, hidden.index_select(0, new)])
        # Folded rows broadcast over one row of mask and positions; others need as many.
        if n > self.plan.n_base and self.prompt is None:
            rest = self._expand(rest, n)
        return hidden, rest

    def _expand(self, value: Any, n: int) -> Any:
        if isinstance(value, Tensor):
            if value.dim() < 2 or len(value) != self.plan.n_base:
                return value
            select = value.index_select
            return self._remember(
                (id(value), n), value, lambda: select(0, self.plan.origins[:n].to(value.device))
            )
        if isinstance(value, tuple | list):
            return type(value)(self._expand(v, n) for v in value)
        if isinstance(value, dict):
            return {k: self._expand(v, n) for k, v in value.items()}
        return value

    def _remember(self, key: tuple[int, ...], source: Any, make: Callable[[], Tensor]) -> Tensor:
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
        rows, _, n_query, _ = query.shape
        gain = self.plan.gain(layer, query.device) if changed else None
        shared = self._shared(layer, key, value) if self.prompt is not None else None
        n_key = key.shape[2] + (shared[0].shape[2] if shared is not None else 0)

        blind = None
        biased = gain is not None and self.plan.target == "profile"
        if gain is not None and biased:
            mask, blind = self._hide(gain, mask, query, n_key)
        if shared is None:
            out, weights = inner(module, query, key, value, mask, **kwargs)
        else:
            past = shared[0].shape[2]
            if biased:
                mask = _fold_mask(mask, query, n_key, past)
            else:  # the same for all layers with as many rows and keys
                mask = self._remember(
                    (id(mask), rows, past), mask, lambda: _fold_mask(mask, query, n_key, past)
                )
            keys, values = (
                torch.cat([s, _fold(x)], 2) for s, x in zip(shared, (key, value), strict=True)
            )
            out, weights = inner(module, _fold(query), keys, values, mask, **kwargs)
            out = out.reshape(rows, n_query, *out.shape[2:])
        if gain is not None and self.plan.target == "head":
            out = out * gain[:, None, :, None].to(out.dtype)
        if blind is not None:
            out = out.masked_fill(blind.transpose(1, 2)[..., None], 0)
        return out, weights

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

    # -- rows folded into the query axis --

    def _shared(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        assert self.prompt is not None
        layers: list[Any] = self.prompt.layers
        held = layers[layer] if layer < len(layers) else None
        if held is None or held.get_seq_length() == 0:
            return key[:1, :, :0], value[:1, :, :0]
        return held.keys, held.values


def _fold_mask(mask: Tensor | None, query: Tensor, n_key: int, past: int) -> Tensor:
    """Mask ``(1, heads, rows * T, past + rows * T)``: a row sees the prompt and its own tokens."""
    rows, _, n_query, _ = query.shape
    bias = as_bias(mask, query, n_key - n_query, n_key).expand(rows, -1, -1, -1)
    heads = bias.shape[1]
    folded = query.new_full(
        (heads, rows, n_query, past + rows * n_query), torch.finfo(query.dtype).min
    )
    folded[..., :past] = bias[..., :past].transpose(0, 1)
    own = folded[..., past:].unflatten(-1, (rows, n_query)).diagonal(dim1=1, dim2=3)
    own.copy_(bias[..., past:].permute(1, 2, 3, 0))
    return folded.reshape(1, heads, rows * n_query, -1)


def _fold(x: Tensor) -> Tensor:
    """``(rows, heads, n, d)`` as one row of ``(1, heads, rows * n, d)``."""
    return x.transpose(0, 1).reshape(1, x.shape[1], -1, x.shape[3])


class ReadOnly(Cache):
    """A filled cache that tells its lengths and keeps nothing: new keys and values pass through."""

    def __init__(self, filled: Cache) -> None:
        super().__init__(layers=filled.layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new keys and values unchanged; :class:`Pass` adds the prompt's."""
        return key_states, value_states


# -- caches of a forked generation --


def fork_cache(cache: Cache, first: int, n_rows: int) -> None:
    """Double the ``n_rows`` rows of layers from ``first`` on; reordering (beams) acts on both."""
    layers: list[Any] = cache.layers[first:]
    for layer in layers:
        if layer.get_seq_length() > 0 and len(layer.keys) == n_rows:
            layer.keys = torch.cat([layer.keys, layer.keys])
            layer.values = torch.cat([layer.values, layer.values])
        layer.reorder_cache = MethodType(_reorder_both, layer)
        layer.batch_select_indices = MethodType(_select_both, layer)


def _reorder_both(layer: Any, beam_idx: Tensor) -> None:
    type(layer).reorder_cache(layer, _both(beam_idx, layer))


def _select_both(layer: Any, indices: Tensor) -> None:
    type(layer).batch_select_indices(layer, _both(indices, layer))


def _both(index: Tensor, layer: Any) -> Tensor:
    """Row numbers of a forked layer: those of the personalised half, then of the depersonalised."""
    return torch.cat([index, index + len(layer.keys) // 2]) if layer.get_seq_length() else index


# -- calls in parts --


def part_of(call: dict[str, Any], past: int, length: int, a: int, b: int) -> dict[str, Any]:
    """The arguments of a forward call for its tokens ``a`` to ``b`` only."""
    part = dict(call)
    for name in ("input_ids", "position_ids", "token_type_ids", "cache_position"):
        if part.get(name) is not None:
            part[name] = part[name][..., a:b]
    if part.get("inputs_embeds") is not None:
        part["inputs_embeds"] = part["inputs_embeds"][:, a:b]
    mask = part.get("attention_mask")
    if isinstance(mask, dict):
        part["attention_mask"] = {
            kind: _part_of_mask(m, part.get("past_key_values"), kind, length, a, b)
            for kind, m in mask.items()
        }
    else:
        part["attention_mask"] = _part_of_mask(
            mask, part.get("past_key_values"), None, length, a, b
        )
    return part


def _part_of_mask(mask: Any, cache: Any, kind: str | None, length: int, a: int, b: int) -> Any:
    if not isinstance(mask, Tensor):
        return mask
    if mask.dim() == 2:
        return mask[:, : mask.shape[1] - (length - b)]
    if cache is None:
        return mask
    # Explicit masks have a column for each key that the layers of their kind see in this call.
    alike = [i for i, s in enumerate(cache.is_sliding) if s == (kind == "sliding_attention")]
    n_keys = cache.get_mask_sizes(b - a, alike[0] if kind and alike else 0)[0]
    return mask[..., a:b, :n_keys] if b < length else mask[..., a:b, -n_keys:]
