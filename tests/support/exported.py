"""What the tests of export compare: a model, steered, and the same from its files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from support.models import ARCHITECTURES, SHAPE, random_ids, shared, tiny
from torch import nn
from transformers import PreTrainedModel

import prefheads as ph
from prefheads.heads.weights import HeadWeights
from prefheads.interventions.projection import find_projections

HEADS = HeadWeights.from_heads(SHAPE, [(0, 1), (2, 0), (2, 3)])
SOFT = HeadWeights(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)))
GAMMA = 0.7
IDS = random_ids(19)[None]
NEW = 8
PLACES = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
}


@torch.no_grad()
def answers(model: Any, ids: torch.Tensor = IDS, **options: Any) -> tuple[torch.Tensor, list[Any]]:
    """Logits of a prompt, and greedy tokens after it."""
    logits = model(input_ids=ids, **options).logits
    choice = {"max_new_tokens": NEW, "do_sample": False}
    return logits, model.generate(input_ids=ids, **choice, **options).tolist()


def steered(
    model: PreTrainedModel, heads: HeadWeights, gamma: float = GAMMA, ids: torch.Tensor = IDS
) -> tuple[torch.Tensor, list[Any]]:
    with ph.steer(model, heads, gamma, mode="amplify", target="head", scope="all"):
        return answers(model, ids)


def assert_same(found: tuple[torch.Tensor, list[Any]], wanted: tuple[torch.Tensor, list[Any]]):
    assert (found[0] - wanted[0]).abs().max() < 1e-5 * wanted[0].abs().max().clamp_min(1)
    assert found[1] == wanted[1]


def reloaded(model: PreTrainedModel, folder: Path, name: str = "default") -> PeftModel:
    """A copy of the model with an adapter; PEFT changes the model it is given."""
    return PeftModel.from_pretrained(copy.deepcopy(model), folder, adapter_name=name).eval()


def biased(kind: str, **changes: object) -> PreTrainedModel:
    """A model whose projections have large biases, which amplification must leave alone."""
    model = tiny(kind, **changes)
    for projection in find_projections(model):
        nn.init.normal_(projection.module.bias)
    return model


VARIANTS = {
    **{kind: lambda kind=kind: shared(kind) for kind in ARCHITECTURES},
    "llama, biases": lambda: biased("llama", attention_bias=True),
    "gpt2, biases": lambda: biased("gpt2"),
    "starcoder2, biases": lambda: biased("starcoder2", use_bias=True),
    "llama, wide heads": lambda: tiny("llama", head_dim=16),
    "llama, narrow heads": lambda: tiny("llama", head_dim=4, num_key_value_heads=1),
}
