"""Projections found by what they do: those that mix a layer's heads, and that to the vocabulary."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefheads.errors import ModelError
from prefheads.interventions.hooks import (
    AttentionCall,
    AttentionRecorder,
    attribute_set_to,
    forward_hooks,
    hooked,
)
from prefheads.interventions.intercept import intercept
from prefheads.interventions.layout import HeadLayout, input_device, positions


@dataclass(frozen=True)
class Projection:
    """The module that mixes a layer's heads: it reads their outputs, head after head."""

    name: str  # its path in the model
    module: nn.Linear | Conv1D  # which stores its weight the other way round

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (in, out)."""
        return isinstance(self.module, Conv1D)

    @property
    def weight(self) -> Tensor:
        """``(out, in)`` float32 on the CPU."""
        weight = self.module.weight.detach().to("cpu", torch.float32)
        return weight.T if self.transposed else weight


class _Outputs(AttentionRecorder):
    def __init__(self) -> None:
        self.of_layer: dict[int, Tensor] = {}

    def record(self, call: AttentionCall, out: Tensor, weights: Tensor | None) -> None:
        self.of_layer[call.layer] = out


@torch.no_grad()
def find_projections(model: PreTrainedModel) -> tuple[Projection, ...]:
    """Find the projection behind each layer's heads: the one module that reads their very output.

    Raises:
        ModelError: The model's heads cannot be reached; its weights are quantised, shared between
            layers or not loaded; or something stands between the heads and the projection.
    """
    seen = _Outputs()
    readers: dict[int, list[nn.Module]] = {}

    def note(index: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        out = seen.of_layer.get(index)
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if out is None or given is None or given.numel() != out.numel():
            return
        if torch.equal(given.flatten(), out.flatten()) and out.any():
            readers.setdefault(index, []).append(module)

    with ExitStack() as stack:
        layout = stack.enter_context(intercept(model))
        for i, layer in enumerate(layout.layers):
            for module in layer.modules():
                # A module without parts computes, except dropout, which passes on its input.
                if list(module.children()) or isinstance(module, nn.Dropout | nn.Identity):
                    continue
                hook = functools.partial(note, i)
                stack.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        stack.enter_context(hooked(seen))
        ids = torch.arange(8, device=input_device(model))[None]
        model(input_ids=ids, use_cache=False)
    return _checked(model, layout, readers)


def _checked(
    model: PreTrainedModel, layout: HeadLayout, readers: Mapping[int, list[nn.Module]]
) -> tuple[Projection, ...]:
    kind = f"{type(model).__name__} ({model.config.model_type})"
    names = {module: name for name, module in model.named_modules()}
    found = []
    for i in range(len(layout.layers)):
        match readers.get(i, []):
            case [module]:
                pass
            case []:
                raise ModelError(
                    f"{kind} has something between the heads of layer {i} and their projection, "
                    "such as a gate or a norm, so amplified heads are no change of its weights"
                )
            case several:
                raise ModelError(
                    f"the heads of layer {i} of {kind} are read by "
                    f"{', '.join(names[m] for m in several)}; only a single projection can be "
                    "exported (merge adapters that are loaded first)"
                )
        # Exactly these: quantised layers are classes or tensors derived from them.
        plain = type(module) in (nn.Linear, Conv1D) and type(module.weight.data) is Tensor
        if not isinstance(module, nn.Linear | Conv1D) or not plain:
            raise ModelError(
                f"the heads of layer {i} of {kind} are read by {names[module]}, a "
                f"{type(module).__name__}, not by a plain linear projection; load the model "
                "unquantised, if it is that"
            )
        weight = module.weight
        if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16) or weight.is_meta:
            raise ModelError(
                f"{names[module]} of {kind} has {weight.dtype} weights on {weight.device}; load "
                "the whole model in float32, bfloat16 or float16"
            )
        found.append(Projection(names[module], module))
    if len({p.module.weight.data_ptr() for p in found}) < len(found):
        raise ModelError(f"{kind} shares an output projection between layers; it has no adapter")
    return tuple(found)


_makes_logits: weakref.WeakKeyDictionary[nn.Module, dict[torch.dtype, bool]] = (
    weakref.WeakKeyDictionary()
)


@torch.no_grad()
def vocabulary_projection(model: PreTrainedModel) -> nn.Linear | None:
    """The layer whose output is the model's logits, without any change to them.

    Found by one run on two tokens, and remembered. None where something is done to the logits
    afterwards (a cap, a scale), or to the layer itself (quantised, adapted, kept elsewhere).
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or not head.weight.is_floating_point():
        return None
    if vars(head).get("forward") or forward_hooks(head):
        return None
    found = _makes_logits.setdefault(head, {})
    dtype = head.weight.dtype  # a model may turn its logits into float32, which they may be already
    if dtype not in found:
        seen: list[tuple[Tensor, Tensor]] = []

        def record(hidden: Tensor) -> Tensor:
            seen.append((hidden, hidden.clone()))
            return hidden

        ids = torch.zeros((1, 2), dtype=torch.long, device=input_device(model))
        with attribute_set_to(head, "forward", record):
            logits = model(input_ids=ids, use_cache=False, **positions(model, 0, 2)).logits
        only = len(seen) == 1 and logits is seen[0][0]
        found[dtype] = only and torch.equal(logits, seen[0][1])
    return head if found[dtype] else None
