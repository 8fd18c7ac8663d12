"""Steering of models that read pictures, against full passes in which nothing is shared."""

from __future__ import annotations

import itertools
import os
from functools import cache as remembered
from typing import Any, NamedTuple

import pytest
import torch
from support.matrix import EXACT, gained, gap
from support.pictures import PICTURES, REFUSED, picture_inputs, tiny_picture_model
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.errors import ModelError
from prefheads.interventions.intercept import head_layout
from prefheads.steering.context import steer

N_NEW = 3
FULL = bool(os.environ.get("PREFHEADS_FULL_MATRIX"))
# Kinds that are not steered, with a part of the reason.
STEERED = [kind for kind in PICTURES if kind not in REFUSED]
# What there is of each token, and what new ones have.
PER_TOKEN = {"input_ids": None, "attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}

Inputs = dict[str, Tensor]


class Way(NamedTuple):
    """One way to steer."""

    mode: str
    target: str
    scope: str
    cache: str

    def options(self, profile: Tensor) -> dict[str, Any]:
        how = {"mode": self.mode, "target": self.target, "scope": self.scope}
        return how | {"profile_mask": profile}


WAYS = [
    Way(*way)
    for way in itertools.product(
        ("contrast", "amplify"), ("head", "profile"), ("response", "all"), ("dynamic", "static")
    )
]
FIRST = [
    Way("contrast", "head", "response", "dynamic"),
    Way("contrast", "head", "all", "static"),
]


def cells(rotating: bool = False) -> list[Any]:
    """Kinds and ways: all, or every kind in the first ways and, rotating, every way on a kind."""
    if FULL:
        chosen = list(itertools.product(STEERED, WAYS))
    else:
        others = [way for way in WAYS if way not in FIRST] if rotating else []
        chosen = [
            *itertools.product(STEERED, FIRST),
            *zip(itertools.cycle(STEERED), others, strict=False),
        ]
    return [pytest.param(kind, way, id="-".join((kind, *way))) for kind, way in chosen]


@remembered
def model_of(kind: str) -> PreTrainedModel:
    return tiny_picture_model(kind)


def maps_of(model: PreTrainedModel) -> Tensor:
    """Maps of two users (2, L, H): one of all layers, and one that begins in the middle."""
    n_layers, n_heads = head_layout(model).shape
    maps = torch.rand(2, n_layers, n_heads, generator=torch.Generator().manual_seed(3))
    maps[1, : n_layers // 2] = 0
    return maps


def profile_of(n_prompt: int) -> Tensor:
    """Some words after the picture."""
    return torch.arange(n_prompt).ge(n_prompt - 6) & torch.arange(n_prompt).lt(n_prompt - 2)


def generated(model: PreTrainedModel, inputs: Inputs, way: Way, **options: Any) -> Any:
    """New tokens (B, n_new), and their logits (B, n_new, vocab) before processors."""
    if way.cache == "static":
        options |= {"cache_implementation": "static", "disable_compile": True}
    out = model.generate(
        **inputs,
        max_new_tokens=N_NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1).float()


def full_logits(model: PreTrainedModel, inputs: Inputs, new: Tensor) -> Tensor:
    """Logits (n_new, vocab) that predict the new tokens of a prompt, of one pass over all."""
    n, seen = inputs["input_ids"].shape[1], dict(inputs)
    for name, value in PER_TOKEN.items():
        if name in inputs:
            more = new[:-1] if value is None else torch.full_like(new[:-1], value)
            seen[name] = torch.cat([inputs[name], more[None]], 1)
    with torch.no_grad():
        return model(**seen, use_cache=False).logits[0, n - 1 :].float()


def wanted_logits(
    model: PreTrainedModel, inputs: Inputs, new: Tensor, weights: Tensor, way: Way
) -> Tensor:
    """The same, steered with strength 1."""
    n = inputs["input_ids"].shape[1]
    gains = 1 + weights if way.mode == "amplify" else 1 - weights
    profile = torch.cat([profile_of(n), torch.zeros(len(new) - 1, dtype=torch.bool)])
    with gained(model, gains, way.target, n - 1 if way.scope == "response" else 0, profile):
        changed = full_logits(model, inputs, new)
    return changed if way.mode == "amplify" else 2 * full_logits(model, inputs, new) - changed


@pytest.mark.parametrize(("kind", "way"), cells(rotating=True))
def test_each_step_equals_full_passes(kind, way) -> None:
    model, inputs = model_of(kind), picture_inputs(kind)
    (plain,), before = generated(model, inputs, way)
    assert gap(before[0], full_logits(model, inputs, plain)) < EXACT / 10
    profile = profile_of(inputs["input_ids"].shape[1])
    for weights in maps_of(model):
        with steer(model, weights, 1.0, **way.options(profile)):
            (new,), (logits,) = generated(model, inputs, way)
        assert gap(logits, wanted_logits(model, inputs, new, weights, way)) < EXACT
        assert gap(logits[0], before[0, 0]) > 10 * EXACT
    assert torch.equal(generated(model, inputs, way)[1], before)


def without_first_words(inputs: Inputs, n: int) -> Inputs:
    return {k: x[:, n:] if k in PER_TOKEN else x for k, x in inputs.items()}


def together(rows: list[Inputs]) -> Inputs:
    """Prompts as one batch, padded on the left."""
    width = max(row["input_ids"].shape[1] for row in rows)
    padded = [
        {
            k: torch.nn.functional.pad(x, (width - x.shape[1], 0)) if k in PER_TOKEN else x
            for k, x in row.items()
        }
        for row in rows
    ]
    return {name: torch.cat([row[name] for row in padded]) for name in rows[0]}


@pytest.mark.parametrize("beams", [1, 3] if FULL else [3])
@pytest.mark.parametrize(("kind", "way"), cells())
def test_pictures_of_two_users_are_as_each_alone(kind, way, beams) -> None:
    model = model_of(kind)
    rows = [picture_inputs(kind), without_first_words(picture_inputs(kind, seed=1), 2)]
    lengths = [row["input_ids"].shape[1] for row in rows]
    maps, gammas, options = maps_of(model), (1.0, 0.6), {"num_beams": beams}
    profile = torch.nn.functional.pad(profile_of(lengths[1]), (lengths[0] - lengths[1], 0))
    profile = torch.stack([profile_of(lengths[0]), profile])
    with steer(model, maps, gammas, **way.options(profile)):
        new, logits = generated(model, together(rows), way, **options)
    for i, row in enumerate(rows):
        with steer(model, maps[i], gammas[i], **way.options(profile_of(lengths[i]))):
            (alone,), wanted = generated(model, row, way, **options)
        assert torch.equal(new[i], alone)
        assert gap(logits[beams * i : beams * (i + 1)], wanted) < EXACT


@pytest.mark.parametrize(("kind", "way"), cells())
def test_beams_under_next_to_nothing_are_plain_beams(kind, way) -> None:
    model, inputs = model_of(kind), picture_inputs(kind)
    plain, wanted = generated(model, inputs, way, num_beams=3, num_return_sequences=3)
    profile = profile_of(inputs["input_ids"].shape[1])
    with steer(model, maps_of(model)[0], 1e-6, **way.options(profile)):
        new, logits = generated(model, inputs, way, num_beams=3, num_return_sequences=3)
    assert torch.equal(new, plain)
    assert gap(logits, wanted) < EXACT


@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_refused_in_one_line(kind) -> None:
    model, inputs = model_of(kind), picture_inputs(kind)
    before = generated(model, inputs, FIRST[0])[1]
    weights = torch.ones(model.config.get_text_config().num_hidden_layers, 4)
    with pytest.raises(ModelError, match=REFUSED[kind]) as caught, steer(model, weights, 1.0):
        pytest.fail("the block was entered")
    assert "\n" not in str(caught.value)
    assert torch.equal(generated(model, inputs, FIRST[0])[1], before)
