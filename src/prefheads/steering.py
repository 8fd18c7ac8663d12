"""steer(): generation with some heads suppressed in a second opinion, or amplified in the only one.

A context manager around stock ``model.generate()``. While it is active the model's ``forward``
runs the pass that :mod:`prefheads.fork` describes; ``generate`` itself, with its sampling, beams,
streamers and stopping, is transformers' own.

Where a contrast begins in the middle of a call, at the last token of a prompt, the call runs once
as it is, and its last tokens once more with both branches, on what attention read of the others
(:class:`prefheads.shared.Clean`); models that keep other state run all of it with both branches.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.attention import (
    HeadLayout,
    attention_backend,
    causal_model,
    head_layout,
    intercept,
    occupied,
)
from prefheads.branches import Forked, fork_cache, is_forked, is_known
from prefheads.contrast.combine import combine, entropy_strength, require_plausibility
from prefheads.errors import SteeringError
from prefheads.fork import ALL, Pass, Plan, Step, Target, Where
from prefheads.forward import Call, Forward, Generation, replaced_forward, skipped
from prefheads.heads import HeadWeights, fingerprint
from prefheads.linear import fast_steps
from prefheads.masks import MASKABLE, masked_backend
from prefheads.observer import observing, set_step
from prefheads.shared import Clean, NewOnly
from prefheads.sharing import Sharing, sharing_of

Mode = Literal["contrast", "amplify"]
Scope = Literal["response", "all"]
Schedule = Literal["constant", "entropy"]


class ScopeWarning(UserWarning):
    """Heads that were found for one scope steer in another."""


@dataclass(frozen=True)
class Response:
    """Where the response of a forward call begins.

    Attributes:
        n_prompt: Columns of the prompt; one number, or one a row ``(B,)``.
        profile_mask: ``(B, n_prompt)`` bool, or None for that of the steering.
    """

    n_prompt: int | Tensor
    profile_mask: Tensor | None = None


_response: ContextVar[Response | None] = ContextVar("prefheads_response", default=None)


@contextmanager
def response_from(
    n_prompt: int | Sequence[int] | Tensor, *, profile_mask: Tensor | None = None
) -> Iterator[None]:
    """Say where the response begins in forward calls of a steered model, which score it at once.

    With scope ``"response"`` the positions that predict it are steered, from the last prompt token
    on. ``generate()`` needs no such word, and no call of scope ``"all"`` does.

    Args:
        n_prompt: Tokens before the response, padding on the left included; one number for all rows,
            or one a row.
        profile_mask: The profile's tokens in these prompts ``(B, n_prompt)``, in place of those
            given to :func:`steer`.

    Raises:
        SteeringError: Less than one token.
    """
    columns = n_prompt if isinstance(n_prompt, int) else torch.as_tensor(n_prompt).reshape(-1)
    if (columns if isinstance(columns, int) else int(columns.min())) < 1:
        raise SteeringError("a response begins after at least one token of a prompt")
    token = _response.set(Response(columns, profile_mask))
    try:
        yield
    finally:
        _response.reset(token)


_active: weakref.WeakKeyDictionary[PreTrainedModel, Steering] = weakref.WeakKeyDictionary()


@contextmanager
def steer(
    model: PreTrainedModel,
    weights: HeadWeights | Tensor,
    gamma: float | Sequence[float] | Tensor,
    *,
    mode: Mode = "contrast",
    target: Target = "head",
    suppression: float = 1.0,
    scope: Scope = "response",
    profile_mask: Tensor | None = None,
    schedule: Schedule = "constant",
    cap: float | None = None,
    plausibility: float | None = None,
) -> Iterator[Steering]:
    """Steer whatever ``model`` generates or scores inside the block (paper, sections 4 and 5.3).

    Args:
        model: Any causal language model of transformers that uses its attention interface.
        weights: How strongly each head is suppressed (contrast) or amplified: ``(n_layers,
            n_heads)`` in [0, 1], or ``(B, n_layers, n_heads)`` for a batch of different users.
        gamma: Strength, one or ``(B,)``; 0 is exactly plain generation.
        mode: ``"contrast"``: ``(1 + gamma) * personalised - gamma * depersonalised`` logits (Eq.
            8), the latter from a second branch in which head gains are ``1 - suppression *
            weight``. ``"amplify"``: one branch with gains ``1 + gamma * weight``, at no extra cost.
        target: What a gain multiplies: ``"head"``, the head's output before the output projection;
            ``"profile"``, the head's unnormalised attention to the profile's tokens.
        suppression: How far contrast removes a head of weight 1, in [0, 1]; the paper's is 1.
        scope: ``"response"``: only positions that predict the response, from the last prompt token
            on; the prompt is encoded once and shared. ``"all"``: every position, the prompt's too.
        profile_mask: ``(n_prompt,)`` or ``(B, n_prompt)`` bool, the profile's tokens in the
            (padded) prompt, for target ``"profile"``; :func:`prefheads.encode` gives it.
        schedule: ``"constant"``, or ``"entropy"``: contrast times the entropy of the personalised
            distribution.
        cap: Upper bound of an entropy schedule.
        plausibility: Contrast rules out tokens less likely than this share of the likeliest one.

    Inside the block the model is in evaluation mode. A forward call outside of ``generate()`` is
    steered where it is known which of its positions predict the response: say it by
    :func:`response_from`, or ask for the logits of these positions alone (``logits_to_keep``).

    Raises:
        SteeringError: Weights, strengths or the call cannot be honoured, or the model is being
            steered already. The steering belongs to the model, whichever thread generates inside
            the block.
        ModelError: The model's heads cannot be reached.
    """
    model = causal_model(model)
    layout = head_layout(model)
    steering = Steering(
        model, layout, _as_map(weights, layout), gamma, mode, target, suppression, scope,
        profile_mask, schedule, cap, plausibility,
    )  # fmt: skip
    if isinstance(weights, HeadWeights):
        _require_fit(weights, model, scope)
    if steering.idle:
        with occupied(model):  # as one that acts would
            yield steering
        return
    backend = masked_backend(model) if target == "profile" else None
    branches = mode == "contrast"
    with intercept(model, backend, entries=branches):
        if branches and scope == "response" and attention_backend(model) in MASKABLE:
            steering.sharing = sharing_of(model)
        with (
            replaced_forward(model, steering.forward, steering, steering.admit),
            fast_steps(model),
        ):
            _active[model] = steering
            try:
                yield steering
            finally:
                _active.pop(model, None)
                set_step(layout.modules, None)


def _require_fit(weights: HeadWeights, model: PreTrainedModel, scope: Scope) -> None:
    info = weights.info
    if not info.fingerprint:
        return
    if info.fingerprint != fingerprint(model.config):
        raise SteeringError(
            f"these heads were found on {info.model_id or 'another model'}, not on "
            f"{model.config.name_or_path or 'this one'}; give their values to steer with them all "
            "the same"
        )
    if info.scope not in ("", scope):
        message = f"heads found with scope={info.scope!r} steer with scope={scope!r}"
        warnings.warn(message, ScopeWarning, stacklevel=4)


def active_steering(model: PreTrainedModel) -> Steering | None:
    """The steering that acts on a model now, if any."""
    return _active.get(model)


def _as_map(weights: HeadWeights | Tensor, layout: HeadLayout) -> Tensor:
    values = weights.values if isinstance(weights, HeadWeights) else torch.as_tensor(weights)
    values = values.detach().float()
    shape = tuple(values.shape)
    if values.dim() == 2:
        values = values[None]
    if values.dim() != 3 or values.shape[1:] != layout.shape or not len(values):
        raise SteeringError(
            f"weights of shape {shape} do not fit this model; expected (n_layers, n_heads) = "
            f"{layout.shape} or with a batch before it"
        )
    if not torch.isfinite(values).all():
        raise SteeringError("NaN or infinity in the weights")
    if values.min() < 0 or values.max() > 1:
        raise SteeringError("weights must lie in [0, 1]")
    return values


class Steering:
    """What :func:`steer` does to a model; made by it."""

    def __init__(
        self,
        model: PreTrainedModel,
        layout: HeadLayout,
        weights: Tensor,
        gamma: float | Sequence[float] | Tensor,
        mode: Mode,
        target: Target,
        suppression: float,
        scope: Scope,
        profile_mask: Tensor | None,
        schedule: Schedule,
        cap: float | None,
        plausibility: float | None,
    ) -> None:
        for name, value, allowed in (
            ("mode", mode, Mode), ("target", target, Target), ("scope", scope, Scope), ("schedule",
            schedule, Schedule)
        ):  # fmt: skip
            if value not in get_args(allowed):
                raise SteeringError(
                    f"unknown {name} {value!r}; choose from {', '.join(get_args(allowed))}"
                )
        self.gamma = torch.as_tensor(gamma, dtype=torch.float32).reshape(-1)
        if not torch.isfinite(self.gamma).all() or (self.gamma < 0).any():
            raise SteeringError("gamma must be a finite number of at least 0")
        if not 0 <= suppression <= 1:
            raise SteeringError("suppression must lie in [0, 1]")
        require_plausibility(plausibility)
        if cap is not None and (schedule != "entropy" or cap < 0):
            raise SteeringError("cap is a bound of at least 0, of schedule='entropy'")
        if mode == "amplify" and (schedule != "constant" or plausibility is not None):
            raise SteeringError("schedule and plausibility are for mode='contrast'")
        self.model, self.layout, self.weights = model, layout, weights
        self.mode, self.target, self.scope = mode, target, scope
        self.suppression = suppression
        self.profile_mask = None if profile_mask is None else torch.atleast_2d(profile_mask).bool()
        self.schedule, self.cap, self.plausibility = schedule, cap, plausibility
        sizes = {len(weights), len(self.gamma)} - {1}
        if len(sizes) > 1:
            raise SteeringError(
                f"{len(weights)} maps of weights but {len(self.gamma)} values of gamma"
            )
        self.batch = max(sizes, default=1)
        strength = suppression if mode == "contrast" else 1.0
        self.idle = not bool((weights.amax((1, 2)) * self.gamma * strength > 0).any())
        self.sharing = Sharing(clean=False, cache=False, joins=False)  # of both branches
        self._plans: dict[tuple[int, bool], Plan] = {}
        self._steps: dict[int, Step] = {}
        self._begun: weakref.WeakSet[Any] = weakref.WeakSet()

    def rows(self, per_user: Tensor, n: int) -> Tensor:
        """One row a user, repeated for beams as ``generate`` repeats its inputs."""
        if len(per_user) == 1:
            return per_user.expand(n, *per_user.shape[1:])
        if n % len(per_user):
            raise SteeringError(f"a batch of {n} does not fit steering for {len(per_user)} users")
        return per_user.repeat_interleave(n // len(per_user), 0)

    def plan(self, n: int, cache: Any = None) -> Plan:
        """Rows and gains for a batch of ``n``: amplified, or with ``n`` depersonalised branches."""
        # Steps on a static cache may be compiled: all maps fork at the bottom, as one graph.
        static = cache is not None and bool(cache.is_compileable)
        if (n, static) not in self._plans:
            weights, gamma = self.rows(self.weights, n), self.rows(self.gamma, n)
            if self.mode == "amplify":
                gains = 1 + gamma[:, None, None] * weights
                self._plans[n, static] = Plan(gains, n, [], [], self.target)
            else:
                gains = 1 - self.suppression * weights
                first = 0 if static else int((weights > 0).any(2).any(0).int().argmax())
                both = torch.cat([torch.ones_like(gains), gains])
                self._plans[n, static] = Plan(both, n, [first] * n, range(n), self.target)
        return self._plans[n, static]

    def admit(self, generation: Generation) -> None:
        """Refuse a run of ``generate()`` that is not for the users of this steering."""
        masks = 1 if self.profile_mask is None else len(self.profile_mask)
        for users in {self.batch, masks} - {1}:
            if generation.n_rows not in (None, users):
                raise SteeringError(
                    f"a batch of {generation.n_rows} does not fit steering for {users} users"
                )

    def forward(self, forward: Forward, call: Call) -> Any:
        """The answer to a forward call of the model under this steering."""
        set_step(self.layout.modules, None)  # of a step that failed
        if call.generation is None and self.batch not in (1, call.n_rows):
            raise SteeringError(
                f"a batch of {call.n_rows} does not fit steering for {self.batch} users"
            )
        where = self._where(call)
        if where.start >= call.length:  # a part of the prompt
            return forward(**call.arguments)
        call.begin_cache(self.model)
        cache, plan = call.cache, self.plan(call.n_rows, call.cache)
        begins = cache is not None and cache not in self._begun
        if begins and is_forked(cache):
            raise SteeringError(
                "this cache was forked by another steering; give the call a new one"
            )
        columns = self._profile(call, where if begins or cache is None else None)
        if self.mode == "amplify":
            with observing(Pass(plan, call.past + call.length, columns, where=where)):
                out = forward(**call.arguments)
        else:
            _require_one_adapter(self.model)
            branches = self._branch_off if self._splits(call, where, plan) else self._branch
            out = branches(forward, call, where, plan, columns)
        if cache is not None:
            self._begun.add(cache)
        return out

    def _splits(self, call: Call, where: Where, plan: Plan) -> bool:
        """Whether a call runs once as it is, and its last tokens once more with both branches."""
        return where.start > 0 and self.sharing.clean and is_known(call.cache, plan.first)

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
        logits = self._combine(last, n, Where(0, rows), call.length - start)
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
        out.logits = self._combine(out.logits, n, where, call.length)
        return _personalised(out, n)

    def begin_step(self, call: Call) -> bool:
        """Whether a call is a step that a graph may run: one token a row after others, static."""
        n, cache = call.n_rows, call.cache
        static = cache is not None and cache in self._begun and cache.is_compileable
        if not static or call.length > 1 or self.target != "head":
            return False
        if n not in self._steps:
            self._steps[n] = Step(self.plan(n, cache), self.layout)
        set_step(self.layout.modules, self._steps[n])
        return True

    def end_step(self, call: Call, out: Any) -> Any:
        """The steered output, from the logits of all rows."""
        set_step(self.layout.modules, None)
        out.logits = self._combine(out.logits, call.n_rows)
        return _personalised(out, call.n_rows) if self.mode == "contrast" else out

    def _where(self, call: Call) -> Where:
        """Where in this call gains act."""
        begun = call.cache is not None and call.cache in self._begun
        if self.scope == "all":
            if call.past and not begun:
                raise SteeringError(
                    "scope='all' acts on the prompt too, but this cache holds one encoded "
                    "without it"
                )
            return ALL
        response, generation = _response.get(), call.generation
        if response is not None:
            return self._told(response, call)
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

    def _told(self, response: Response, call: Call) -> Where:
        if isinstance(response.n_prompt, int):
            return Where(max(0, response.n_prompt - 1 - call.past))
        if len(response.n_prompt) != call.n_rows:
            raise SteeringError(
                f"a batch of {call.n_rows}, but {len(response.n_prompt)} places where responses "
                "begin"
            )
        starts = (response.n_prompt - 1 - call.past).clamp_min(0)
        return Where(int(starts.min()), starts)

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
        if self.target != "profile":
            return None
        response, length = _response.get(), call.past + call.length
        told = None if response is None else response.profile_mask
        mask = self.profile_mask if told is None else torch.atleast_2d(told).bool()
        if mask is None:
            raise SteeringError(
                "target='profile' needs profile_mask, the profile's tokens in the prompt"
            )
        known = None if call.generation is None else call.generation.n_prompt
        least = call.past + where.start + 1 if where is not None and self.scope != "all" else 0
        if not least <= mask.shape[1] <= max(length, known or 0):
            raise SteeringError(
                f"profile_mask covers {mask.shape[1]} tokens, but the prompt has "
                f"{known or least or length}"
            )
        rows = self.rows(mask.to(call.inputs.device), call.n_rows)[:, :length]
        return torch.nn.functional.pad(rows, (0, length - rows.shape[1]))

    def _combine(self, logits: Tensor, n: int, where: Where = ALL, length: int = 1) -> Tensor:
        """The steered logits of a call's last positions ``(n, kept, vocab)``.

        Args:
            logits: Of the rows of both branches, the last of ``length`` positions.
            where: Where the call is steered.
        """
        if self.mode == "amplify":
            return logits
        first = length - logits.shape[1]
        plain = max(0, where.start - first)
        before, logits = logits[:n, :plain], logits[:, plain:]
        personalised, generic = logits[:n], logits[n:]
        gamma = self.rows(self.gamma, n).to(logits.device)[:, None, None]
        active = self.rows(self.weights.amax((1, 2)) > 0, n).to(logits.device)[:, None, None]
        acts = where.active(first + plain, length, logits.device)
        if acts is not None:
            active = active & acts[:, :, None]
        if self.schedule == "entropy":
            gamma = entropy_strength(personalised, gamma, self.cap)
        steered = combine(
            personalised, generic, gamma, active=active, plausibility=self.plausibility
        )
        return torch.cat([before.to(steered.dtype), steered], 1) if plain else steered


def _personalised(out: Any, n: int) -> Any:
    """An output whose hidden states and attentions are those of the personalised rows alone."""
    for name in ("hidden_states", "attentions"):
        if out.get(name) is not None:
            out[name] = tuple(None if x is None else x[:n] for x in out[name])
    return out


def _require_one_adapter(model: PreTrainedModel) -> None:
    """Refuse PEFT's ``adapter_names``, one a row, which know nothing of the second branch."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, functools.partial) and "adapter_names" in hook.keywords:
                raise SteeringError(
                    "adapter_names, one a row, cannot be contrasted; use mode='amplify', or one "
                    "adapter"
                )
