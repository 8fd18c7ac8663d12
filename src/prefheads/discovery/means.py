"""Mean outputs of heads over a set of texts, which mean ablation puts in place of their outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.data.encoding import Encoded
from prefheads.interventions.hooks import AttentionCall, AttentionRecorder, hooked
from prefheads.interventions.intercept import head_layout, input_device, positions
from prefheads.progress import track
from prefheads.types import Scope


class _Sums(AttentionRecorder):
    """Adds up what the heads of each layer hand on from a position on."""

    def __init__(self) -> None:
        self.start, self.count = 0, 0
        self.sums: dict[int, Tensor] = {}

    def record(self, call: AttentionCall, out: Tensor, weights: Tensor | None) -> None:
        """Add the outputs of one text, ``(1, T, H, d)``."""
        total = out[0, self.start :].double().sum(0).cpu()
        self.sums[call.layer] = self.sums.get(call.layer, 0) + total


@torch.no_grad()
def mean_outputs(
    model: PreTrainedModel, encoded: Sequence[Encoded], scope: Scope, progress: bool = True
) -> list[Tensor]:
    """The mean output of every head where ablation acts, over all examples alike by position.

    Must be used inside :func:`prefheads.interventions.intercept.intercept`.

    Args:
        scope: ``"response"``: at the positions that predict responses; ``"all"``: at every one.

    Returns:
        For each layer ``(n_heads, head_dim)``, float32.
    """
    sums, device = _Sums(), input_device(model)
    for e in track(encoded, "mean outputs", unit="example", disable=not progress):
        ids = torch.cat([e.prompt_ids, e.response_ids[:-1]]).to(device)[None]
        sums.start = len(e.prompt_ids) - 1 if scope == "response" else 0
        sums.count += ids.shape[1] - sums.start
        with hooked(sums):
            model(
                input_ids=ids,
                use_cache=False,
                logits_to_keep=1,
                **positions(model, 0, ids.shape[1]),
            )
    layers = range(head_layout(model).shape[0])
    return [(sums.sums[i] / sums.count).float().to(device) for i in layers]
