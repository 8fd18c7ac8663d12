"""Negative log-likelihood of tokens, in nats: from logits, or from what the logits are made of.

All logits of a pass would take most of its memory. Where they are the output of the vocabulary
projection and nothing more, the log-sum-exp is summed over parts of the vocabulary instead.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefheads.interventions.hooks import attribute_set_to, forward_hooks
from prefheads.interventions.intercept import input_device, positions

AT_ONCE = 2**24  # logits in memory beside those that are returned


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL in nats of ``targets`` (..., T) under ``logits`` (..., T, vocab), float32 (..., T)."""
    chosen = logits.gather(-1, targets.expand(logits.shape[:-1])[..., None])[..., 0].float()
    rows = logits.flatten(0, -2)
    few = max(1, AT_ONCE // logits.shape[-1])
    lse = torch.cat([part.float().logsumexp(-1) for part in rows.split(few)])
    return lse.reshape(chosen.shape) - chosen


def mean_nll(logits: Tensor, targets: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Mean NLL of ``targets`` (T,) under ``logits`` (T, vocab) at each temperature, on the CPU."""
    at_each = (logits if t == 1 else logits / t for t in temperatures)
    return torch.stack([token_nll(x, targets).mean() for x in at_each]).cpu()


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
    lse = hidden.new_full(hidden.shape[:-1], float("-inf"), dtype=torch.float32)
    chosen = torch.empty_like(lse)
    size = max(256, AT_ONCE // lse.numel())
    for first in range(0, len(projection.weight), size):
        part = slice(first, first + size)
        logits = nn.functional.linear(change, projection.weight[part]).float()
        logits += known[1][..., part]
        lse = torch.logaddexp(lse, logits.logsumexp(-1))
        here = ((targets >= first) & (targets < first + size)).nonzero()[:, 0]
        chosen[:, here] = logits[:, here, targets[here] - first]
    return lse - chosen


_is_last: weakref.WeakKeyDictionary[nn.Module, dict[torch.dtype, bool]] = (
    weakref.WeakKeyDictionary()
)


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
    found = _is_last.setdefault(head, {})
    dtype = head.weight.dtype  # a model may turn its logits into float32, which they may be already
    if dtype not in found:
        found[dtype] = _makes_the_logits(head, model)
    return head if found[dtype] else None


@torch.no_grad()
def _makes_the_logits(head: nn.Linear, model: PreTrainedModel) -> bool:
    inputs: list[Tensor] = []
    copies: list[Tensor] = []

    def record(hidden: Tensor) -> Tensor:
        inputs.append(hidden)
        copies.append(hidden.clone())
        return hidden

    ids = torch.zeros((1, 2), dtype=torch.long, device=input_device(model))
    with attribute_set_to(head, "forward", record):
        logits = model(input_ids=ids, use_cache=False, **positions(model, 0, 2)).logits
    untouched = len(inputs) == 1 and logits is inputs[0]
    return untouched and torch.equal(logits, copies[0])
