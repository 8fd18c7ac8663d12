"""Decoding by contrasting layers (DoLa; Chuang et al., 2024): the last layer against an early one.

As its authors and transformers implement it: the early opinion is the output embeddings applied
to the hidden state that enters a layer, without the final norm, and the strength is fixed. The
early layer is chosen for each row and position; they choose one for the whole batch (the largest
mean divergence), which makes a batch differ from its rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from prefheads.errors import ModelError, SteeringError
from prefheads.interventions.forward import Forward, ForwardCall, replaced_forward
from prefheads.interventions.hooks import AttentionHook, hooked
from prefheads.interventions.intercept import intercept
from prefheads.interventions.layout import causal_model
from prefheads.steering.combine import contrast_layers, require_plausibility

Layers = Literal["low", "high"] | Sequence[int]


@contextmanager
def layer_contrast(
    model: PreTrainedModel, layers: Layers = "low", *, plausibility: float | None = 0.1
) -> Iterator[None]:
    """Contrast whatever ``model`` generates, or scores, inside the block with its own early
    layers: ``log p(last layer) - log p(early layer)``, the early layer being the candidate whose
    distribution is farthest from the last one's
    (:func:`prefheads.steering.combine.contrast_layers`).

    Costs no further pass. Its authors also use ``repetition_penalty=1.2``, an option of
    ``generate()``.

    Args:
        model: Any causal language model of transformers that uses its attention interface.
        layers: Candidates: ``"low"`` or ``"high"``, every second layer of the lower or upper half
            (of more than 40 layers, of the first or last 20), or numbers of layers; i is what
            enters layer i, so 0 is the input embeddings. Where these are the output embeddings
            too, ``"low"`` begins at 2, because layer 0 would say each token again.
        plausibility: Rule out tokens less likely than this share of the likeliest one (0.1 is
            theirs); None rules out none.

    Raises:
        SteeringError: Unknown layers, or a model that something acts on already.
        ModelError: The model cannot be handled, or has no output embeddings; in its first call, if
            these cannot read what enters its layers.
    """
    require_plausibility(plausibility)
    model = causal_model(model)
    with intercept(model) as layout:
        head: Any = model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(model).__name__} has no output embeddings to read layers with")
        tied = head.weight is model.get_input_embeddings().weight
        candidates = candidate_layers(layers, layout.shape[0], tied)

        def forward(forward: Forward, call: ForwardCall) -> Any:
            tap = _Tap(candidates, call.keep)
            with hooked(tap):
                out = forward(**call.arguments)
            for hidden in tap.hidden.values():  # maybe several streams, or of another width
                width = getattr(head, "in_features", hidden.shape[-1])
                if hidden.dim() != 3 or hidden.shape[-1] != width:
                    raise ModelError(
                        f"{type(model).__name__} passes other things from layer to layer than its "
                        "output embeddings read: its layers cannot be contrasted"
                    )
            early = (head(hidden).to(out.logits.device) for hidden in tap.hidden.values())
            out.logits = contrast_layers(out.logits, early, plausibility)
            return out

        with replaced_forward(model, forward):
            yield


def candidate_layers(layers: Layers, n_layers: int, tied: bool) -> list[int]:
    """Numbers of the early layers to choose from; ``tied``: whether input and output embeddings are
    the same."""
    half = n_layers // 2 if n_layers <= 40 else 20
    if layers == "low":
        start = min(2, n_layers - 1) if tied else 0
        return list(range(start, half, 2)) or [start]
    if layers == "high":
        return list(range(half if n_layers <= 40 else n_layers - half, n_layers, 2))
    numbers = [] if isinstance(layers, str) else sorted({int(layer) for layer in layers})
    if not numbers or numbers[0] < 0 or numbers[-1] >= n_layers:
        raise SteeringError(
            f"layers must be 'low', 'high' or numbers from 0 to {n_layers - 1}, not {layers!r}"
        )
    return numbers


class _Tap(AttentionHook):
    """Records what enters some layers, at the positions whose logits are asked for."""

    def __init__(self, layers: Sequence[int], keep: int) -> None:
        self.layers, self.keep = set(layers), keep
        self.hidden: dict[int, Tensor] = {}

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        if index in self.layers:
            # Copied, so that the rest of a long prompt does not stay in memory.
            self.hidden[index] = hidden[:, -self.keep :].clone() if self.keep else hidden
        return hidden, rest
