"""Context-aware decoding (CAD; Shi et al., 2023): the prompt with the profile against one without.

The second opinion is the same model's, on a shorter prompt. Its keys and values live in a cache
of their own, which follows the one of ``generate()`` through beams and taken back tokens.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from prefheads.errors import SteeringError
from prefheads.interventions.forward import Forward, ForwardCall, replaced_forward
from prefheads.interventions.intercept import intercept
from prefheads.interventions.layout import causal_model
from prefheads.steering.setting import Setting

_ROW_CHANGES = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")


@contextmanager
def context_contrast(
    model: PreTrainedModel,
    bare_ids: Tensor,
    bare_mask: Tensor,
    gamma: float = 0.5,
    *,
    plausibility: float | None = None,
) -> Iterator[None]:
    """Contrast whatever ``model`` generates inside the block with what it would say without the
    profile: ``(1 + gamma) * logits(with) - gamma * logits(without)``.

    Costs one more pass over the bare prompt, and one more a new token.

    Args:
        model: Any causal language model of transformers that uses its attention interface.
        bare_ids: ``(B, P')`` prompts without the profile, padded on the left. Row i belongs to row
            i of the batch that ``generate()`` gets, or one row to all of them.
        bare_mask: ``(B, P')``, 0 at padding.
        gamma: Strength (their alpha); 0 is exactly plain generation.
        plausibility: Rule out tokens less likely, with the profile, than this share of the
            likeliest one; theirs has no such rule.

    Raises:
        SteeringError: Prompts or strengths that make no sense, a call they do not fit, or a model
            that something acts on already.
        ModelError: The model cannot be handled.
    """
    model = causal_model(model)
    contrast = _ContextContrast(model, bare_ids, bare_mask, gamma, plausibility)
    if gamma == 0:
        yield
        return
    with intercept(model), replaced_forward(model, contrast.forward):
        try:
            yield
        finally:
            contrast.release()


@dataclass(frozen=True)
class _Side:
    """What goes along with a cache of ``generate()``: the cache of the bare prompt."""

    cache: Cache
    prompt: int  # tokens of the prompt with the profile


class _ContextContrast:
    def __init__(
        self,
        model: PreTrainedModel,
        bare_ids: Tensor,
        bare_mask: Tensor,
        gamma: float,
        plausibility: float | None,
    ) -> None:
        self.setting = Setting(mode="contrast", gamma=gamma, plausibility=plausibility)
        if bare_ids.dim() != 2 or bare_ids.is_floating_point() or bare_ids.shape != bare_mask.shape:
            raise SteeringError(
                f"bare_ids and bare_mask must be token ids and mask of one shape (B, P), not of "
                f"{tuple(bare_ids.shape)} and {tuple(bare_mask.shape)}"
            )
        real = bare_mask.bool()
        if not real.numel() or not real[:, -1].all() or (real[:, :-1] & ~real[:, 1:]).any():
            raise SteeringError("each bare prompt must end in the last column: pad on the left")
        self.model, self.ids, self.mask = model, bare_ids, bare_mask.long()
        self._sides: weakref.WeakKeyDictionary[Cache, _Side] = weakref.WeakKeyDictionary()

    def forward(self, forward: Forward, call: ForwardCall) -> Any:
        """The answer to a forward call: the model's, its predictions contrasted."""
        if call.cache is None and call.arguments.get("use_cache") is False:
            raise SteeringError("a contrast of prompts needs the cache; keep use_cache on")
        call.begin_cache(self.model)
        side = self._sides.get(call.cache)
        if side is not None and call.past < side.prompt:  # cut back into its prompt: a new start
            side = None
        if side is not None and call.length > call.predicting:
            raise SteeringError(
                "several tokens at once after the prompt: chunked prefill and further turns on one "
                "cache cannot be contrasted"
            )
        ids, mask = self._rows(call, side is None)
        out = forward(**call.arguments)
        generic = []
        if side is None:
            side, logits = self._begin(forward, call, ids, mask)
            generic.append(logits)
        new = call.past + call.length - max(call.past, side.prompt)
        if new > 0:
            generic.append(self._continue(forward, call, side, mask, new))
        other = torch.cat(generic, 1)
        before, logits = out.logits.split([out.logits.shape[1] - other.shape[1], other.shape[1]], 1)
        logits = self.setting.contrasted(logits, other)
        out.logits = torch.cat([before.to(logits.dtype), logits], 1)
        return out

    def release(self) -> None:
        """Let go of the caches that the contrast followed."""
        for cache in list(self._sides):
            for name in _ROW_CHANGES:
                del cache.__dict__[name]
        self._sides.clear()

    def _rows(self, call: ForwardCall, begins: bool) -> tuple[Tensor, Tensor]:
        """Bare prompts and mask for the rows of a call, repeated for beams as its rows are."""
        repeats, rest = divmod(call.n_rows, len(self.ids))
        groups = call.inputs[: repeats * len(self.ids)].unflatten(0, (len(self.ids), repeats))
        # Beams of one prompt are alike; a whole multiple of the batch by accident is not.
        if rest or (begins and len(self.ids) > 1 and (groups != groups[:, :1]).any()):
            raise SteeringError(
                f"a batch of {call.n_rows} does not fit {len(self.ids)} bare prompts; give one row "
                "for each prompt, or one for all"
            )
        ids, mask = self.ids.to(call.inputs.device), self.mask.to(call.inputs.device)
        return ids.repeat_interleave(repeats, 0), mask.repeat_interleave(repeats, 0)

    def _begin(
        self, forward: Forward, call: ForwardCall, ids: Tensor, mask: Tensor
    ) -> tuple[_Side, Tensor]:
        """Run the bare prompt; its cache goes along with the call's from now on."""
        prompt = call.past + call.length - call.predicting + 1
        side = _Side(DynamicCache(config=self.model.config), prompt)
        if any(getattr(layer, "record_past", False) for layer in call.cache.layers):
            side.cache.activate_past_recording()  # assisted generation will take tokens back
        logits = self._bare(forward, side, {"input_ids": ids}, mask)
        self._sides[call.cache] = side
        for name in _ROW_CHANGES:
            change = functools.partial(self._change_rows, weakref.ref(call.cache), name)
            setattr(call.cache, name, change)
        return side, logits[:, -1:]

    def _change_rows(self, reference: weakref.ref[Cache], name: str, *args: Any) -> None:
        cache = reference()
        assert cache is not None  # it is being called
        getattr(type(cache), name)(cache, *args)
        getattr(self._sides[cache].cache, name)(*args)

    def _continue(
        self, forward: Forward, call: ForwardCall, side: _Side, mask: Tensor, new: int
    ) -> Tensor:
        """Run the last ``new`` tokens of a call after the bare prompt."""
        n_bare, past = mask.shape[1], call.past + call.length - new - side.prompt
        excess = side.cache.get_seq_length() - n_bare - past
        if excess > 0:
            side.cache.crop(-excess)
        tokens = {
            name: call.arguments[name][:, -new:]
            for name in ("input_ids", "inputs_embeds")
            if call.arguments.get(name) is not None
        }
        whole = call.arguments.get("attention_mask")
        if isinstance(whole, Tensor) and whole.dim() == 2:
            after = whole[:, whole.shape[1] - past - new :].long()
        else:
            after = mask.new_ones((len(mask), past + new))
        return self._bare(forward, side, tokens, torch.cat([mask, after], 1), keep=new)

    @staticmethod
    def _bare(
        forward: Forward, side: _Side, tokens: dict[str, Tensor], mask: Tensor, keep: int = 1
    ) -> Tensor:
        length = next(iter(tokens.values())).shape[1]
        logits: Tensor = forward(
            **tokens,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0)[:, -length:],
            past_key_values=side.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits[:, -keep:]
