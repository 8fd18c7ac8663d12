"""steer(): generation against a branch without some heads, or with these heads amplified.

A context manager around stock ``model.generate()`` (sections 4 and 5.3). While it is active, the
model's ``forward`` answers as :mod:`prefheads.steering.answer` describes. ``generate`` itself, with
its sampling, beams, streamers and stopping, is transformers' own.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.errors import SteeringError
from prefheads.heads.scores import HeadWeights, fingerprint
from prefheads.interventions.forward import replaced_forward
from prefheads.interventions.hooks import attention_backend, set_step_hook
from prefheads.interventions.intercept import (
    evaluating,
    head_layout,
    intercept,
    masked_backend,
    occupied,
)
from prefheads.interventions.layout import causal_model, require_keys_of_tokens
from prefheads.steering.answer import SteeredForward
from prefheads.steering.setting import Setting, Steering
from prefheads.types import Mode, Schedule, Scope, Target


class ScopeWarning(UserWarning):
    """Heads that were found for one scope steer in another."""


_active: weakref.WeakKeyDictionary[PreTrainedModel, Steering] = weakref.WeakKeyDictionary()


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
) -> AbstractContextManager[Steering]:
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
    settings = [
        Setting("", mode, target, strength, suppression, schedule, cap, scope, plausibility)
        for strength in _numbers("gamma", gamma).reshape(-1).tolist()
    ]
    return steer_with(model, weights, settings, profile_mask)


@contextmanager
def steer_with(
    model: PreTrainedModel,
    weights: HeadWeights | Tensor,
    settings: Setting | Sequence[Setting],
    profile_mask: Tensor | None = None,
) -> Iterator[Steering]:
    """:func:`steer`, as a setting says, or one a user of a batch; these differ in gamma alone."""
    settings = [settings] if isinstance(settings, Setting) else settings
    model, setting = causal_model(model), settings[0]
    layout = head_layout(model)
    if profile_mask is not None:
        profile_mask = torch.atleast_2d(_numbers("profile_mask", profile_mask)).bool()
    steering = Steering(model, _as_map(weights, layout.shape), settings, profile_mask)
    if isinstance(weights, HeadWeights):
        _require_fit(weights, model, setting.scope)
    if steering.idle:
        with occupied(model), evaluating(model):  # as one that acts would
            yield steering
        return
    backend, branches = None, setting.mode == "contrast"
    if setting.target == "profile" or (branches and attention_backend(model) == "flex_attention"):
        backend = masked_backend(model)
    if setting.target == "profile":
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


def _as_map(weights: HeadWeights | Tensor, wanted: tuple[int, int]) -> Tensor:
    given = weights.values if isinstance(weights, HeadWeights) else weights
    values = _numbers("weights", given).detach().cpu()
    shape = tuple(values.shape)
    if values.dim() == 2:
        values = values[None]
    if values.dim() != 3 or values.shape[1:] != wanted or not len(values):
        raise SteeringError(
            f"weights of shape {shape} do not fit this model; expected (n_layers, n_heads) = "
            f"{wanted} or with a batch before it"
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
