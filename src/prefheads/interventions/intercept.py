"""The one intervention: setting the gain of attention heads, row by row, while a model runs.

Everything happens inside the attention function that the model already uses (transformers'
``AttentionInterface``): its output ``(batch, query, heads, head_dim)`` is the vector each head
hands to the output projection, so it is where a head's gain is set (target ``"head"``), and its
scores are where a head's view of the profile is set (target ``"profile"``). No modelling code is
copied and no module is addressed by a guessed name.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from prefheads.errors import ModelError, SteeringError
from prefheads.interventions.hooks import (
    LAYER,
    attention_backend,
    attention_set_to,
    hook_of,
    lock,
    routed,
)
from prefheads.interventions.layout import (
    HeadLayout,
    causal_model,
    known_layouts,
    probe_layout,
)

MASKABLE = ("sdpa", "eager")

_busy: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()


def head_layout(model: Any) -> HeadLayout:
    """Find a model's heads by running it once on two tokens; remembered for the model's lifetime.

    Raises:
        ModelError: The model's heads cannot be set; the message says what is missing.
        SteeringError: Something acts on the model, so it cannot be probed.
    """
    model = causal_model(model)
    with lock:
        # Layers may have been cut or replaced since; not while something acts on the model.
        old = known_layouts.get(model)
        if old is not None and model not in _busy and not set(old.modules) <= {*model.modules()}:
            del known_layouts[model]
        if model not in known_layouts:
            with occupied(model), evaluating(model):
                known_layouts[model] = probe_layout(model)
        return known_layouts[model]


@contextmanager
def occupied(model: PreTrainedModel) -> Iterator[None]:
    """Keep others from acting on a model inside the block; a SteeringError if some do already."""
    with lock:
        if model in _busy:
            raise SteeringError(
                "this model is already being steered or measured; one intervention at a time"
            )
        _busy.add(model)
    try:
        yield
    finally:
        _busy.discard(model)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model without dropout or checkpointing inside the block, whatever a trainer left."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def masked_backend(model: PreTrainedModel) -> str:
    """The backend to use where a profile gain or a shared prompt needs explicit masks: the model's
    own, or for flex attention one that computes the same. Others raise a ModelError."""
    backend = attention_backend(model)
    if backend in MASKABLE:
        return backend
    if backend == "flex_attention":
        softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
        return "eager" if softcap else "sdpa"
    raise ModelError(
        f"{backend} attention takes no bias on single tokens; load the model with sdpa, "
        "eager or flex"
    )


@contextmanager
def intercept(
    model: PreTrainedModel, backend: str | None = None, *, entries: bool = True
) -> Iterator[HeadLayout]:
    """Show hooks the attention of a model; leave no trace afterwards.

    Inside the block the model is in evaluation mode.

    Args:
        backend: Attention to compute with inside the block, for work that needs explicit masks;
            the model's own if None.
        entries: Also show hooks what enters each layer, so that rows can join there.

    Raises:
        ModelError: The model cannot be handled (before anything is changed).
        SteeringError: The model is already intercepted, by this thread or another: two
            interventions on one model at once would act on each other's output.
    """
    model = causal_model(model)
    layout = head_layout(model)
    with ExitStack() as stack:
        stack.enter_context(occupied(model))
        stack.enter_context(evaluating(model))
        with lock:
            if backend not in (None, attention_backend(model)):
                stack.enter_context(attention_set_to(model, str(backend)))
            stack.enter_context(routed(model))
        with lock:
            if any(LAYER in vars(module) for module in layout.attentions):
                raise SteeringError(
                    "this model shares its layers with one that is already being steered or "
                    "measured"
                )
            for index, module in enumerate(layout.attentions):
                vars(module)[LAYER] = index
                stack.callback(vars(module).pop, LAYER, None)
        for index, layer in enumerate(layout.layers if entries else ()):
            hook = functools.partial(_enter, index)
            stack.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield layout


def _enter(index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    hook = hook_of(module)
    if hook is None:
        return None
    if args:
        hidden, (rest, kwargs) = hook.enter_layer(index, args[0], (args[1:], kwargs))
        return (hidden, *rest), kwargs
    kwargs = dict(kwargs)
    hidden, kwargs = hook.enter_layer(index, kwargs.pop("hidden_states"), kwargs)
    return (), kwargs | {"hidden_states": hidden}
