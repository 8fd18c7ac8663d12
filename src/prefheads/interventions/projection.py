"""The output projections that mix a layer's heads, found by what they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefheads.errors import ModelError
from prefheads.interventions.hooks import AttentionCall, AttentionRecorder, hooked
from prefheads.interventions.intercept import HeadLayout, input_device, intercept


@dataclass(frozen=True)
class Projection:
    """The module that mixes a layer's heads: it reads their outputs, head after head.

    Attributes:
        name: Its path in the model.
        module: ``nn.Linear``, or ``Conv1D``, which stores its weight the other way round.
    """

    name: str
    module: nn.Linear | Conv1D

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
    """Records the outputs of each layer's heads."""

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

    def note(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            out = seen.of_layer.get(index)
            given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            if out is None or given is None or given.numel() != out.numel():
                return
            if torch.equal(given.flatten(), out.flatten()) and out.any():
                readers.setdefault(index, []).append(module)

        return hook

    with ExitStack() as stack:
        layout = stack.enter_context(intercept(model))
        for i, layer in enumerate(layout.layers):
            for module in layer.modules():
                # A module without parts computes, except dropout, which passes on its input.
                if list(module.children()) or isinstance(module, nn.Dropout | nn.Identity):
                    continue
                stack.callback(module.register_forward_pre_hook(note(i), with_kwargs=True).remove)
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
