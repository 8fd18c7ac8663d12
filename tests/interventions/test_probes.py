"""Models whose attention makes something else of what the cache gives: right, and not shared."""

from __future__ import annotations

import pytest
import torch
from support.models import UNUSUAL, random_encoded, shared
from support.reference import naive_nll
from support.steered import PROMPTS, SOFT, assert_steered, generate, step_logits
from transformers import DynamicCache

from prefheads.interventions import probes
from prefheads.interventions.cache import BranchedLayer
from prefheads.interventions.intercept import head_layout, intercept
from prefheads.interventions.probes import sharing_of
from prefheads.scoring.scorer import Scorer
from prefheads.steering.context import steer

# What reaches the output projection of the others is not the heads' outputs one by one.
PROJECTED = ("deepseek_v2", "deepseek_v3", "minicpm3", "doge")
DYNAMIC = ("doge",)  # makes masks of all values


def maps(model) -> torch.Tensor:
    return torch.rand(head_layout(model).shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gpt2", "gpt_neox", *UNUSUAL])
def test_who_can_share(kind) -> None:
    model = shared(kind)
    with intercept(model):
        sharing = sharing_of(model)
    assert sharing.cached == (kind not in UNUSUAL)
    assert sharing.recorded == (kind not in DYNAMIC)


def test_it_is_looked_for_once(monkeypatch) -> None:
    model, looked = shared("jetmoe"), []
    probes._found.pop(head_layout(model), None)
    look = probes._find
    monkeypatch.setattr(probes, "_find", lambda m: looked.append(m) or look(m))
    for _ in range(2):
        with steer(model, maps(model), 1.0):
            generate(model, PROMPTS[0], n_new=2)
    assert looked == [model]


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_contrast_is_that_of_full_passes(kind) -> None:
    model, cache = shared(kind), DynamicCache(config=shared(kind).config)
    with steer(model, maps(model), 1.5):
        new, logits = step_logits(model, PROMPTS[0], past_key_values=cache)
    assert not any(isinstance(layer, BranchedLayer) for layer in cache.layers)
    if kind in PROJECTED:
        assert_steered(model, PROMPTS[0], new[0], logits[0], maps(model), 1.5)
    plain = generate(model, PROMPTS[0])
    with steer(model, maps(model), 1e-7):
        assert generate(model, PROMPTS[0]) == plain


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("target", ["head", "profile"])
def test_scores_are_those_of_full_passes(kind, target) -> None:
    model, encoded = shared(kind), random_encoded()
    n_layers, n_heads = head_layout(model).shape
    gains = torch.ones(5, n_layers, n_heads)
    gains[0, 0, 1] = gains[1, n_layers - 1, 0] = gains[2, 1, 2] = 0
    gains[3] = SOFT[:1, :1]
    with intercept(model):
        scorer = Scorer(model, encoded, "response")
        base, found = scorer.nll(gains, target)
        assert (scorer.prompt is None) == (kind in DYNAMIC)
    ones = torch.ones(n_layers, n_heads)
    assert (base - naive_nll(model, encoded, ones)).abs() < 1e-5
    if target == "head" and kind in PROJECTED:
        wanted = torch.stack([naive_nll(model, encoded, g) for g in gains])
        assert (found - wanted).abs().max() < 1e-5
    assert (found[4] - base).abs() < 1e-5 and (found[:4] - base).abs().min() > 1e-5
