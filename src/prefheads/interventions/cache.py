"""The KV cache of a forked generation: its forked layers hold the tokens of two branches.

Where the attention allows it, a layer holds the prompt's keys and values once for both branches,
and beside them those of each branch's new tokens (:class:`BranchedLayer`). Elsewhere (sliding
windows, static caches, attention other than sdpa, a prompt that is itself steered) it holds twice
the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache as remembered
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from prefheads.errors import SteeringError
from prefheads.interventions.hooks import AttentionCall

LEAST_ROOM, ROOM = 16, 128  # tokens to come that there is room for
# Layers that keep keys and values and nothing else.
FORKABLE = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer)

New = Mapping[int, tuple[Tensor, Tensor]]


def can_fork(cache: Cache | None, first: int) -> bool:
    """Whether the layers from ``first`` on, those to come too, can be forked when they are
    filled."""
    if cache is None:
        return True
    layers: list[Any] = cache.layers
    grown = cache.layer_class_to_replicate  # of layers that a lazily built cache adds
    return grown in (None, *FORKABLE) and all(type(layer) in FORKABLE for layer in layers[first:])


def fork_cache(
    cache: Cache, first: int, n_rows: int, *, share: bool, new: New | None = None
) -> None:
    """Fork the layers from ``first`` on, which hold ``n_rows`` rows. What reorders rows, such as
    beam search, acts on both branches from then on.

    Args:
        share: Hold the prompt once where the layer can.
        new: Keys and values ``(n_rows, kv_heads, n, d)`` of each layer that replace the last ones
            held in the second branch; the branches are alike if None.
    """
    layers: list[Any] = cache.layers
    offloading = getattr(cache, "offloading", False)  # which moves keys and values, nothing else
    for i, layer in enumerate(layers[first:], first):
        if _is_forked(layer):
            continue
        own = None if new is None else new[i]
        filled = bool(layer.get_seq_length() > 0)
        if filled and type(layer) not in FORKABLE:
            raise SteeringError(
                f"a contrast cannot fork a filled {type(layer).__name__}; give the call a fresh "
                "cache"
            )
        if type(layer) is DynamicLayer and filled and share and not offloading:
            layers[i] = BranchedLayer(layer, own)
            continue
        if layer.is_initialized and len(layer.keys) == n_rows:
            _double_rows(layer, own)
        kind: Any = type(layer)
        layer.__class__ = _doubled(kind)


def _double_rows(layer: Any, own: tuple[Tensor, Tensor] | None) -> None:
    """Let a layer hold the rows of both branches."""
    end = min(layer.keys.shape[2], int(layer.get_seq_length()))  # a static one has room after it
    for name, rows in zip(("keys", "values"), own or (None, None), strict=True):
        held = getattr(layer, name)
        branch = held
        if rows is not None:
            n = min(rows.shape[2], end)
            branch = held.clone()
            branch[:, :, end - n : end] = rows[:, :, rows.shape[2] - n :]
        both = torch.cat([held, branch])
        if layer.is_compileable:  # as transformers does; without the hint, graphs copy it
            torch._dynamo.mark_static_address(both)
        setattr(layer, name, both)


@remembered
def _doubled(stock: Any) -> Any:
    """A class for layers of the class ``stock`` that hold the rows of two branches."""

    class Doubled(stock):  # type: ignore[misc]  # of any class of layers
        _layer_type = None  # else transformers would put it in the place of the stock one
        is_doubled = True

        def update(self: Any, key_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.is_initialized and self.keys is not None and self.keys.numel():
                _require_rows(key_states, self.keys)
            return super().update(key_states, *args, **kwargs)

        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(self._rows(beam_idx))

        def batch_select_indices(self, indices: Tensor) -> None:
            super().batch_select_indices(self._rows(indices))

        def _rows(self: Any, index: Tensor) -> Tensor:
            """Row numbers of the personalised half, then of the depersonalised."""
            states = (x for x in vars(self).values() if isinstance(x, Tensor))
            n = next((len(x) for x in states if x.dim() >= 3 and x.numel()), 0) // 2
            return torch.cat([index, index + n]) if n else index

    Doubled.__name__ = Doubled.__qualname__ = f"Doubled{stock.__name__}"
    return Doubled


def is_forked(cache: Cache) -> bool:
    """Whether a cache has been forked."""
    return any(_is_forked(layer) for layer in getattr(cache, "layers", ()))


def _is_forked(layer: Any) -> bool:
    return isinstance(layer, BranchedLayer) or getattr(layer, "is_doubled", False)


class BranchedLayer(DynamicLayer):
    """Keys and values of a prompt, and of the new tokens of two branches that go on from it
    ``(2 B, kv_heads, n_new, d)``, the first branch first. ``new``: those of the prompt's last
    tokens in the second branch."""

    keys: Tensor  # of the prompt, (B, kv_heads, n, d)
    values: Tensor

    def __init__(self, prompt: DynamicLayer, new: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers does not annotate it
        self.dtype, self.device = prompt.dtype, prompt.device
        assert prompt.keys is not None and prompt.values is not None
        self.keys, self.values = prompt.keys, prompt.values
        self.is_initialized = True
        n = prompt.keys.shape[2] - (0 if new is None else new[0].shape[2])
        own = new or (self.keys[:, :, n:], self.values[:, :, n:])
        self.own_keys, self.own_values = (
            torch.cat([held[:, :, n:], branch])
            for held, branch in zip((self.keys, self.values), own, strict=True)
        )
        self.keys, self.values = self.keys[:, :, :n], self.values[:, :, :n]
        self._rooms = self.own_keys, self.own_values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add tokens of both branches; returns all tokens of both, without the prompt."""
        _require_rows(key_states, self.own_keys)
        self.own_keys, keys = _grown(self.own_keys, key_states, self._rooms[0])
        self.own_values, values = _grown(self.own_values, value_states, self._rooms[1])
        self._rooms = keys, values
        return self.own_keys, self.own_values

    def get_seq_length(self) -> int:
        """Tokens of a branch, the prompt's included."""
        return int(self.keys.shape[2] + self.own_keys.shape[2])

    def reset(self) -> None:
        """Forget the new tokens and the prompt, but not the rows."""
        self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]
        self.own_keys, self.own_values = self.own_keys[:, :, :0], self.own_values[:, :, :0]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; a positive number is that of those left."""
        removes = tokens_to_remove <= 0
        left = self.get_seq_length() + tokens_to_remove if removes else tokens_to_remove
        own = max(0, left - self.keys.shape[2])
        self.keys, self.values = self.keys[:, :, :left], self.values[:, :, :left]
        self.own_keys, self.own_values = self.own_keys[:, :, :own], self.own_values[:, :, :own]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows of the prompt, and of both branches."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the prompt, and of both branches."""
        indices = indices.to(self.keys.device)
        both = torch.cat([indices, indices + len(self.keys)])
        self.keys, self.values = self.keys[indices], self.values[indices]
        self.own_keys, self.own_values = self.own_keys[both], self.own_values[both]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the prompt, and of both branches."""
        for name in ("keys", "values", "own_keys", "own_values"):
            setattr(self, name, getattr(self, name).repeat_interleave(repeats, 0))


class CachedPrompt:
    """The prompt of a forked cache, a
    :class:`prefheads.interventions.shared_prompt.SharedPrompt` of both branches."""

    per_row = True

    def __init__(self, cache: Cache) -> None:
        self.layers: list[Any] = cache.layers

    def prompt_kv(self, call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the prompt in a layer; None where both branches hold all of theirs."""
        layer = self.layers[call.layer] if call.layer < len(self.layers) else None
        return (layer.keys, layer.values) if isinstance(layer, BranchedLayer) else None

    def mask(self, call: AttentionCall) -> Tensor | None:
        """The mask that the model made."""
        return call.mask


def _grown(held: Tensor, new: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens, a view of the room; and the room, made where there is none."""
    with_gradients = torch.is_grad_enabled() and (held.requires_grad or new.requires_grad)
    # Nor can a tensor of an inference mode that has ended be written into.
    if with_gradients or (held.is_inference() and not torch.is_inference_mode_enabled()):
        both = torch.cat([held, new], 2)
        return both, both
    n, end = held.shape[2], held.shape[2] + new.shape[2]
    fits = room.data_ptr() == held.data_ptr() and room.shape[:2] == held.shape[:2]
    if not fits or room.shape[2] < end:
        # No more than there is already, so that it costs little where texts are short.
        room = held.new_empty(*held.shape[:2], end + min(ROOM, max(LEAST_ROOM, end)), held.shape[3])
        room[:, :, :n] = held
    room.narrow(2, n, end - n).copy_(new)
    return room.narrow(2, 0, end), room


def _require_rows(new: Tensor, held: Tensor) -> None:
    if len(new) != len(held):
        raise SteeringError(
            f"{len(new)} rows for a cache that steering has forked into {len(held)}; give the "
            "call a fresh cache"
        )
