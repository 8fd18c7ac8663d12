"""A branched forward pass: which rows run in which layer, and what they give."""

from __future__ import annotations

import pytest
import torch
from support.calls import attention_call
from support.models import SHAPE, random_encoded, shared, tiny
from support.reference import steered_logits

from prefheads.interventions.branching import BranchedForward, CompiledStep
from prefheads.interventions.hooks import hooked
from prefheads.interventions.intercept import head_layout, intercept
from prefheads.interventions.plan import ActivePositions, BranchPlan, without_branches

ENCODED = random_encoded()
IDS = ENCODED.prompt_ids
STARTS = [0, 1, 2]


def branches(target="head", active=0, layer_inputs=None) -> tuple[BranchedForward, torch.Tensor]:
    """A pass of one base row and a branch for each layer; and the gains of all rows."""
    gains = torch.ones(4, *SHAPE)
    for row, layer in enumerate(STARTS, 1):
        gains[row, layer:] = torch.rand(3 - layer, 4, generator=torch.Generator().manual_seed(row))
    plan = BranchPlan(gains if layer_inputs is None else gains[1:], 1, STARTS, [0] * 3, target)
    profile = ENCODED.profile_mask[None]
    given = {"layer_inputs": layer_inputs, "active": ActivePositions(active)}
    return BranchedForward(plan, len(IDS), profile, **given), gains


@torch.no_grad()
@pytest.mark.parametrize("target", ["head", "profile", "query"])
@pytest.mark.parametrize("start", [0, 9])
def test_each_row_is_a_full_pass_of_its_own(target, start) -> None:
    model = shared("llama")
    together, gains = branches(target, start)
    with intercept(model), hooked(together):
        found = model(IDS[None]).logits
    assert len(found) == 4
    for row, gain in zip(found, gains, strict=True):
        plan = without_branches(gain[None], target)
        alone = BranchedForward(
            plan, len(IDS), ENCODED.profile_mask[None], active=ActivePositions(start)
        )
        with intercept(model), hooked(alone):
            wanted = model(IDS[None]).logits[0]
        assert (row - wanted).abs().max() < 1e-5
    if target == "head":
        how = {"mode": "contrast", "scope": "response" if start else "all"}
        wanted = steered_logits(model, IDS, start + 1, 1 - gains[1], 1.0, **how)
        assert (2 * found[0] - found[1] - wanted)[start:].abs().max() < 1e-4


@torch.no_grad()
def test_rows_join_where_they_leave_and_no_earlier() -> None:
    model, rows = tiny(), []
    layout = head_layout(model)
    handles = [
        x.mlp.register_forward_hook(lambda m, args, out: rows.append(len(out)))
        for x in layout.layers
    ]
    together, _ = branches()
    with intercept(model), hooked(together):
        model(IDS[None])
    assert rows == [2, 3, 4]
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_branches_go_on_from_recorded_layer_inputs() -> None:
    model = tiny()
    together, _ = branches()
    with intercept(model), hooked(together):
        wanted = model(IDS[None]).logits[1:]
    inputs = dict(enumerate(model(IDS[None], output_hidden_states=True).hidden_states))
    alone, _ = branches(layer_inputs=inputs)
    with intercept(model) as layout, alone.running(layout):
        found = model(IDS[None]).logits
    assert (found - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_layers_below_the_first_branch_pass_on_what_enters_them() -> None:
    model, ran = tiny(), []
    layout = head_layout(model)
    handles = [x.mlp.register_forward_hook(lambda m, *_: ran.append(m)) for x in layout.layers]
    none = BranchedForward(without_branches(torch.ones(1, *SHAPE), "head"), 1, layer_inputs={})
    with none.running(layout):
        out = model(IDS[None], output_hidden_states=False).logits
    assert not ran
    hidden = model.model.norm(model.model.embed_tokens(IDS[None]))
    assert torch.allclose(out, model.lm_head(hidden), atol=1e-6)
    for handle in handles:
        handle.remove()
    assert not any("forward" in layer.__dict__ for layer in layout.layers)


@torch.no_grad()
@pytest.mark.parametrize("target", ["head", "query"])
def test_a_compiled_step_does_what_a_branched_forward_does(target) -> None:
    model, generator = shared("llama"), torch.Generator().manual_seed(0)
    gains = torch.cat([torch.ones(2, *SHAPE), torch.rand(2, *SHAPE, generator=generator)])
    plan = BranchPlan(gains, 2, [0, 0], [0, 1], target)
    step, branched = CompiledStep(plan, head_layout(model)), BranchedForward(plan, 5)
    query, keys = torch.randn(4, 4, 1, 8), torch.randn(4, 2, 5, 8)
    for layer in range(3):
        call = attention_call(query, keys, keys, layer=layer)
        assert torch.allclose(step.attend(call)[0], branched.attend(call)[0], atol=1e-6)
    hidden, rest = torch.randn(2, 1, 32), {"position_ids": torch.tensor([[3], [4]]), "x": None}
    (a, found), (b, wanted) = (x.enter_layer(0, hidden, rest) for x in (step, branched))
    assert torch.equal(a, b) and torch.equal(found["position_ids"], wanted["position_ids"])
