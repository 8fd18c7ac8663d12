"""steer(): generation with some heads suppressed in a second opinion, or amplified in the only one.

A context manager around stock ``model.generate()``. While it is active the model's ``forward``
runs the prompt up to its last token as it is, and from there on the pass that
:mod:`prefheads.fork` describes; ``generate`` itself, with its sampling, beams, streamers and
stopping, is transformers' own.
"""

from __future__ import annotations

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

from prefheads.attention import HeadLayout, attention_backend, head_layout, intercept
from prefheads.branches import Forked, fork_cache, is_forked
from prefheads.contrast.combine import combine, entropy_strength, require_plausibility
from prefheads.errors import SteeringError
from prefheads.fork import Pass, Plan, Step, Target, part_of
from prefheads.forward import Call, Forward, replaced_forward
from prefheads.heads import HeadWeights
from prefheads.linear import fast_steps
from prefheads.masks import masked_backend
from prefheads.observer import observing, set_step
from prefheads.sharing import can_share

Mode = Literal["contrast", "amplify"]
Scope = Literal["response", "all"]
Schedule = Literal["constant", "entropy"]


class ScopeWarning(UserWarning):
    """Heads that were found for one scope steer in another."""


@dataclass(frozen=True)
class Span:
    """Where the response of a teacher-forced batch begins, for scoring under steering.

    Attributes:
        start: Column of the last prompt token, the first position that predicts the response.
        profile_mask: ``(B, n_prompt)`` bool.
    """

    start: int
    profile_mask: Tensor


response_span: ContextVar[Span | None] = ContextVar("prefheads_span", default=None)
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

    Raises:
        SteeringError: Weights, strengths or the call cannot be honoured, or the model is being
            steered already. The steering belongs to the model, whichever thread generates inside
            the block.
        ModelError: The model's heads cannot be reached.
    """
    layout = head_layout(model)
    steering = Steering(
        model, layout, _as_map(weights, layout), gamma, mode, target, suppression, scope,
        profile_mask, schedule, cap, plausibility,
    )  # fmt: skip
    info = weights.info if isinstance(weights, HeadWeights) else None
    if info is not None and info.fingerprint and info.scope not in ("", scope):
        message = f"heads found with scope={info.scope!r} steer with scope={scope!r}"
        warnings.warn(message, ScopeWarning, stacklevel=3)
    if steering.idle:
        yield steering
        return
    backend = masked_backend(model) if target == "profile" else None
    branches = mode == "contrast"
    with intercept(model, backend, entries=branches):
        if branches and scope == "response" and attention_backend(model) == "sdpa":
            steering.may_share = can_share(model)
        with replaced_forward(model, steering.forward, steering), fast_steps(model):
            _active[model] = steering
            try:
                yield steering
            finally:
                _active.pop(model, None)
                set_step(layout.modules, None)


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
        self.may_share = False  # of both branches, the prompt's keys and values
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

    def forward(self, forward: Forward, call: Call) -> Any:
        """The answer to a forward call of the model under this steering."""
        set_step(self.layout.modules, None)  # of a step that failed
        n, past, length, keep = call.n_rows, call.past, call.length, call.keep
        start = self._start(call)
        if start > 0:
            call.begin_cache(self.model)
        cache = call.cache
        if cache is not None and cache not in self._begun and is_forked(cache):
            raise SteeringError(
                "this cache was forked by another steering; give the call a new one"
            )

        before = None
        if start > 0:
            wanted = max(1, keep - (length - start)) if keep else 0
            before = forward(
                **part_of(call.arguments, past, length, 0, start) | {"logits_to_keep": wanted}
            ).logits
        plan = self.plan(n, cache)
        forks = plan.first if self.mode == "contrast" else None
        prompts = None
        if forks is not None and cache is not None:
            if cache not in self._begun:
                fork_cache(cache, forks, n, share=self._shares(cache))
            prompts = Forked(cache)
        begins = cache is not None and cache not in self._begun
        prompt = past + length - call.predicting + 1 if begins else 0
        columns = self._profile(n, past + length, call.inputs.device, prompt)
        with observing(Pass(plan, past + length, columns, prompts)):
            out = forward(
                **part_of(call.arguments, past, length, start, length)
                | {"logits_to_keep": min(keep, length - start)}
            )
        if cache is not None:
            if forks is not None:
                fork_cache(cache, forks, n, share=False)  # layers that a lazily built one has now
            self._begun.add(cache)

        logits = self._combine(out.logits, n)
        if before is not None and (keep == 0 or keep > length - start):
            logits = torch.cat([before.to(logits.dtype), logits], 1)
        out.logits = logits
        return out

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
        return out

    def _start(self, call: Call) -> int:
        """Index, within this call, of the first position that is steered."""
        begun = call.cache is not None and call.cache in self._begun
        if self.scope == "all":
            if call.past and not begun:
                raise SteeringError(
                    "scope='all' acts on the prompt too, but this cache holds one encoded "
                    "without it"
                )
            return 0
        span = response_span.get()
        if span is not None:
            return span.start
        if begun:
            if call.length > call.predicting:
                raise SteeringError(
                    "several tokens at once after steered ones: chunked prefill and further turns "
                    "on one cache need scope='all'"
                )
            return 0
        if call.cache is None and call.arguments.get("use_cache") is False:
            raise SteeringError(
                "scope='response' needs the cache to know where the prompt ends; keep use_cache on"
            )
        return call.length - call.predicting

    def _shares(self, cache: Any) -> bool:
        """Whether both branches may read one copy of the prompt's keys and values."""
        offloading = getattr(cache, "offloading", False)
        return self.may_share and not torch.is_grad_enabled() and not offloading

    def _profile(self, n: int, length: int, device: torch.device, prompt: int) -> Tensor | None:
        """The profile's tokens among all keys ``(n, length)``; it covers ``prompt`` or more."""
        if self.target != "profile":
            return None
        span = response_span.get()
        mask = self.profile_mask if span is None else span.profile_mask
        if mask is None:
            raise SteeringError(
                "target='profile' needs profile_mask, the profile's tokens in the prompt"
            )
        if mask.shape[1] > length or (span is None and mask.shape[1] < prompt):
            raise SteeringError(
                f"profile_mask covers {mask.shape[1]} tokens, but the prompt has {length}"
            )
        rows = self.rows(mask.to(device), n)
        return torch.nn.functional.pad(rows, (0, length - mask.shape[1]))

    def _combine(self, logits: Tensor, n: int) -> Tensor:
        if self.mode == "amplify":
            return logits
        personalised, generic = logits[:n], logits[n:]
        gamma = self.rows(self.gamma, n).to(logits.device)[:, None, None]
        active = self.rows(self.weights.amax((1, 2)) > 0, n).to(logits.device)[:, None, None]
        if self.schedule == "entropy":
            gamma = entropy_strength(personalised, gamma, self.cap)
        return combine(personalised, generic, gamma, active=active, plausibility=self.plausibility)
