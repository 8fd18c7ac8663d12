"""Whether rows of a model may share the keys and values of a prompt.

They may where attention reads what the cache gave, as it gave it. Some models do more in between:
they repeat or split values, or unfold them from something smaller that is cached.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from prefheads.attention import head_layout, input_device
from prefheads.fork import Pass, Plan
from prefheads.observer import AttentionFunction, layer_index, observing
from prefheads.shared import ReadOnly

_found: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def can_share(model: PreTrainedModel) -> bool:
    """Found by running the model on three tokens, once; remembered for its lifetime.

    Must be used inside :func:`prefheads.attention.intercept`.
    """
    if model not in _found:
        _found[model] = _same_when_shared(model)
    return _found[model]


class _Noting(ReadOnly):
    """Notes what it gives."""

    def __init__(self, filled: Cache) -> None:
        super().__init__(filled)
        self.given: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.given[layer_idx] = key_states, value_states
        return key_states, value_states


class _Comparing(Pass):
    """Compares what attention gets with what the cache gave."""

    def __init__(self, plan: Plan, n_keys: int, cache: _Noting) -> None:
        super().__init__(plan, n_keys, prompt=cache)
        self.cache, self.same = cache, True

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
        given = self.cache.given[layer_index(module)]
        self.same &= all(torch.equal(x, y) for x, y in zip((key, value), given, strict=True))
        return super().attend(inner, module, query, key, value, mask, kwargs)


@torch.no_grad()
def _same_when_shared(model: PreTrainedModel) -> bool:
    ids = torch.tensor([[0, 1, 0]], device=input_device(model))
    cache = DynamicCache(config=model.config)
    model(input_ids=ids[:, :2], past_key_values=cache, logits_to_keep=1)
    noting = _Noting(cache)
    unchanged = Plan(torch.ones(1, *head_layout(model).shape), 1, [], [], "head")
    comparing = _Comparing(unchanged, ids.shape[1], noting)
    try:
        with observing(comparing):
            shared = model(input_ids=ids[:, 2:], past_key_values=noting).logits.float()
    except Exception:  # whatever it is that does not fit, each row then has a prompt of its own
        return False
    stock = model(input_ids=ids[:, 2:], past_key_values=cache).logits
    # Not a test of precision: it is for models that look at the cache in other ways.
    slack = 1e-3 if stock.dtype == torch.float32 else 0.1
    gap = (shared - stock.float()).abs().max()
    return comparing.same and bool(gap <= slack * stock.float().abs().max())
