"""What a steered model answers to a forward call.

1. Where the call is steered: in a generation from the last prompt token on, which its arguments
   tell; in other calls where the user says (:func:`prefheads.response_from`).
2. Amplification runs the call as it is, with gains at these positions.
3. A contrast that begins in the middle of a call, at the last token of a prompt, runs the call once
   as it is, and its last tokens once more with both branches, on what attention read of the others
   (:class:`prefheads.interventions.shared_prompt.Clean`). The cache is forked then.
4. Other calls run with both branches (:mod:`prefheads.interventions.branching`): steps, prompts
that are steered
   themselves, and those of models that keep other state than keys and values.
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
from prefheads.interventions.branching import Pass, Step
from prefheads.interventions.cache import Forked, fork_cache, is_forked, is_known
from prefheads.interventions.forward import Call, Forward, skipped
from prefheads.interventions.hooks import observing, set_step
from prefheads.interventions.intercept import HeadLayout, attention_backend
from prefheads.interventions.masks import MASKABLE
from prefheads.interventions.plan import ALL, Plan, Where
from prefheads.interventions.probes import Sharing, sharing_of
from prefheads.interventions.shared_prompt import Clean, NewOnly
from prefheads.steering import response
from prefheads.steering.response import Response
from prefheads.steering.setting import Steering


class SteeredForward:
    """The calls of a model in a block of :func:`prefheads.steer`.

    To be made and used inside :func:`prefheads.interventions.intercept.intercept`.
    """

    def __init__(self, model: PreTrainedModel, layout: HeadLayout, steering: Steering) -> None:
        self.model, self.layout = model, layout
        self.steering, self.setting = steering, steering.setting
        self.sharing = Sharing(clean=False, cache=False, joins=False)
        splits = self.setting.mode == "contrast" and self.setting.scope == "response"
        if splits and attention_backend(model) in MASKABLE:
            self.sharing = sharing_of(model)
        self._steps: dict[int, Step] = {}
        self._begun: weakref.WeakSet[Any] = weakref.WeakSet()  # caches of steered texts

    def answer(self, forward: Forward, call: Call) -> Any:
        """The answer to a forward call of the model under this steering."""
        set_step(self.layout.modules, None)  # of a step that failed
        if call.generation is None and self.steering.batch not in (1, call.n_rows):
            raise SteeringError(
                f"a batch of {call.n_rows} does not fit steering for {self.steering.batch} users"
            )
        where = self._where(call)
        if where.start >= call.length:  # a part of the prompt
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
        columns = self._profile(call, where if begins or cache is None else None)
        if self.setting.mode == "amplify":
            with observing(Pass(plan, call.past + call.length, columns, where=where)):
                out = forward(**call.arguments)
        else:
            if begins or cache is None:
                _require_one_adapter(self.model)
            if where.start > 0 and self._may_fork(call):
                out = self._branch_off(forward, call, where, plan, columns)
            elif call.shows_more and not call.past and is_known(cache, plan.first):
                out = self._run_twice(forward, call, where, plan, columns)
            else:
                out = self._branch(forward, call, where, plan, columns)
        if cache is not None:
            self._begun.add(cache)
        return out

    def _may_fork(self, call: Call) -> bool:
        """Whether both branches may go on from a call that ran as it is."""
        return self.sharing.clean and is_known(call.cache, self._plan(call).first)

    def _plan(self, call: Call) -> Plan:
        # Steps on a static cache may be compiled: all maps fork at the bottom, as one graph.
        bottom = call.cache is not None and bool(call.cache.is_compileable)
        return self.steering.plan(call.n_rows, bottom=bottom)

    def _branch_off(
        self, forward: Forward, call: Call, where: Where, plan: Plan, columns: Tensor | None
    ) -> Any:
        n, start = call.n_rows, where.start
        clean = Clean(start, call.past, plan.first, apart=True)
        with observing(clean):
            out = forward(**call.arguments)
        rows = None if where.of_rows is None else where.of_rows - start
        branches = Pass(plan, call.past + call.length, columns, clean, clean.inputs, Where(0, rows))
        new = NewOnly(call.past + start, self.layout.shape[0])
        with observing(branches), skipped(self.layout, plan.first):
            last = forward(**call.last(start, new)).logits
        if call.cache is not None:
            own = {i: (keys[n:], values[n:]) for i, (keys, values) in new.new.items()}
            fork_cache(call.cache, plan.first, n, share=self._shares(call.cache), new=own)
        before = out.logits[:, : out.logits.shape[1] - last.shape[1]]
        logits = self.steering.combine(last, n, Where(0, rows), call.length - start)
        out.logits = torch.cat([before.to(logits.dtype), logits], 1)
        return out

    def _branch(
        self, forward: Forward, call: Call, where: Where, plan: Plan, columns: Tensor | None
    ) -> Any:
        n, cache, prompts = call.n_rows, call.cache, None
        if cache is not None:
            if cache not in self._begun:
                fork_cache(cache, plan.first, n, share=self._shares(cache))
            prompts = Forked(cache)
        with observing(Pass(plan, call.past + call.length, columns, prompts, where=where)):
            out = forward(**call.arguments)
        if cache is not None:  # layers that a lazily built one has now
            fork_cache(cache, plan.first, n, share=False)
        out.logits = self.steering.combine(out.logits, n, where, call.length)
        return _personalised(out, n)

    def _run_twice(
        self, forward: Forward, call: Call, where: Where, plan: Plan, columns: Tensor | None
    ) -> Any:
        """A prompt with pictures, once for each branch: a model may add them to hidden states
        between layers, where it knows of no other rows than its own."""
        n, cache = call.n_rows, call.cache
        generic = Pass(
            Plan(plan.gains[n:], n, [], [], self.setting.target),
            call.length,
            columns,
            where=where,
        )
        other = copy.deepcopy(cache)
        out = forward(**call.arguments)
        with observing(generic):
            logits = forward(**call.arguments | {"past_key_values": other}).logits
        if cache is not None:
            end = call.length
            new = {
                i: (layer.keys[:, :, :end], layer.values[:, :, :end])
                for i, layer in enumerate(other.layers)
            }
            fork_cache(cache, plan.first, n, share=False, new=new)
        both = torch.cat([out.logits, logits])
        out.logits = self.steering.combine(both, n, where, call.length)
        return out

    def begin_step(self, call: Call) -> bool:
        """Whether a call is a step that a graph may run: one token a row after others, static."""
        n, cache = call.n_rows, call.cache
        static = cache is not None and cache in self._begun and cache.is_compileable
        if not static or call.length > 1 or self.setting.target == "profile":
            return False
        if n not in self._steps:
            self._steps[n] = Step(self.steering.plan(n, bottom=True), self.layout)
        set_step(self.layout.modules, self._steps[n])
        return True

    def end_step(self, call: Call, out: Any) -> Any:
        """The steered output, from the logits of all rows."""
        set_step(self.layout.modules, None)
        if self.setting.mode == "amplify":
            return out
        out.logits = self.steering.combine(out.logits, call.n_rows)
        return _personalised(out, call.n_rows)

    def _where(self, call: Call) -> Where:
        """Where in this call gains act."""
        begun = call.cache is not None and call.cache in self._begun
        if self.setting.scope == "all":
            if call.past and not begun:
                raise SteeringError(
                    "scope='all' acts on the prompt too, but this cache holds one encoded "
                    "without it"
                )
            return ALL
        told, generation = response.current.get(), call.generation
        if told is not None and generation is None:
            return _told(told, call)
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
        return Where(start)

    def _shares(self, cache: Any) -> bool:
        """Whether both branches may read one copy of the prompt's keys and values."""
        offloading = getattr(cache, "offloading", False)
        plain = attention_backend(self.model) == "sdpa" and not torch.is_grad_enabled()
        return self.sharing.cache and plain and not offloading

    def _profile(self, call: Call, where: Where | None) -> Tensor | None:
        """The profile's tokens among all keys ``(n, past + length)``.

        Args:
            where: Of a call that begins, whose prompt the mask must cover.
        """
        if self.setting.target != "profile":
            return None
        told, length = response.current.get(), call.past + call.length
        own = None if told is None else told.profile_mask
        mask = self.steering.profile_mask if own is None else torch.atleast_2d(own).bool()
        if mask is None:
            raise SteeringError(
                "target='profile' needs profile_mask, the profile's tokens in the prompt"
            )
        known = None if call.generation is None else call.generation.n_prompt
        begins = where is not None and self.setting.scope == "response"
        least = call.past + where.start + 1 if where is not None and begins else 0
        if not least <= mask.shape[1] <= max(length, known or 0):
            raise SteeringError(
                f"profile_mask covers {mask.shape[1]} tokens, but the prompt has "
                f"{known or least or length}"
            )
        rows = self.steering.rows(mask.to(call.inputs.device), call.n_rows)[:, :length]
        return torch.nn.functional.pad(rows, (0, length - rows.shape[1]))


def _told(told: Response, call: Call) -> Where:
    if isinstance(told.n_prompt, int):
        return Where(max(0, told.n_prompt - 1 - call.past))
    if len(told.n_prompt) != call.n_rows:
        raise SteeringError(
            f"a batch of {call.n_rows}, but {len(told.n_prompt)} places where responses begin"
        )
    starts = (told.n_prompt - 1 - call.past).clamp_min(0)
    return Where(int(starts.min()), starts)


def _personalised(out: Any, n: int) -> Any:
    """An output whose hidden states and attentions are those of the personalised rows alone."""
    for name in ("hidden_states", "attentions"):
        if out.get(name) is not None:
            out[name] = tuple(None if x is None else x[:n] for x in out[name])
    return out


def _require_one_adapter(model: PreTrainedModel) -> None:
    """Refuse PEFT's ``adapter_names``, one a row, which know nothing of the second branch."""
    given = [
        (module, key)
        for module in model.modules()
        for key, hook in module._forward_pre_hooks.items()
        if isinstance(hook, functools.partial) and "adapter_names" in hook.keywords
    ]
    for module, key in given:  # PEFT would leave them there after an error
        del module._forward_pre_hooks[key], module._forward_pre_hooks_with_kwargs[key]
    if given:
        raise SteeringError(
            "adapter_names, one a row, cannot be contrasted; use mode='amplify', or one adapter"
        )
