"""Products of hidden states with a model's weights, in the way that is fastest on the CPU.

torch multiplies float32 matrices on x86 with MKL. Two other ways are faster for few rows
(``docs/performance.md``): the weight as first factor; and oneDNN, which torch carries too, for the
weights of a vocabulary, and with AVX-512 for all. oneDNN's sums are a little less exact. It is used
for the steps of decoding, and for small changes of hidden states
(:func:`prefheads.scoring.nll.projected_nll`); whole texts, whose likelihoods are to agree to 1e-5
nats, are
left to torch. It makes code for every number of rows, and keeps it, up to a mebibyte each time: the
rows of steps are rounded up to one of few numbers.
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

from prefheads.interventions.forward import forward_set_to

FEW = 128  # rows of a step: texts, branches, beams
VOCABULARY = 8  # outputs an input from which on a weight is taken for a vocabulary's
# Whether torch would take MKL, and has oneDNN's product in the form its compiler uses.
HAS_ONEDNN = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
# Rows up to which MKL is faster, and oneDNN no faster, with the weight as first factor.
WEIGHT_FIRST = 32 if torch.backends.mkl.is_available() and not AVX512 else 2


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, vocabulary: bool) -> Tensor:
    """``x @ weight.T + bias`` for ``x`` ``(..., in)`` and ``weight`` ``(out, in)``.

    Args:
        vocabulary: Whether ``weight`` is that of a vocabulary, or a part of it.
    """
    if not _may_choose(x, weight):
        return nn.functional.linear(x, weight, bias)
    return _product(x, weight, bias, x.numel() // x.shape[-1], vocabulary)


@contextmanager
def fast_steps(model: nn.Module) -> Iterator[None]:
    """Let a model's linear layers on a CPU take the rows of a decoding step through
    :func:`linear` inside the block."""
    with ExitStack() as stack:
        for module in model.modules():
            if (
                type(module) is nn.Linear
                and {"weight", "bias"} <= module._parameters.keys()  # not so where it was pruned
                and module.weight.device.type == "cpu"
                and module.weight.dtype == torch.float32
                and "forward" not in module.__dict__
            ):
                if module not in _forwards:
                    vocabulary = module.out_features >= VOCABULARY * module.in_features
                    _forwards[module] = functools.partial(
                        _of_few_rows, module._parameters, vocabulary
                    )
                stack.enter_context(forward_set_to(module, _forwards[module]))
        yield


# Kept, so that graphs traced inside one block are those of the next.
_forwards: weakref.WeakKeyDictionary[nn.Module, Callable[[Tensor], Tensor]] = (
    weakref.WeakKeyDictionary()
)


def _of_few_rows(parameters: dict[str, Any], vocabulary: bool, x: Tensor) -> Tensor:
    weight, bias = parameters["weight"], parameters["bias"]
    if x.numel() > FEW * x.shape[-1] or not _may_choose(x, weight):
        return nn.functional.linear(x, weight, bias)
    n = x.numel() // x.shape[-1]
    if n <= 8:
        return _product(x, weight, bias, n, vocabulary)
    rows = nn.functional.pad(x.reshape(n, -1), (0, 0, 0, -n % 8))
    return _product(rows, weight, bias, len(rows), vocabulary)[:n].view(*x.shape[:-1], -1)


def _may_choose(x: Tensor, weight: Tensor) -> bool:
    """Whether it is for us to choose: no gradient to keep track of, no precision set by others."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, n: int, vocabulary: bool) -> Tensor:
    if 1 < n <= (2 if vocabulary else WEIGHT_FIRST):
        # Two rows, the branches of a single text, take no longer than to read the weight.
        out: Tensor = torch.mm(weight, x.reshape(n, -1).t()).t().contiguous()
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], -1)
    # oneDNN takes weights that do not lie in order a very slow way; torch's compiler, this product
    # only of its own making.
    fit = weight.is_contiguous() and not torch.compiler.is_compiling()
    if HAS_ONEDNN and (vocabulary or AVX512) and fit:
        # The overload by its name, which saves the time to find it.
        product = torch.ops.mkldnn._linear_pointwise.default
        out = product(x.contiguous(), weight, bias, "none", [], "")
        return out
    return nn.functional.linear(x, weight, bias)


if HAS_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)  # torch's counter knows it not
    def _flops(x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
        count: int = 2 * math.prod(x) * weight[0]
        return count
