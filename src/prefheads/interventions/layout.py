"""Where a model keeps its heads, found by running it on two tokens.

No module is addressed by a guessed name: attention modules are those that ask for an attention
function, and decoder layers those that transformers marks as such, or that the user names
(:func:`set_layers`).
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prefheads.errors import ModelError
from prefheads.interventions.hooks import (
    AttentionCall,
    AttentionHook,
    AttentionOutput,
    AttentionRecorder,
    attention_backend,
    hooked,
    routed,
)


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


def causal_model(model: Any) -> PreTrainedModel:
    """The model of transformers itself, also where PEFT has put adapters into it.

    Raises:
        ModelError: It is none, or its adapters are not in its layers.
    """
    if not isinstance(model, PreTrainedModel) and hasattr(model, "get_base_model"):
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ModelError(
                "PEFT's prompt and prefix tuning put tokens of their own before the prompt, which "
                "is not supported; adapters inside the layers (LoRA and the like) are"
            )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"expected a causal language model of transformers, not {type(model).__name__}"
        )
    return model


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its tokens."""
    embeddings = model.get_input_embeddings()
    weight = next(embeddings.parameters())
    if weight.device.type != "meta":
        return weight.device
    # Weights that accelerate keeps elsewhere come to this device when they are needed.
    hook = getattr(embeddings, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", "cpu"))


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether a model takes ``position_ids``, as ``generate()`` gives them; some models go on from
    what they saw last where they are not given."""
    return "position_ids" in inspect.signature(model.forward).parameters


def positions(model: PreTrainedModel, start: int, end: int) -> dict[str, Tensor]:
    """The argument that places tokens from ``start`` to ``end``, if the model takes one."""
    if not takes_positions(model):
        return {}
    return {"position_ids": torch.arange(start, end, device=input_device(model))[None]}


known_layouts: weakref.WeakKeyDictionary[PreTrainedModel, HeadLayout] = weakref.WeakKeyDictionary()
_named: weakref.WeakKeyDictionary[PreTrainedModel, tuple[nn.Module, ...]] = (
    weakref.WeakKeyDictionary()
)


def set_layers(model: Any, layers: str | Sequence[nn.Module]) -> None:
    """Say which modules are a model's decoder layers, where they cannot be found.

    Transformers' own models mark their layers. Code from elsewhere may not.

    Args:
        model: The model.
        layers: The path of the list that holds them, such as ``"transformer.h"``, or the modules
            themselves, in order.

    Raises:
        ModelError: No such path, or no list of modules, each beside the others.
    """
    model = causal_model(model)
    try:
        found = model.get_submodule(layers) if isinstance(layers, str) else layers
        modules = tuple(found)
    except (AttributeError, TypeError):
        raise ModelError(f"{type(model).__name__} has no list of layers at {layers!r}") from None
    inside = set(model.modules())
    if not modules or not all(isinstance(m, nn.Module) and m in inside for m in modules):
        raise ModelError(f"the layers of {type(model).__name__} must be modules of it")
    if any(part in modules for m in modules for part in m.modules() if part is not m):
        raise ModelError(f"the layers of {type(model).__name__} must not lie in one another")
    _named[model] = modules
    known_layouts.pop(model, None)


class _Probe(AttentionRecorder):
    """Records which modules call the attention function, on what, and whether it returns one
    vector a head."""

    everywhere = True

    def __init__(self) -> None:
        self.n_heads: dict[nn.Module, int] = {}
        self.other_keys: set[nn.Module] = set()  # which read other keys than one for each token
        self.per_head = self.causal = True

    def record(self, call: AttentionCall, out: Tensor, weights: Tensor | None) -> None:
        _, n_heads, n_query, _ = call.query.shape
        self.n_heads[call.module] = n_heads
        if call.key.shape[2] != n_query:
            self.other_keys.add(call.module)
        self.causal &= bool(getattr(call.module, "is_causal", True))
        self.per_head &= out.dim() == 4 and out.shape[1:3] == (n_query, n_heads)


@torch.no_grad()
def probe_layout(model: PreTrainedModel) -> HeadLayout:
    """Find the heads of a model that is in evaluation mode and that nothing acts on; a ModelError
    says what is missing."""
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
    with hooked(probe), routed(model):
        _run(model)

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
    attentions = tuple(by_layer[i] for i in range(n_layers))
    layers = _enclosing(model, attentions, kind)
    output = _output_of_joined_rows(model, layers[-1])
    if output is None:
        raise ModelError(f"{kind} does not let rows join a batch between two of its layers")
    nonlinear = _nonlinear_layers(model, attentions)
    if nonlinear:
        raise ModelError(
            f"{kind} does something to its heads together before it projects them, such as a norm "
            f"(layers {nonlinear}): the output of one head alone is not defined"
        )
    return HeadLayout(heads.pop(), layers, attentions, isinstance(output, tuple))


def _run(model: PreTrainedModel, n: int = 2) -> Any:
    ids = torch.arange(n, device=input_device(model))[None]
    ones = torch.ones_like(ids)
    return model(input_ids=ids, attention_mask=ones, use_cache=False, **positions(model, 0, n))


def _enclosing(
    model: PreTrainedModel, attentions: Sequence[nn.Module], kind: str
) -> tuple[nn.Module, ...]:
    """The decoder layer around each attention module."""
    marked = _named.get(model) or [
        m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)
    ]
    # The innermost: modules() goes from the outside in.
    parents = {child: layer for layer in marked for child in layer.modules()}
    orphans = [i for i, attention in enumerate(attentions) if attention not in parents]
    if orphans:
        raise ModelError(
            f"{kind} does not mark its decoder layers {orphans} as transformers' own models do; "
            "name them: prefheads.set_layers(model, 'path.of.the.list')"
        )
    layers = tuple(parents[attention] for attention in attentions)
    if len(set(layers)) < len(layers):
        raise ModelError(f"{kind} has several attentions in one decoder layer")
    return layers


def _output_of_joined_rows(model: PreTrainedModel, layer: nn.Module) -> Any:
    """What a layer returns when a second row joins a pass on entering it; None if it cannot."""
    outputs: list[Any] = []

    def double(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (torch.cat([args[0]] * 2), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": torch.cat([kwargs["hidden_states"]] * 2)}

    keep = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        with layer.register_forward_pre_hook(double, with_kwargs=True), keep:
            n = len(_run(model).logits)
    except (RuntimeError, IndexError, ValueError):  # whatever is said of rows that do not fit
        return None
    return outputs[0] if n == 2 else None


class _GainOnHalf(AttentionHook):
    """Multiplies the outputs of the first half of the heads."""

    everywhere = True
    gain = 1.0

    def attend(self, call: AttentionCall) -> AttentionOutput:
        out, weights = call.run()
        gains = out.new_ones(out.shape[2], 1)
        gains[: max(1, out.shape[2] // 2)] = self.gain
        return (out * gains).contiguous(), weights


def _nonlinear_layers(model: PreTrainedModel, attentions: Sequence[nn.Module]) -> list[int]:
    """Layers whose attention is no linear function of its heads' outputs, so that a gain of a head
    is none of its columns of the output projection. Low precision counts as linear."""
    half, nonlinear = _GainOnHalf(), []

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        outputs = []
        for gain in (0.0, 1.0, 2.0):
            half.gain = gain
            out = module.forward(*args, **kwargs)
            outputs.append((out[0] if isinstance(out, tuple) else out).float())
        half.gain = 1.0
        below, above = outputs[1] - outputs[0], outputs[2] - outputs[1]
        if (above - below).norm() > 0.1 * torch.maximum(above.norm(), below.norm()):
            nonlinear.append(list(attentions).index(module))

    with ExitStack() as stack:
        for module in attentions:
            stack.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        with hooked(half), routed(model):
            _run(model, 4)
    return nonlinear


_of_tokens: weakref.WeakKeyDictionary[HeadLayout, bool] = weakref.WeakKeyDictionary()


@torch.no_grad()
def require_keys_of_tokens(model: PreTrainedModel, layout: HeadLayout) -> None:
    """Refuse gains on the profile where attention reads other keys than one for each token, for
    example because it sums up parts of the text."""
    if layout not in _of_tokens:
        probe = _Probe()
        with hooked(probe), routed(model):
            _run(model, 40)
        _of_tokens[layout] = probe.other_keys.isdisjoint(layout.attentions)
    if not _of_tokens[layout]:
        raise ModelError(
            f"{type(model).__name__} reads other keys than those of the text's tokens, so what it "
            "reads of the profile is not known; use target='head'"
        )
