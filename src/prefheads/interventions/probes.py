"""What the branches of a model may share: a prompt that a clean run recorded, or one in a cache.

They may where a pass of the last tokens alone, on the keys and values that attention read for those
before, gives what a pass of the whole text gives. Some models do more in between: they keep other
state from token to token, or make a mask of all values.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prefheads.interventions.branching import BranchedForward
from prefheads.interventions.cache import can_fork
from prefheads.interventions.hooks import AttentionCall, AttentionHook, AttentionOutput, hooked
from prefheads.interventions.intercept import head_layout
from prefheads.interventions.layout import HeadLayout, input_device, positions
from prefheads.interventions.plan import ActivePositions, BranchPlan
from prefheads.interventions.shared_prompt import NewTokensCache, RecordedPrompt

N_TOKENS, N_LAST = 12, 2  # of the probe


@dataclass(frozen=True)
class Sharing:
    """What the branches of a model may share."""

    recorded: bool  # the prompt of a clean run, as attention read it
    cached: bool  # the prompt in a cache: attention reads what the cache returns, as it returns it
    # Whether they may leave in any layer; otherwise all leave in the lowest, because layers pass
    # on more than hidden states.
    any_layer: bool


_found: weakref.WeakKeyDictionary[HeadLayout, Sharing] = weakref.WeakKeyDictionary()


def sharing_of(model: PreTrainedModel) -> Sharing:
    """Found by running an intercepted model on a few tokens, once; remembered for its lifetime."""
    layout = head_layout(model)
    if layout not in _found:
        _found[layout] = _find(model)
    return _found[layout]


class _Comparing(BranchedForward):
    """Compares what attention gets with what the cache returned, and looks at its masks."""

    cache: NewTokensCache
    same = True
    full_masks = True

    def attend(self, call: AttentionCall) -> AttentionOutput:
        given = self.cache.new[call.layer]
        self.same &= all(
            x.shape == y.shape and torch.equal(x, y)
            for x, y in zip((call.key, call.value), given, strict=True)
        )
        # A mask made of the values of this call alone has too few columns.
        self.full_masks &= call.mask is None or call.mask.shape[-1] == N_TOKENS
        return super().attend(call)


@torch.no_grad()
def _find(model: PreTrainedModel) -> Sharing:
    layout, start = head_layout(model), N_TOKENS - N_LAST
    last, slack = layout.shape[0] - 1, 1e-3 if model.dtype == torch.float32 else 0.1
    ids = torch.arange(N_TOKENS, device=input_device(model))[None]
    gains = torch.ones(3, *layout.shape)
    gains[1, :, ::2] = gains[2, last, ::2] = 0  # of half of the heads, in two branches
    together, later = (BranchPlan(gains, 1, [0, x], [0, 0], "head") for x in (0, last))

    def run(first: int, hook: AttentionHook, **options: Any) -> Tensor:
        places = positions(model, first, N_TOKENS)
        with hooked(hook):
            logits: Tensor = model(input_ids=ids[:, first:], **places, **options).logits
        return logits[:, start - first :].float()

    # Not a test of precision: it is for models that look at the text in other ways.
    def is_right(run: Callable[[], Tensor]) -> bool:
        try:
            found, seen = run(), torch.isfinite(whole)  # a model may rule tokens out
            gap = (found - whole)[seen].abs().max()
            return bool(gap <= slack * whole[seen].abs().max())
        except torch.OutOfMemoryError:  # says nothing of the model, and the answer is remembered
            raise
        except Exception:  # models refuse what does not fit them with errors of any kind
            return False

    def branched(plan: BranchPlan) -> BranchedForward:
        return BranchedForward(plan, N_TOKENS, active=ActivePositions(start))

    whole = run(0, branched(together), use_cache=False)
    any_layer = is_right(lambda: run(0, branched(later), use_cache=False))
    prompt = RecordedPrompt(start)
    cache = prompt.cache(last + 1)
    run(0, prompt, use_cache=False)
    branches = _Comparing(together, N_TOKENS, prompt=prompt, layer_inputs=prompt.layer_inputs)
    branches.cache = cache
    right = is_right(lambda: run(start, branches, past_key_values=cache, use_cache=True))
    # What chooses among the keys of long texts does not show on a short one, but in its cache.
    forkable = can_fork(DynamicCache(config=model.config), 0)
    recorded = right and forkable and branches.full_masks
    return Sharing(recorded, recorded and branches.same, any_layer)
