"""Negative log-likelihood of tokens, in nats: from logits, or from what the logits are made of.

All logits of a pass are most of its memory, and a good part of its time is to write them down and
to read them again. Where they are the output of the vocabulary projection and nothing more, the
normaliser is summed over parts of the vocabulary that stay in the processor's cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefheads.interventions.forward import forward_set_to
from prefheads.interventions.intercept import input_device, positions
from prefheads.interventions.linear import linear


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL in nats of ``targets`` (..., T) under ``logits`` (..., T, vocab), float32 (..., T)."""
    chosen = logits.gather(-1, targets.expand(logits.shape[:-1])[..., None])[..., 0].float()
    rows = logits.flatten(0, -2)
    few = max(1, _at_once(logits) // logits.shape[-1])
    normaliser = torch.cat([part.float().logsumexp(-1) for part in rows.split(few)])
    return normaliser.reshape(chosen.shape) - chosen


def mean_nll(logits: Tensor, targets: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Mean NLL of ``targets`` (T,) under ``logits`` (T, vocab) at each temperature, on the CPU."""
    degrees = [logits if t == 1 else logits / t for t in temperatures]
    return torch.stack([token_nll(x, targets).mean() for x in degrees]).cpu()


def projected_nll(
    hidden: Tensor, projection: nn.Linear, targets: Tensor, known: tuple[Tensor, Tensor]
) -> Tensor:
    """NLL of ``targets`` (T,) under the logits that a :func:`vocabulary_projection` makes of
    ``hidden`` (rows, T, width), float32 (rows, T).

    Args:
        known: Hidden states ``(1, T, width)`` close to all of them, and their logits
            ``(1, T, vocab)``. Only the difference is projected: it is small, and so is its
            rounding error.
    """
    change = hidden - known[0]
    normaliser = hidden.new_full(hidden.shape[:-1], float("-inf"), dtype=torch.float32)
    chosen = torch.empty_like(normaliser)
    wanted = targets.tolist()
    weights = projection.weight.split(max(256, _at_once(hidden) // chosen.numel()))
    first = 0
    for weight in weights:
        end = first + len(weight)
        logits = (
            linear(change, weight, None, vocabulary=True).float().add_(known[1][..., first:end])
        )
        for position, token in enumerate(wanted):
            if first <= token < end:
                chosen[:, position] = logits[:, position, token - first]
        normaliser = torch.logaddexp(normaliser, logits.logsumexp(-1))
        first = end
    return normaliser - chosen


def _at_once(x: Tensor) -> int:
    """Logits to handle at once: on a CPU as many as stay in its cache."""
    return 2**21 if x.device.type == "cpu" else 2**28


_is_last: weakref.WeakKeyDictionary[nn.Module, dict[torch.dtype, bool]] = (
    weakref.WeakKeyDictionary()
)


def vocabulary_projection(model: PreTrainedModel) -> nn.Linear | None:
    """The layer whose output is the model's logits as they are.

    Found by one run on two tokens, and remembered. None where something is done to the logits
    afterwards (a cap, a scale), or to the layer itself (quantised, adapted, kept elsewhere).
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or not head.weight.is_floating_point():
        return None
    if vars(head).get("forward") or head._forward_hooks or head._forward_pre_hooks:
        return None
    found = _is_last.setdefault(head, {})
    dtype = head.weight.dtype  # a model may turn its logits into float32, which they may be already
    if dtype not in found:
        found[dtype] = _makes_the_logits(head, model)
    return head if found[dtype] else None


@torch.no_grad()
def _makes_the_logits(head: nn.Linear, model: PreTrainedModel) -> bool:
    entered: list[Tensor] = []
    as_it_was: list[Tensor] = []

    def note(hidden: Tensor) -> Tensor:
        entered.append(hidden)
        as_it_was.append(hidden.clone())
        return hidden

    ids = torch.zeros((1, 2), dtype=torch.long, device=input_device(model))
    with forward_set_to(head, note):
        logits = model(input_ids=ids, use_cache=False, **positions(model, 0, 2)).logits
    untouched = len(entered) == 1 and logits is entered[0]
    return untouched and torch.equal(logits, as_it_was[0])
