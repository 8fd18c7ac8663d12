"""Backends that take masks, and masks as biases."""

from __future__ import annotations

import pytest
import torch
from support.models import SHAPE, random_encoded, shared

from prefheads.errors import ModelError
from prefheads.interventions import intercept as module
from prefheads.interventions.intercept import head_layout, intercept, masked_backend
from prefheads.interventions.shared_prompt import as_bias
from prefheads.scoring.scorer import Scorer
from prefheads.steering.context import steer


@pytest.mark.parametrize("backend", ["flash_attention_2", "flash_attention_3", "some-kernel"])
def test_backends_that_take_no_bias_are_refused_for_the_profile(backend, monkeypatch) -> None:
    model = shared("llama")
    head_layout(model)
    monkeypatch.setattr(module, "attention_backend", lambda _: backend)
    profile = torch.ones(1, 12, dtype=torch.bool)
    with (
        pytest.raises(ModelError, match=f"{backend}.*sdpa") as caught,
        steer(model, torch.ones(SHAPE), 1.0, target="profile", profile_mask=profile),
    ):
        pytest.fail("the block was entered")
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == "sdpa"


def test_flex_attention_has_an_exact_stand_in(monkeypatch) -> None:
    monkeypatch.setattr(module, "attention_backend", lambda _: "flex_attention")
    assert masked_backend(shared("llama")) == "sdpa"
    assert masked_backend(shared("gemma2")) == "eager"  # has a soft cap
    monkeypatch.undo()
    assert masked_backend(shared("llama")) == "sdpa"
    assert masked_backend(shared("llama", "eager")) == "eager"


def test_every_form_of_mask_becomes_the_same_bias() -> None:
    query, low = torch.zeros(1, 4, 2, 8), torch.finfo(torch.float32).min
    seen = torch.tensor([[True, True, True, False], [True, True, True, True]])[None, None]
    additive = torch.zeros(1, 1, 2, 4).masked_fill(~seen, low)
    for mask in (None, seen, additive, torch.nn.functional.pad(additive, (0, 3))):
        assert torch.equal(as_bias(mask, query, 2, 4), additive)
    half = as_bias(seen, query.bfloat16(), 2, 4)
    assert half.dtype == torch.bfloat16
    assert half.min() == torch.finfo(torch.bfloat16).min


def test_without_a_mask_spare_keys_at_the_end_are_not_seen() -> None:
    bias = as_bias(None, torch.zeros(1, 1, 2, 8), 1, 6)[0, 0]
    assert (bias == 0).tolist() == [[True, True, *[False] * 4], [True, True, True, *[False] * 3]]


def test_scoring_needs_no_mask_of_the_model_s_own() -> None:
    """A prompt without padding comes without a mask in sdpa; eager always writes one."""
    encoded, gains = random_encoded(), torch.rand(5, *SHAPE)
    found = []
    for backend in ("sdpa", "eager"):
        model = shared("llama", backend)
        with intercept(model, masked_backend(model)):
            found.append(Scorer(model, encoded, "response").nll(gains, "profile")[1])
    assert (found[0] - found[1]).abs().max() < 1e-5
