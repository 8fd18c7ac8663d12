"""The projections that read the heads' outputs."""

from __future__ import annotations

import pytest
import torch
from support.models import shared, tiny
from torch import nn

from prefheads.errors import ModelError
from prefheads.interventions.projection import find_projections


@pytest.mark.parametrize(
    ("kind", "name", "transposed"),
    [
        ("llama", "model.layers.{}.self_attn.o_proj", False),
        ("gpt2", "transformer.h.{}.attn.c_proj", True),
        ("gpt_neox", "gpt_neox.layers.{}.attention.dense", False),
    ],
)
def test_they_are_found_by_what_they_read(kind, name, transposed) -> None:
    model = shared(kind)
    found = find_projections(model)
    assert [p.name for p in found] == [name.format(i) for i in range(3)]
    for projection in found:
        assert projection.module is model.get_submodule(projection.name)
        assert projection.transposed == transposed
        stored = projection.module.weight
        assert torch.equal(projection.weight, stored.T if transposed else stored)


def test_what_stands_between_heads_and_projection_is_refused() -> None:
    model = tiny()
    projection = model.model.layers[1].self_attn.o_proj
    projection.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    with pytest.raises(ModelError, match="something between the heads of layer 1"):
        find_projections(model)


def test_shared_projections_are_refused() -> None:
    model = tiny()
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    second.o_proj = nn.Linear(*reversed(first.o_proj.weight.shape), bias=False)
    second.o_proj.weight = first.o_proj.weight
    with pytest.raises(ModelError, match="shares an output projection"):
        find_projections(model)
