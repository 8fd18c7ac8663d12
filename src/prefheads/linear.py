"""Products of hidden states with a model's weights, by the CPU library that is fastest at them.

torch multiplies float32 matrices on x86 with MKL. It carries oneDNN too, which is up to twice as
fast at products of few rows, and at those with the weights of a vocabulary
(``docs/performance.md``). Its sums are a little less exact. It is used for the steps of decoding,
and for small changes of hidden states (:func:`prefheads.nll.projected_nll`); whole texts, whose
likelihoods are to agree to 1e-5 nats, are left to torch. It makes code for every number of rows,
and keeps it, up to a mebibyte each time: the rows of steps are rounded up to one of few numbers.
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
def fast_steps(model: nn.Module) -> Iterator[None]:
    """Let a model's linear layers on a CPU take the rows of a decoding step through
    :func:`linear` inside the block."""
    with ExitStack() as stack:
        for module in model.modules():
            if (
                type(module) is nn.Linear
                and module.weight.device.type == "cpu"
                and module.weight.dtype == torch.float32
                and "forward" not in module.__dict__
            ):
                if module not in _forwards:
                    _forwards[module] = functools.partial(_of_few_rows, module._parameters)
                stack.enter_context(forward_set_to(module, _forwards[module]))
        yield


# Kept, so that graphs traced inside one block are those of the next.
_forwards: weakref.WeakKeyDictionary[nn.Module, Callable[[Tensor], Tensor]] = (
    weakref.WeakKeyDictionary()
)


def _of_few_rows(parameters: dict[str, Any], x: Tensor) -> Tensor:
    weight, bias = parameters["weight"], parameters["bias"]
    if not 0 < x.numel() <= FEW * x.shape[-1]:
        return nn.functional.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    n = len(rows)
    if n > 8:
        rows = nn.functional.pad(rows, (0, 0, 0, -n % 8))
    return linear(rows, weight, bias)[:n].view(*x.shape[:-1], -1)


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
