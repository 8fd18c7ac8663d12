"""Screening: an estimate of every head's score from gradients, to choose which heads to ablate.

Ablation moves something that the response depends on: the head's output, or with it that of the
head's layer. On the line between, the NLL of the response is a function of a dial ``t``, 1 in the
clean run and 0 under ablation. To second order

    PCS  =  NLL(0) - NLL(1)  ~  -dNLL/dt  +  1/2 d²NLL/dt²   at t = 1.

The first term is attribution patching: the first derivatives of all heads come from one backward
pass. It misses the very heads that the model cannot do without, because the model has settled where
their slope is small and their curvature large. For the second derivative stands its Gauss-Newton
value, the Fisher information of the dial: the variance of d log p(y)/dt over responses y that the
model itself draws, divided by their number of tokens. A few draws estimate it, differentiated in
the same pass as the NLL.

A layer is not linear in its heads' outputs, least of all in the lowest layers. There a second
estimate follows the line of the layer's output, to where ablation really moves it, for the price of
one layer a head. The higher of the two estimates counts.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from prefheads.errors import ModelError
from prefheads.interventions.branching import BranchedForward
from prefheads.interventions.hooks import AttentionCall, AttentionOutput
from prefheads.interventions.layout import HeadLayout
from prefheads.interventions.plan import BranchPlan, branches_of_one, without_branches
from prefheads.models.limits import out_of_memory
from prefheads.scoring.scorer import Scorer, token_nll
from prefheads.types import Target

# Share of the heads that is ablated; docs/performance.md has the recall of the exact top 4 %.
CANDIDATES = 0.1
DRAWS = 2  # responses drawn for the second derivative; each costs as much as ablating two heads
LOWEST = 4  # layers whose heads get a second estimate, along the layer's output


class _Dials(BranchedForward):
    """A pass with a dial on each head: 0 ablates it, 1 leaves it alone.

    Its rows, which leave the clean run at the layer ``first``, are alike, but each has dials of its
    own: one backward pass differentiates as many functions as there are rows.
    """

    def __init__(
        self, scorer: Scorer, layout: HeadLayout, target: Target, rows: int, first: int
    ) -> None:
        context = scorer.n_keys, scorer.profile, scorer.prompt
        alike = torch.ones(rows, *layout.shape)
        plan = BranchPlan(alike, 1, [first] * rows, [0] * rows, target)
        super().__init__(plan, *context, scorer.clean_run.recorded, scorer.active)
        zeros = without_branches(torch.zeros(1, *layout.shape), target)
        ablation = BranchedForward(zeros, *context, active=scorer.active)
        self.ablation = None if target == "head" else ablation
        self.inputs: dict[int, Tensor] = {}  # of each layer that has run
        self.dials: dict[int, Tensor] = {}

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Keep the layer's input, cut off from the graph of the layers below."""
        hidden, rest = super().enter_layer(index, hidden, rest)
        if index >= self.plan.first:
            self.inputs[index] = hidden = hidden.detach().requires_grad_()
        return hidden, rest

    def attend(self, call: AttentionCall) -> AttentionOutput:
        """Run the attention function, with dials on its output."""
        out, weights = super().attend(call)
        ablated = torch.zeros_like(out[:1])
        if self.ablation is not None:
            query, key, value = (x[:1] for x in (call.query, call.key, call.value))
            mask = None if call.mask is None else call.mask[:1]
            first_row = call.replace(query=query, key=key, value=value, mask=mask)
            with torch.no_grad():
                ablated, _ = self.ablation.attend(first_row)
        dial = torch.ones(len(out), 1, out.shape[2], 1, device=out.device, requires_grad=True)
        self.dials[call.layer] = dial
        change = out - ablated
        active = self.active.mask(0, out.shape[1], out.device)
        if active is not None:
            change = change * active[0, :, None, None].to(out.dtype)
        # Exactly the clean run's output where the dial is 1.
        return out + (dial - 1).to(out.dtype) * change, weights


def estimate_scores(
    scorer: Scorer, layout: HeadLayout, target: Target, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Second-order estimate of the PCS of every head on one example ``(n_layers, n_heads)``, in
    nats a token, and the NLL without ablation ``()``.

    Args:
        seed: With the example's id, fixes the draw for the second derivative.
    """
    name = scorer.encoded.example_id
    try:
        with torch.enable_grad():
            nll, derivatives = _derivatives(scorer, layout, target, f"{seed}:{name}")
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        why = str(error).partition("\n")[0]
        raise ModelError(
            f"{type(scorer.model).__name__} cannot be differentiated ({why}); use method 'exact'"
        ) from error
    first, drawn = derivatives[:, 0], derivatives[:, 1:]
    along = -first + drawn.square().mean(1) / (2 * len(scorer.targets))
    estimate = along.amax(0)  # along either line
    if not (torch.isfinite(estimate).all() and torch.isfinite(nll)):
        raise ModelError(
            f"the model's logits or gradients for example {name!r} are not finite; try float32"
        )
    return estimate, nll


def _derivatives(
    scorer: Scorer, layout: HeadLayout, target: Target, key: str
) -> tuple[Tensor, Tensor]:
    """The NLL ``()``, and derivatives by the dials ``(2, 1 + DRAWS, L, H)``: of the NLL and of
    log p(y) of drawn responses y, along the heads' outputs and (in the lowest layers; elsewhere
    the same again) the layers'.

    Only the graph of one layer is in memory at any time: the layers' inputs are known from the
    clean run, and each layer runs again when its turn comes to be differentiated.
    """
    rows, last = 1 + DRAWS, layout.shape[0] - 1
    run = _Dials(scorer, layout, target, rows, last)
    logits = scorer.run(run)
    nll = token_nll(logits[0], scorer.targets).mean()
    end: Tensor = nll + token_nll(logits[1:], _draw(logits[0], key)).sum()
    below, dial = torch.autograd.grad(end, (run.inputs[last], run.dials[last]))
    derivatives = [torch.stack([dial[:, 0, :, 0].cpu()] * 2)]
    replay = _Dials(scorer, layout, target, rows, 0)
    for index in reversed(range(last)):
        above = below
        with replay.running(layout):
            hidden, rest = scorer.clean_run.recorded[index], scorer.clean_run.rest[index]
            end = _call(layout.layers[index], hidden.expand(rows, -1, -1), rest)
        below, dial = torch.autograd.grad(
            end, (replay.inputs.pop(index), replay.dials.pop(index)), above
        )
        along = [dial[:, 0, :, 0].cpu()] * 2
        if index < LOWEST:
            moved = _moved(scorer, layout, target, index).to(above.dtype)
            along[1] = -torch.einsum("rtd,htd->rh", above, moved).cpu()
        derivatives.append(torch.stack(along))
    return nll.detach().cpu(), torch.stack(derivatives[::-1], 2)


@torch.no_grad()
def _moved(scorer: Scorer, layout: HeadLayout, target: Target, index: int) -> Tensor:
    """How far the ablation of each head moves the output of its layer, ``(H, T, width)``."""
    n_heads = layout.n_heads
    gains = torch.ones(n_heads, *layout.shape)
    gains[range(n_heads), index, range(n_heads)] = 0
    before, after = (scorer.clean_run.recorded[i] for i in (index, index + 1))

    def work(rows: slice) -> Tensor:
        plan, _ = branches_of_one(gains[rows], target)
        with scorer.branch(plan).running(layout):
            return _call(layout.layers[index], before, scorer.clean_run.rest[index]) - after

    parts = scorer.budget.run(n_heads, before.shape[1], work)
    return torch.cat([part for _, part in parts])


def _call(layer: nn.Module, hidden: Tensor, rest: Any) -> Tensor:
    """The output of a decoder layer for an input and what else it was given."""
    out = layer(hidden, *rest[0], **rest[1]) if isinstance(rest, tuple) else layer(hidden, **rest)
    result: Tensor = out[0] if isinstance(out, tuple) else out
    return result


def _draw(logits: Tensor, key: str) -> Tensor:
    """Responses (DRAWS, T) from the model's distributions (T, vocab) at the response's tokens."""
    generator = torch.Generator().manual_seed(random.Random(key).getrandbits(63))
    p = logits.detach().float().softmax(-1).nan_to_num(1).cpu()
    drawn = torch.multinomial(p, DRAWS, replacement=True, generator=generator)
    return drawn.T.to(logits.device)


def choose_candidates(estimates: Tensor, share: float) -> Tensor:
    """A share of the heads, at least one, with the highest mean of estimates ``(n_examples,
    n_layers, n_heads)``: ascending indices into the flattened heads. All examples ablate the same
    heads, so that the means over examples stay unbiased."""
    mean = estimates.double().mean(0).flatten()
    n = max(1, round(share * len(mean)))
    return mean.argsort(descending=True, stable=True)[:n].sort().values
