"""What branches of a model may share: a clean run's keys and values, and a cache's.

They may where a pass of the last tokens alone, on the keys and values that attention read for those
before, says what the whole text does. Some models do more in between: they keep other state from
token to token, or make a mask of all values.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from prefheads.interventions.branching import Pass
from prefheads.interventions.cache import is_known
from prefheads.interventions.hooks import AttentionFunction, Observer, layer_index, observing
from prefheads.interventions.intercept import HeadLayout, head_layout, input_device, positions
from prefheads.interventions.plan import Plan, Where
from prefheads.interventions.shared_prompt import Clean, NewOnly

N_TOKENS, N_LAST = 12, 2  # of the run that finds out


@dataclass(frozen=True)
class Sharing:
    """What branches may share.

    Attributes:
        clean: What attention read in a clean run.
        cache: What a cache holds, because attention reads what the cache gives, as it gives it.
        joins: Whether branches may leave in any layer; else all leave in the lowest, because layers
            hand on more than hidden states.
    """

    clean: bool
    cache: bool
    joins: bool


_found: weakref.WeakKeyDictionary[HeadLayout, Sharing] = weakref.WeakKeyDictionary()


def sharing_of(model: PreTrainedModel) -> Sharing:
    """Found by running the model on a few tokens, once; remembered for its lifetime.

    Must be used inside :func:`prefheads.interventions.intercept.intercept`.
    """
    layout = head_layout(model)
    if layout not in _found:
        _found[layout] = _find(model)
    return _found[layout]


class _Comparing(Pass):
    """Compares what attention gets with what the cache gave, and asked a mask for."""

    cache: NewOnly
    same = True
    masks_of_all = True

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
        given = self.cache.new[layer_index(module)]
        self.same &= all(
            x.shape == y.shape and torch.equal(x, y)
            for x, y in zip((key, value), given, strict=True)
        )
        # One made of the values that it was given, not of all, has too few columns.
        self.masks_of_all &= mask is None or mask.shape[-1] == N_TOKENS
        return super().attend(inner, module, query, key, value, mask, kwargs)


@torch.no_grad()
def _find(model: PreTrainedModel) -> Sharing:
    layout, start = head_layout(model), N_TOKENS - N_LAST
    last, slack = layout.shape[0] - 1, 1e-3 if model.dtype == torch.float32 else 0.1
    ids = torch.arange(N_TOKENS, device=input_device(model))[None]
    gains = torch.ones(3, *layout.shape)
    gains[1, :, ::2] = gains[2, last, ::2] = 0  # of half of the heads, in two branches
    at_once, apart = (Plan(gains, 1, [0, x], [0, 0], "head") for x in (0, last))

    def run(first: int, observer: Observer, **options: Any) -> Tensor:
        where = positions(model, first, N_TOKENS)
        with observing(observer):
            logits: Tensor = model(input_ids=ids[:, first:], **where, **options).logits
        return logits[:, start - first :].float()

    # Not a test of precision: it is for models that look at the text in other ways.
    def is_right(run: Callable[[], Tensor]) -> bool:
        try:
            found, seen = run(), torch.isfinite(whole)  # a model may rule tokens out
            gap = (found - whole)[seen].abs().max()
            return bool(gap <= slack * whole[seen].abs().max())
        except Exception:  # whatever it is that does not fit
            return False

    where = Where(start)
    whole = run(0, Pass(at_once, N_TOKENS, where=where), use_cache=False)
    joins = is_right(lambda: run(0, Pass(apart, N_TOKENS, where=where), use_cache=False))
    clean, cache = Clean(start), NewOnly(start, last + 1)
    run(0, clean, use_cache=False)
    branches = _Comparing(at_once, N_TOKENS, prompt=clean, entered=clean.inputs)
    branches.cache = cache
    right = is_right(lambda: run(start, branches, past_key_values=cache, use_cache=True))
    # What chooses among the keys of long texts does not show on a short one, but in its cache.
    known = is_known(DynamicCache(config=model.config), 0)
    clean_run = right and known and branches.masks_of_all
    return Sharing(clean_run, clean_run and branches.same, joins)
