"""Products of hidden states with a model's weights, by the CPU library that is fastest at them.

torch multiplies float32 matrices on x86 with MKL. It carries oneDNN too, which is up to twice as
fast at products of few rows, and at those with the weights of a vocabulary
(``docs/performance.md``). Its sums are a little less exact. It is used for the steps of decoding,
for what follows a shared prompt, and for small changes of hidden states
(:func:`prefheads.nll.projected_nll`); prompts and whole texts, whose likelihoods are to agree to
1e-5 nats, are left to torch.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from prefheads.forward import forward_set_to

FEW = 128  # rows of a step: texts, branches, beams
# Whether torch would take MKL, and has oneDNN's product in the form its compiler uses.
HAS_ONEDNN = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` for ``x`` ``(..., in)`` and ``weight`` ``(out, in)``."""
    if not _may_choose(x, weight):
        return nn.functional.linear(x, weight, bias)
    if x.numel() == 2 * x.shape[-1]:
        return _of_two_rows(x, weight, bias)
    # oneDNN takes weights that do not lie in order a very slow way; torch's compiler, this product
    # only of its own making.
    if not HAS_ONEDNN or not weight.is_contiguous() or torch.compiler.is_compiling():
        return nn.functional.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return out


@contextmanager
def fast_layers(model: nn.Module, most: float = FEW) -> Iterator[None]:
    """Let a model's linear layers on a CPU take up to ``most`` tokens through :func:`linear` inside
    the block."""
    with ExitStack() as stack:
        for module in model.modules():
            if (
                type(module) is nn.Linear
                and module.weight.device.type == "cpu"
                and module.weight.dtype == torch.float32
                and "forward" not in module.__dict__
            ):
                kept = _forwards.setdefault(module, {})
                if most not in kept:
                    kept[most] = functools.partial(_forward, module._parameters, most)
                stack.enter_context(forward_set_to(module, kept[most]))
        yield


# Kept, so that graphs traced inside one block are those of the next.
_forwards: weakref.WeakKeyDictionary[nn.Module, dict[float, Callable[[Tensor], Tensor]]] = (
    weakref.WeakKeyDictionary()
)


def _forward(parameters: dict[str, Any], most: float, x: Tensor) -> Tensor:
    multiply = linear if x.numel() <= most * x.shape[-1] else nn.functional.linear
    return multiply(x, parameters["weight"], parameters["bias"])


def _may_choose(x: Tensor, weight: Tensor) -> bool:
    """Whether it is for us to choose: no gradient to keep track of, no precision set by others."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


if HAS_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)  # torch's counter knows it not
    def _flops(x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
        count: int = 2 * math.prod(x) * weight[0]
        return count


def _of_two_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """With the weight as first factor: the two branches of a single text in the time of one row,
    which is the time it takes to read the weight."""
    out = (weight @ x.reshape(2, -1).T).T.contiguous()
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], -1)
