"""What a steered model answers to a forward call.

1. Find the positions that are steered: in a generation from the last prompt token on, which its
   arguments tell; in other calls where the user says (:func:`prefheads.response_from`).
2. Amplification runs the call once, with gains at these positions.
3. A contrast that begins in the middle of a call, at the last token of a prompt, makes a clean run
   of the call and records the prompt
   (:class:`prefheads.interventions.shared_prompt.RecordedPrompt`). The last tokens run once more,
   with both branches on the recorded prompt, and the cache is forked.
4. Other calls run with both branches (:mod:`prefheads.interventions.branching`): steps, prompts
   that are steered themselves, and those of models that keep more state than keys and values.
"""

from __future__ import annotations

import copy
import functools
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.errors import SteeringError
from prefheads.interventions.branching import BranchedForward, CompiledStep
from prefheads.interventions.cache import CachedPrompt, can_fork, fork_cache, is_forked
from prefheads.interventions.forward import Forward, ForwardCall
from prefheads.interventions.hooks import attention_backend, forward_hooks, hooked, set_step_hook
from prefheads.interventions.intercept import MASKABLE
from prefheads.interventions.layout import HeadLayout
from prefheads.interventions.plan import (
    ALL_POSITIONS,
    ActivePositions,
    BranchPlan,
    without_branches,
)
from prefheads.interventions.probes import Sharing, sharing_of
from prefheads.interventions.shared_prompt import RecordedPrompt
from prefheads.steering import response
from prefheads.steering.response import Response
from prefheads.steering.setting import Steering


class SteeredForward:
    """Answers the calls of a model in a block of :func:`prefheads.steer`."""

    def __init__(self, model: PreTrainedModel, layout: HeadLayout, steering: Steering) -> None:
        self.model, self.layout = model, layout
        self.steering, self.setting = steering, steering.setting
        self.sharing = Sharing(recorded=False, cached=False, any_layer=False)
        splits = self.setting.mode == "contrast" and self.setting.scope == "response"
        if splits and attention_backend(model) in MASKABLE:
            self.sharing = sharing_of(model)
        self._steps: dict[int, CompiledStep] = {}
        self._begun: weakref.WeakSet[Any] = weakref.WeakSet()  # caches of steered texts

    def answer(self, forward: Forward, call: ForwardCall) -> Any:
        """The answer to a forward call of the model under this steering."""
        set_step_hook(self.layout.modules, None)  # of a step that failed
        if call.generation is None and self.steering.batch not in (1, call.n_rows):
            raise SteeringError(
                f"a batch of {call.n_rows} does not fit steering for {self.steering.batch} users"
            )
        active = self._active(call)
        if active.start >= call.length:  # a part of the prompt
            if self.setting.mode == "contrast" and not self._may_fork(call):
                raise SteeringError(
                    "a contrast of this model, or on this cache, needs the prompt in one call: no "
                    "chunked prefill"
                )
            return forward(**call.arguments)
        call.begin_cache(self.model)
        cache, plan = call.cache, self._plan(call)
        begins = cache is not None and cache not in self._begun
        if begins and is_forked(cache):
            raise SteeringError(
                "this cache was forked by another steering; give the call a new one"
            )
        if self.setting.mode == "contrast" and cache is not None and not hasattr(cache, "layers"):
            raise SteeringError(
                f"a contrast cannot fork a {type(cache).__name__}; use a DynamicCache"
            )
        profile = self._profile(call, active if begins or cache is None else None)
        rows = BranchedForward(plan, call.past + call.length, profile, active=active)
        if self.setting.mode == "amplify":
            with hooked(rows):
                out = forward(**call.arguments)
        else:
            if begins or cache is None:
                _require_one_adapter(self.model)
            if active.start > 0 and self._may_fork(call):
                out = self._branch_late(forward, call, rows)
            elif call.has_more_than_text and not call.past and can_fork(cache, plan.first):
                out = self._run_twice(forward, call, rows)
            else:
                out = self._branch(forward, call, rows)
        if cache is not None:
            self._begun.add(cache)
        return out

    def _may_fork(self, call: ForwardCall) -> bool:
        """Whether both branches may go on from a clean run of the call."""
        return self.sharing.recorded and can_fork(call.cache, self._plan(call).first)

    def _plan(self, call: ForwardCall) -> BranchPlan:
        # Steps on a static cache may be compiled: all maps fork at the bottom, as one graph.
        bottom = call.cache is not None and bool(call.cache.is_compileable)
        return self.steering.plan(call.n_rows, bottom=bottom)

    def _branch_late(self, forward: Forward, call: ForwardCall, rows: BranchedForward) -> Any:
        """A clean run of the call, whose last tokens run once more with both branches."""
        n, start, plan = call.n_rows, rows.active.start, rows.plan
        prompt = RecordedPrompt(start, call.past, plan.first, per_row=True)
        with hooked(prompt):
            out = forward(**call.arguments)
        active = rows.active.after(start)
        branches = BranchedForward(
            plan, rows.n_keys, rows.profile, prompt, prompt.layer_inputs, active
        )
        new = prompt.cache(self.layout.shape[0])
        with branches.running(self.layout):
            last = forward(**call.tail(start, new)).logits
        if call.cache is not None:
            own = {i: (keys[n:], values[n:]) for i, (keys, values) in new.new.items()}
            fork_cache(call.cache, plan.first, n, share=self._shares(call.cache), new=own)
        before = out.logits[:, : out.logits.shape[1] - last.shape[1]]
        logits = self.steering.combine(last, n, active, call.length - start)
        out.logits = torch.cat([before.to(logits.dtype), logits], 1)
        return out

    def _branch(self, forward: Forward, call: ForwardCall, rows: BranchedForward) -> Any:
        """The call with both branches."""
        n, cache, first = call.n_rows, call.cache, rows.plan.first
        if cache is not None:
            if cache not in self._begun:
                fork_cache(cache, first, n, share=self._shares(cache))
            rows.prompt = CachedPrompt(cache)
        with hooked(rows):
            out = forward(**call.arguments)
        if cache is not None:  # layers that a lazily built one has now
            fork_cache(cache, first, n, share=False)
        out.logits = self.steering.combine(out.logits, n, rows.active, call.length)
        return _personalised(out, n)

    def _run_twice(self, forward: Forward, call: ForwardCall, rows: BranchedForward) -> Any:
        """A prompt with pictures, once for each branch: a model may add them to hidden states
        between layers, where it knows of no other rows than its own."""
        n, cache = call.n_rows, call.cache
        alone = without_branches(rows.plan.gains[n:], self.setting.target)
        generic = BranchedForward(alone, rows.n_keys, rows.profile, active=rows.active)
        other = copy.deepcopy(cache)
        out = forward(**call.arguments)
        with hooked(generic):
            logits = forward(**call.arguments | {"past_key_values": other}).logits
        if cache is not None:
            end = call.length
            new = {
                i: (layer.keys[:, :, :end], layer.values[:, :, :end])
                for i, layer in enumerate(other.layers)
            }
            fork_cache(cache, rows.plan.first, n, share=False, new=new)
        both = torch.cat([out.logits, logits])
        out.logits = self.steering.combine(both, n, rows.active, call.length)
        return out

    def begin_step(self, call: ForwardCall) -> bool:
        """Prepare for a call if a graph may run it: one new token a row, on a static cache."""
        n, cache = call.n_rows, call.cache
        static = cache is not None and cache in self._begun and cache.is_compileable
        if not static or call.length > 1 or self.setting.target == "profile":
            return False
        if n not in self._steps:
            self._steps[n] = CompiledStep(self.steering.plan(n, bottom=True), self.layout)
        set_step_hook(self.layout.modules, self._steps[n])
        return True

    def end_step(self, call: ForwardCall, out: Any) -> Any:
        """The steered output, from the logits of all rows."""
        set_step_hook(self.layout.modules, None)
        if self.setting.mode == "amplify":
            return out
        out.logits = self.steering.combine(out.logits, call.n_rows)
        return _personalised(out, call.n_rows)

    def _active(self, call: ForwardCall) -> ActivePositions:
        """The positions of this call at which gains act."""
        begun = call.cache is not None and call.cache in self._begun
        if self.setting.scope == "all":
            if call.past and not begun:
                raise SteeringError(
                    "scope='all' acts on the prompt too, but this cache holds one encoded "
                    "without it"
                )
            return ALL_POSITIONS
        stated, generation = response.current.get(), call.generation
        if stated is not None and generation is None:
            return _stated_positions(stated, call)
        if generation is not None and generation.n_prompt is not None:
            # Also where a model begins again in the middle, with a new cache or without any.
            start = max(0, generation.n_prompt - 1 - call.past)
        elif generation is not None and call.arguments.get("use_cache") is False:
            raise SteeringError(
                "without a cache it is not known where the prompt ends; keep use_cache on, or give "
                "generate() the prompt's tokens"
            )
        elif begun or generation is not None or call.keep or call.length == 1:
            start = call.length - call.predicting
        else:
            raise SteeringError(
                "it is not known where the response begins in this call: say so (with "
                "prefheads.response_from(n_prompt): ...), ask for the logits that predict it alone "
                "(logits_to_keep), or steer with scope='all'"
            )
        if begun and start:
            raise SteeringError(
                "several tokens at once after steered ones: further turns on one cache need "
                "scope='all'"
            )
        return ActivePositions(start)

    def _shares(self, cache: Any) -> bool:
        """Whether both branches may read one copy of the prompt's keys and values."""
        offloading = getattr(cache, "offloading", False)
        plain = attention_backend(self.model) == "sdpa" and not torch.is_grad_enabled()
        return self.sharing.cached and plain and not offloading

    def _profile(self, call: ForwardCall, active: ActivePositions | None) -> Tensor | None:
        """The profile's tokens among all keys ``(n, past + length)``; ``active`` is of a call that
        begins a text, whose prompt the mask must cover."""
        if self.setting.target != "profile":
            return None
        stated, length = response.current.get(), call.past + call.length
        own = None if stated is None else stated.profile_mask
        mask = self.steering.profile_mask if own is None else torch.atleast_2d(own).bool()
        if mask is None:
            raise SteeringError(
                "target='profile' needs profile_mask, the profile's tokens in the prompt"
            )
        known = None if call.generation is None else call.generation.n_prompt
        least = 0
        if active is not None and self.setting.scope == "response":
            least = call.past + active.start + 1
        if not least <= mask.shape[1] <= max(length, known or 0):
            raise SteeringError(
                f"profile_mask covers {mask.shape[1]} tokens, but the prompt has "
                f"{known or least or length}"
            )
        rows = self.steering.rows(mask.to(call.inputs.device), call.n_rows)[:, :length]
        return torch.nn.functional.pad(rows, (0, length - rows.shape[1]))


def _stated_positions(stated: Response, call: ForwardCall) -> ActivePositions:
    """The positions that predict a response, where the user says so."""
    if isinstance(stated.n_prompt, int):
        return ActivePositions(max(0, stated.n_prompt - 1 - call.past))
    if len(stated.n_prompt) != call.n_rows:
        raise SteeringError(
            f"a batch of {call.n_rows}, but {len(stated.n_prompt)} places where responses begin"
        )
    starts = (stated.n_prompt - 1 - call.past).clamp_min(0)
    return ActivePositions(int(starts.min()), starts)


def _personalised(out: Any, n: int) -> Any:
    """An output whose hidden states and attentions are those of the personalised rows alone."""
    for name in ("hidden_states", "attentions"):
        if out.get(name) is not None:
            out[name] = tuple(None if x is None else x[:n] for x in out[name])
    return out


def _require_one_adapter(model: PreTrainedModel) -> None:
    """Refuse PEFT's ``adapter_names``, one for each row, which do not cover the second branch."""
    given = [
        (module, key)
        for module in model.modules()
        for key, hook in forward_hooks(module).items()
        if isinstance(hook, functools.partial) and "adapter_names" in hook.keywords
    ]
    for module, key in given:  # PEFT would leave them there after an error
        module._forward_pre_hooks.pop(key, None)
        getattr(module, "_forward_pre_hooks_with_kwargs", {}).pop(key, None)
    if given:
        raise SteeringError(
            "adapter_names, one a row, cannot be contrasted; use mode='amplify', or one adapter"
        )
