"""The one intervention: setting the gain of attention heads, row by row, while a model runs.

Everything happens inside the attention function that the model already uses (transformers'
``AttentionInterface``): its output ``(batch, query, heads, head_dim)`` is the vector each head
hands to the output projection, so it is where a head's gain is set (target ``"head"``), and its
scores are where a head's view of the profile is set (target ``"profile"``). No modelling code is
copied and no module is addressed by a guessed name.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from prefheads.errors import ModelError, SteeringError
from prefheads.observer import AttentionFunction, Listener, observer_of, observing


@dataclass(frozen=True)
class HeadLayout:
    """Where a model keeps its heads: one decoder layer and one attention module a layer, as seen
    in a probe run.

    Attributes:
        n_heads: Attention (query) heads in a layer; the same in all layers.
        layers: The decoder layers, in order.
        attentions: Their attention modules.
        tuples: Whether a layer returns its output as the first of a tuple.
    """

    n_heads: int
    layers: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    tuples: bool

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Layers and attention modules."""
        return self.layers + self.attentions

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_layers, n_heads)``, the shape of every map of heads for this model."""
        return len(self.layers), self.n_heads


class _Probe(Listener):
    """Notes which modules call the attention function, and whether it returns one vector a head."""

    def __init__(self) -> None:
        self.n_heads: dict[nn.Module, int] = {}
        self.per_head = True
        self.causal = True

    def hear(self, module: nn.Module, query: Tensor, out: Tensor, weights: Tensor | None) -> None:
        self.n_heads[module] = query.shape[1]
        self.causal &= bool(getattr(module, "is_causal", True))
        self.per_head &= out.dim() == 4 and out.shape[1:3] == (query.shape[2], query.shape[1])


def _eager(module: nn.Module) -> AttentionFunction:
    """The eager attention, which each model's own file defines."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    raise ModelError(
        f"{type(module).__name__} has no eager attention function; load the model with "
        "sdpa attention"
    )


def _wrapper(inner_name: str) -> str:
    """Register (once) an attention function that lets passes intervene; returns its name."""
    name = f"prefheads_{inner_name}"
    if name in AttentionInterface().valid_keys():
        return name

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        inner = _eager(module) if inner_name == "eager" else AttentionInterface()[inner_name]
        observer = observer_of(module)
        if observer is None:
            result: tuple[Tensor, Tensor | None] = inner(
                module, query, key, value, attention_mask, **kwargs
            )
            return result
        return observer.attend(inner, module, query, key, value, attention_mask, kwargs)

    AttentionInterface.register(name, attention)
    masks = AttentionMaskInterface()
    if inner_name in masks.valid_keys():
        AttentionMaskInterface.register(name, masks[inner_name])
    return name


def attention_backend(model: PreTrainedModel) -> str:
    """The attention implementation of a model, such as ``"sdpa"`` or ``"eager"``."""
    name = model.config.get_text_config()._attn_implementation
    return str(name).removeprefix("prefheads_")


@contextmanager
def _attention_set_to(model: PreTrainedModel, name: str) -> Iterator[None]:
    configs = {"": model.config}
    configs |= {key: getattr(model.config, key) for key in model.config.sub_configs}
    old = {
        key: config._attn_implementation
        for key, config in configs.items()
        if config is not None and config._attn_implementation is not None
    }
    try:
        model.set_attn_implementation(dict.fromkeys(old, name))
        if model.config.get_text_config()._attn_implementation != name:
            raise ModelError(
                f"{type(model).__name__} does not take its attention from transformers' "
                "AttentionInterface, so its heads cannot be reached"
            )
        yield
    finally:
        model.set_attn_implementation(old)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its tokens."""
    embeddings = model.get_input_embeddings()
    weight = next(embeddings.parameters())
    if weight.device.type != "meta":
        return weight.device
    # Weights that accelerate keeps elsewhere come to this device when they are needed.
    return torch.device(getattr(embeddings._hf_hook, "execution_device", "cpu"))


_layouts: weakref.WeakKeyDictionary[PreTrainedModel, HeadLayout] = weakref.WeakKeyDictionary()
_busy: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()
_lock = threading.RLock()  # held while a model's attention is probed, set or restored


def _require_free(model: PreTrainedModel) -> None:
    # Models built from one config object share the setting that routes their attention.
    name = str(model.config.get_text_config()._attn_implementation)
    if model in _busy or name.startswith("prefheads_"):
        raise SteeringError(
            "this model, or one with the same config object, is already being steered or "
            "measured; one intervention at a time"
        )


def head_layout(model: PreTrainedModel) -> HeadLayout:
    """Find a model's heads by running it once on two tokens; remembered for the model's lifetime.

    Raises:
        ModelError: The model is not one whose heads can be set; the message says what is missing.
    """
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"expected a causal language model of transformers, not {type(model).__name__}"
        )
    with _lock:
        if model not in _layouts:
            _require_free(model)
            _layouts[model] = _probe_layout(model)
        return _layouts[model]


def _probe_layout(model: PreTrainedModel) -> HeadLayout:
    kind = f"{type(model).__name__} ({getattr(model.config, 'model_type', 'unknown type')})"
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise ModelError(f"{kind} is not a causal language model")
    config = model.config.get_text_config()
    if getattr(config, "num_kv_shared_layers", 0):
        raise ModelError(f"{kind} shares keys and values between layers, which is not supported")
    backend = attention_backend(model)
    if backend.startswith("paged"):
        raise ModelError(
            f"{kind} is loaded with {backend} attention; load it with sdpa, eager or "
            "flash attention"
        )
    probe = _Probe()
    with torch.no_grad(), observing(probe), _attention_set_to(model, _wrapper(backend)):
        ids = torch.zeros((1, 2), dtype=torch.long, device=input_device(model))
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    by_layer: dict[int, nn.Module] = {getattr(m, "layer_idx", -1): m for m in probe.n_heads}
    n_layers = config.num_hidden_layers
    missing = sorted(set(range(n_layers)) - set(by_layer))
    if missing:
        raise ModelError(
            f"{kind} has no attention heads behind the AttentionInterface in layers {missing}"
        )
    heads = set(probe.n_heads.values())
    if len(by_layer) != n_layers or len(probe.n_heads) != n_layers or len(heads) != 1:
        raise ModelError(
            f"{kind} does not have one attention of equally many heads in each of {n_layers} layers"
        )
    if not probe.causal:
        raise ModelError(f"{kind} looks ahead: it is not a causal language model")
    if not probe.per_head:
        raise ModelError(f"{kind} with {backend} attention does not return one vector a head")
    parents = {
        child: layer
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
        for child in layer.modules()
    }  # innermost enclosing decoder layer: modules() goes from the outside in
    orphans = [i for i, m in by_layer.items() if m not in parents]
    if orphans:
        raise ModelError(
            f"{kind} does not mark its decoder layers {orphans} as transformers' own models do"
        )
    attentions = tuple(by_layer[i] for i in range(n_layers))
    layers = tuple(parents[module] for module in attentions)
    output = _output_of_joined_rows(model, layers[-1])
    if output is None:
        raise ModelError(f"{kind} does not let rows join a batch between two of its layers")
    return HeadLayout(heads.pop(), layers, attentions, isinstance(output, tuple))


def _output_of_joined_rows(model: PreTrainedModel, layer: nn.Module) -> Any:
    """What a layer returns when a second row is added to a pass of one row on entering it; None
    if that cannot be done."""
    outputs: list[Any] = []

    def double(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (torch.cat([args[0]] * 2), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": torch.cat([kwargs["hidden_states"]] * 2)}

    handles = (
        layer.register_forward_pre_hook(double, with_kwargs=True),
        layer.register_forward_hook(lambda module, args, output: outputs.append(output)),
    )
    try:
        with torch.no_grad():
            ids = torch.zeros((1, 2), dtype=torch.long, device=input_device(model))
            n = len(model(input_ids=ids, use_cache=False).logits)
    except RuntimeError:
        return None
    finally:
        for handle in handles:
            handle.remove()
    return outputs[0] if n == 2 else None


@contextmanager
def intercept(
    model: PreTrainedModel, backend: str | None = None, *, entries: bool = True
) -> Iterator[HeadLayout]:
    """Route a model's attention through this package's passes; leave no trace afterwards.

    Args:
        backend: Attention to compute with inside the block, for work that needs explicit masks;
            the model's own if None.
        entries: Show passes what enters each layer too, so that rows can join there.

    Raises:
        ModelError: The model cannot be handled (before anything is changed).
        SteeringError: The model is already intercepted, by this thread or another: two
            interventions on one model at once would act on each other's output.
    """
    layout = head_layout(model)
    with ExitStack() as stack:
        with _lock:
            _require_free(model)
            _busy.add(model)
            stack.callback(_busy.discard, model)
            name = _wrapper(backend or attention_backend(model))
            stack.enter_context(_attention_set_to(model, name))
            for index, layer in enumerate(layout.layers if entries else ()):
                hook = layer.register_forward_pre_hook(_entry_hook(index), with_kwargs=True)
                stack.callback(hook.remove)
        yield layout


def _entry_hook(index: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        observer = observer_of(module)
        if observer is None:
            return None
        if args:
            hidden, (rest, kwargs) = observer.enter_layer(index, args[0], (args[1:], kwargs))
            return (hidden, *rest), kwargs
        kwargs = dict(kwargs)
        hidden, kwargs = observer.enter_layer(index, kwargs.pop("hidden_states"), kwargs)
        return (), kwargs | {"hidden_states": hidden}

    return hook
