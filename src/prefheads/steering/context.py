"""steer(): generation with some heads suppressed in a second opinion, or amplified in the only one.

A context manager around stock ``model.generate()``. While it is active the model's
``forward`` answers as :mod:`prefheads.steering.answer` describes; ``generate`` itself, with its
sampling,
beams, streamers and stopping, is transformers' own.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.errors import SteeringError
from prefheads.heads.scores import HeadWeights, fingerprint
from prefheads.interventions.forward import Generation, replaced_forward
from prefheads.interventions.hooks import set_step_hook
from prefheads.interventions.intercept import (
    HeadLayout,
    attention_backend,
    causal_model,
    evaluating,
    head_layout,
    intercept,
    occupied,
)
from prefheads.interventions.layout import require_keys_of_tokens
from prefheads.interventions.masks import masked_backend
from prefheads.interventions.plan import (
    ALL_POSITIONS,
    ActivePositions,
    BranchPlan,
    Target,
    without_branches,
)
from prefheads.steering.answer import SteeredForward
from prefheads.steering.combine import combine, entropy_strength, require_plausibility

Mode = Literal["contrast", "amplify"]
Scope = Literal["response", "all"]
Schedule = Literal["constant", "entropy"]


class ScopeWarning(UserWarning):
    """Heads that were found for one scope steer in another."""


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
            ``"profile"``, the head's unnormalised attention to the profile's tokens; ``"query"``,
            its query: at 0 it attends to all that it sees alike (but for sinks and biases).
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
        model, _as_map(weights, layout), gamma, mode, target, suppression, scope, profile_mask,
        schedule, cap, plausibility,
    )  # fmt: skip
    if isinstance(weights, HeadWeights):
        _require_fit(weights, model, scope)
    if steering.idle:
        with occupied(model), evaluating(model):  # as one that acts would
            yield steering
        return
    backend, branches = None, mode == "contrast"
    if target == "profile" or (branches and attention_backend(model) == "flex_attention"):
        backend = masked_backend(model)
    if target == "profile":
        require_keys_of_tokens(model, layout)
    with intercept(model, backend, entries=branches):
        steered = SteeredForward(model, layout, steering)
        with replaced_forward(model, steered.answer, steered, steering.admit):
            _active[model] = steering
            try:
                yield steering
            finally:
                _active.pop(model, None)
                set_step_hook(layout.modules, None)


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
    given = weights.values if isinstance(weights, HeadWeights) else weights
    values = _numbers("weights", given).detach()
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


def _numbers(name: str, value: Any) -> Tensor:
    """A tensor of at least one real number, float32."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise SteeringError(f"{name} must be numbers, not {value!r}") from None
    if tensor.is_complex() or not tensor.numel():
        raise SteeringError(
            f"{name} must be real numbers, at least one; not of shape {tuple(tensor.shape)}"
        )
    return tensor.float()


class Steering:
    """How :func:`steer` acts on a model; made by it.

    Attributes:
        batch: Users that it is for; 1 for any number.
        idle: Whether it does nothing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
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
        numbers = {"suppression": suppression, "cap": cap, "plausibility": plausibility}
        for option, number in numbers.items():
            if not isinstance(number, Real) and (number is not None or option == "suppression"):
                raise SteeringError(f"{option} must be a number, not {number!r}")
        self.gamma = _numbers("gamma", gamma).reshape(-1)
        if not torch.isfinite(self.gamma).all() or (self.gamma < 0).any():
            raise SteeringError("gamma must be a finite number of at least 0")
        if not 0 <= suppression <= 1:
            raise SteeringError("suppression must lie in [0, 1]")
        require_plausibility(plausibility)
        if cap is not None and (schedule != "entropy" or not cap >= 0):
            raise SteeringError("cap is a bound of at least 0, of schedule='entropy'")
        if mode == "amplify" and (schedule != "constant" or plausibility is not None):
            raise SteeringError("schedule and plausibility are for mode='contrast'")
        self.model, self.weights = model, weights
        self.mode, self.target, self.scope = mode, target, scope
        self.suppression = suppression
        self.profile_mask = None
        if profile_mask is not None:
            self.profile_mask = torch.atleast_2d(_numbers("profile_mask", profile_mask)).bool()
        self.schedule, self.cap, self.plausibility = schedule, cap, plausibility
        sizes = {len(weights), len(self.gamma)} - {1}
        if len(sizes) > 1:
            raise SteeringError(
                f"{len(weights)} maps of weights but {len(self.gamma)} values of gamma"
            )
        self.batch = max(sizes, default=1)
        strength = suppression if mode == "contrast" else 1.0
        self.idle = not bool((weights.amax((1, 2)) * self.gamma * strength > 0).any())
        self._plans: dict[tuple[int, bool], BranchPlan] = {}

    def rows(self, per_user: Tensor, n: int) -> Tensor:
        """One row a user, repeated for beams as ``generate`` repeats its inputs."""
        if len(per_user) == 1:
            return per_user.expand(n, *per_user.shape[1:])
        if n % len(per_user):
            raise SteeringError(f"a batch of {n} does not fit steering for {len(per_user)} users")
        return per_user.repeat_interleave(n // len(per_user), 0)

    def plan(self, n: int, *, bottom: bool = False) -> BranchPlan:
        """Rows and gains for a batch of ``n``: amplified, or with ``n`` depersonalised branches.

        Args:
            bottom: Branches leave in the lowest layer, whatever the map.
        """
        if (n, bottom) not in self._plans:
            weights = self.rows(self.weights, n)
            if self.mode == "amplify":
                gains = 1 + self.rows(self.gamma, n)[:, None, None] * weights
                self._plans[n, bottom] = without_branches(gains, self.target)
            else:
                gains = 1 - self.suppression * weights
                first = 0 if bottom else int((weights > 0).any(2).any(0).int().argmax())
                both = torch.cat([torch.ones_like(gains), gains])
                self._plans[n, bottom] = BranchPlan(both, n, [first] * n, range(n), self.target)
        return self._plans[n, bottom]

    def admit(self, generation: Generation) -> None:
        """Refuse a run of ``generate()`` that is not for the users of this steering."""
        masks = 1 if self.profile_mask is None else len(self.profile_mask)
        for users in {self.batch, masks} - {1}:
            if generation.n_rows not in (None, users):
                raise SteeringError(
                    f"a batch of {generation.n_rows} does not fit steering for {users} users"
                )

    def combine(
        self, logits: Tensor, n: int, active: ActivePositions = ALL_POSITIONS, length: int = 1
    ) -> Tensor:
        """The steered logits of a call's last positions ``(n, kept, vocab)``.

        Args:
            logits: Of the rows of both branches, the last of ``length`` positions.
            active: The positions at which the call is steered.
        """
        first = length - logits.shape[1]
        plain = max(0, active.start - first)
        before, logits = logits[:n, :plain], logits[:, plain:]
        personalised, generic = logits[:n], logits[n:]
        gamma = self.rows(self.gamma, n).to(logits.device)[:, None, None]
        acts = self.rows(self.weights.amax((1, 2)) > 0, n).to(logits.device)[:, None, None]
        mask = active.mask(first + plain, length, logits.device)
        if mask is not None:
            acts = acts & mask[:, :, None]
        if self.schedule == "entropy":
            gamma = entropy_strength(personalised, gamma, self.cap)
        steered = combine(personalised, generic, gamma, active=acts, plausibility=self.plausibility)
        return torch.cat([before.to(steered.dtype), steered], 1) if plain else steered
