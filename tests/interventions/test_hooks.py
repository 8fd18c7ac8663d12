"""Calls of attention functions, and who is shown them."""

from __future__ import annotations

import threading

import pytest
import torch
from support.calls import attention_call
from support.models import random_ids, shared, tiny
from torch import nn

from prefheads.errors import ModelError
from prefheads.interventions.hooks import (
    LAYER,
    AttentionHook,
    AttentionRecorder,
    attribute_set_to,
    forward_hooks,
    hook_of,
    hooked,
    require_weights,
    routed,
    set_step_hook,
)
from prefheads.interventions.intercept import intercept

IDS = random_ids(7)[None]


class Everything(AttentionRecorder):
    everywhere = True

    def __init__(self) -> None:
        self.shapes: list[tuple[torch.Size, ...]] = []
        self.layers: list[int | None] = []

    def record(self, call, out, weights) -> None:
        self.shapes.append((call.query.shape, call.key.shape, out.shape))
        self.layers.append(vars(call.module).get(LAYER))


def test_a_call_can_be_run_again_with_other_arguments() -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    call = attention_call(query, key, value, layer=3, scaling=0.5)
    assert call.layer == 3
    changed = call.replace(query=2 * query, kwargs={"scaling": 0.25})
    assert torch.allclose(changed.run()[0], call.run()[0], atol=1e-6)
    assert call.query is query and call.kwargs == {"scaling": 0.5}
    assert torch.equal(AttentionHook().attend(call)[0], call.run()[0])


@torch.no_grad()
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_recorder_sees_all_calls_of_its_thread_while_a_model_is_routed(backend) -> None:
    model, seen = shared("llama", backend), Everything()
    with hooked(seen):
        model(IDS)
        assert not seen.shapes
        with routed(model):
            model(IDS)
            thread = threading.Thread(target=model, args=(IDS,))
            thread.start()
            thread.join()
    with routed(model):
        model(IDS)
    assert seen.layers == [None] * 3
    query, key, out = seen.shapes[0]
    assert query[1:3] == (4, 7) and key[1:3] == (2, 7) and out == (1, 7, 4, query[3])


@torch.no_grad()
def test_layers_have_numbers_while_a_model_is_intercepted() -> None:
    model, seen = tiny(), Everything()
    with intercept(model), hooked(seen):
        model(IDS)
    assert seen.layers == [0, 1, 2]
    assert not any(LAYER in vars(module) for module in model.modules())


def test_the_hook_of_a_step_comes_before_that_of_the_thread() -> None:
    module, of_thread, of_step = nn.Module(), AttentionHook(), AttentionHook()
    assert hook_of(module) is None
    with hooked(of_thread):
        assert hook_of(module) is of_thread
        set_step_hook([module], of_step)
        assert hook_of(module) is of_step
        set_step_hook([module], None)
        assert hook_of(module) is of_thread
    assert hook_of(module) is None


def test_weights_that_a_backend_does_not_return_are_missed_by_name() -> None:
    call = attention_call(*torch.randn(3, 1, 2, 3, 4))
    weights = torch.ones(1)
    assert require_weights(call, weights) is weights
    with pytest.raises(ModelError, match="Module does not show its attention weights"):
        require_weights(call, None)


def test_methods_and_hooks_of_modules() -> None:
    module = nn.Linear(2, 2)
    assert not forward_hooks(module)
    with attribute_set_to(module, "forward", lambda x: "outer"):
        with attribute_set_to(module, "forward", lambda x: "inner"):
            assert module(None) == "inner"
        assert module(None) == "outer"
    assert "forward" not in vars(module)
    handles = module.register_forward_hook(print), module.register_forward_pre_hook(print)
    assert list(forward_hooks(module)) == [handles[1].id, handles[0].id]
