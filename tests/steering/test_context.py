"""Steering: when it acts, how strongly, and what it makes of a given text."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.models import (
    ARCHITECTURES,
    SHAPE,
    SLIDING,
    random_ids,
    shared,
)
from support.reference import (
    plain_logits,
    response_loss,
    steered_logits,
)
from support.steered import (
    EXAMPLES,
    HARD,
    N_NEW,
    PROFILE_MASK,
    PROFILES,
    PROMPTS,
    SOFT,
    ZERO,
    assert_untouched,
    each_way,
    expected,
    generate,
    step_logits,
)

from prefheads.data.encoding import encode
from prefheads.errors import SteeringError
from prefheads.heads.weights import HeadWeights, Provenance, fingerprint
from prefheads.scoring.scorer import response_nll
from prefheads.steering.context import ScopeWarning, steer


@pytest.mark.parametrize("kind", [k for k in ARCHITECTURES if k not in SLIDING])
def test_hiding_the_profile_everywhere_equals_masking_it(kind) -> None:
    model = shared(kind)
    gamma, n = 1.5, len(PROMPTS[0])
    ids = torch.cat([PROMPTS[0], random_ids(4, seed=9)])
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    seen[n - 1 :, :n] &= ~PROFILES[0]
    with torch.no_grad():
        bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        hidden = model(input_ids=ids[None], attention_mask=bias[None, None]).logits[0]
    wanted = (1 + gamma) * plain_logits(model, ids) - gamma * hidden
    with (
        torch.no_grad(),
        steer(model, torch.ones(SHAPE), gamma, target="profile", profile_mask=PROFILES[0]),
    ):
        first = model(input_ids=ids[None, :n], use_cache=True, logits_to_keep=1)
        found = [first.logits[0, -1]]
        cache = first.past_key_values
        for token in ids[n:]:
            found.append(model(input_ids=token[None, None], past_key_values=cache).logits[0, -1])
    assert (torch.stack(found) - wanted[n - 1 :]).abs().max() < 1e-4
    assert (wanted[n - 1 :] - plain_logits(model, ids)[n - 1 :]).abs().max() > 0.1


@pytest.mark.parametrize("mode", ["contrast", "amplify"])
@pytest.mark.parametrize("target", ["head", "profile"])
def test_a_prompt_that_was_encoded_before(mode, target) -> None:
    model, how = shared("llama"), {"mode": mode, "target": target}
    with torch.no_grad():
        cache = model(input_ids=PROMPTS[0][None, :9], use_cache=True).past_key_values
        with steer(model, SOFT, 1.5, profile_mask=PROFILES[0], **how):
            new = generate(model, PROMPTS[0], past_key_values=cache)
    assert new == [expected(model, 0, SOFT, 1.5, **how)]


def test_heads_found_for_another_scope_warn() -> None:
    model = shared("llama")
    heads = HeadWeights(SOFT, Provenance(scope="all", fingerprint=fingerprint(model.config)))
    with pytest.warns(ScopeWarning, match="scope='all'.*scope='response'"), steer(model, heads, 1):
        new = generate(model, PROMPTS[0])
    assert new == [expected(model, 0, SOFT, 1.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steer(model, heads, 1, scope="all"):
            pass
        with steer(model, HeadWeights(SOFT), 1, scope="all"):  # of no scope in particular
            pass


# -- nothing to steer --------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize(("weights", "gamma"), [(SOFT, 0.0), (ZERO, 3.0), (SOFT, [0.0, 0, 0])])
def test_strength_zero_is_exactly_plain(weights, gamma, how) -> None:
    model = shared("llama")
    plain, plain_steps = step_logits(model)
    with steer(model, weights, gamma, profile_mask=PROFILE_MASK, **how):
        assert "forward" not in model.__dict__
        assert model.config._attn_implementation == "sdpa"
        new, steps = step_logits(model)
    assert new == plain
    assert torch.equal(steps, plain_steps)


def test_no_suppression_is_exactly_plain() -> None:
    model = shared("llama")
    _, plain = step_logits(model)
    with steer(model, SOFT, 2.0, suppression=0.0):
        assert torch.equal(step_logits(model)[1], plain)


# -- schedules and plausibility ----------------------------------------------------------------


def test_plausibility_leaves_users_without_heads_alone() -> None:
    model = shared("llama")
    _, plain = step_logits(model)
    with steer(model, torch.stack([SOFT, ZERO, SOFT]), [2.0, 2.0, 0.0], plausibility=0.5):
        _, logits = step_logits(model)
    assert logits[0].isneginf().any()
    assert (logits[1:] - plain[1:]).abs().max() < 1e-5


@pytest.mark.parametrize("cap", [None, 1.2])
def test_entropy_schedule(cap) -> None:
    model = shared("llama")
    with steer(model, SOFT, 0.5, schedule="entropy", cap=cap):
        new, logits = step_logits(model, PROMPTS[0])
    for step in range(N_NEW):
        ids = torch.cat([PROMPTS[0], torch.tensor(new[0][:step], dtype=torch.long)])
        plain = plain_logits(model, ids)[-1]
        contrast = steered_logits(model, ids, 17, SOFT, 1.0)[-1] - plain
        p = plain.softmax(-1)
        strength = 0.5 * float(-(p * p.log()).sum())
        assert strength > 1.2 or cap is None  # so that the cap is what decides
        strength = strength if cap is None else min(strength, cap)
        assert (logits[0, step] - (plain + strength * contrast)).abs().max() < 1e-4


def test_plausibility_rules_out_what_the_model_finds_unlikely() -> None:
    model = shared("llama")
    with steer(model, SOFT, 5.0, plausibility=0.3):
        new, logits = step_logits(model, PROMPTS[0])
    for step in range(N_NEW):
        ids = torch.cat([PROMPTS[0], torch.tensor(new[0][:step], dtype=torch.long)])
        p = plain_logits(model, ids)[-1].softmax(-1)
        allowed = p >= 0.3 * p.max()
        assert torch.equal(logits[0, step] > float("-inf"), allowed)
        wanted = steered_logits(model, ids, 17, SOFT, 5.0)[-1]
        assert (logits[0, step] - wanted)[allowed].abs().max() < 1e-4


# -- likelihood under steering -----------------------------------------------------------------


def expected_nll(model, tokenizer, example, weights, gamma, **how):
    encoded = encode(tokenizer, example)
    ids = torch.cat([encoded.prompt_ids, encoded.response_ids])
    how = {"profile": encoded.profile_mask} | how
    return response_loss(
        steered_logits(model, ids, len(encoded.prompt_ids), weights, gamma, **how), encoded
    )


@each_way
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt2"])
def test_response_nll_under_steering(kind, how, characters) -> None:
    model = shared(kind)
    before = plain_logits(model, PROMPTS[0])
    plain = response_nll(model, characters, EXAMPLES)
    with steer(model, SOFT, 0.7, suppression=0.9, **how):
        together = response_nll(model, characters, EXAMPLES)
        single = response_nll(model, characters, EXAMPLES, batch_size=1)
    wanted = torch.stack(
        [expected_nll(model, characters, e, SOFT, 0.7, suppression=0.9, **how) for e in EXAMPLES]
    )
    assert (single - wanted).abs().max() < 1e-5
    assert (together - wanted).abs().max() < 1e-5
    assert how["target"] == "profile" or (wanted - plain).abs().min() > 1e-3
    assert_untouched(model, before)


@each_way
def test_response_nll_of_different_users(how, characters) -> None:
    model = shared("llama")
    weights, gammas = torch.stack([HARD, SOFT, ZERO]), [0.5, 1.0, 1.0]
    with steer(model, weights, gammas, **how):
        found = response_nll(model, characters, EXAMPLES, batch_size=2)
    for row in range(3):
        wanted = expected_nll(model, characters, EXAMPLES[row], weights[row], gammas[row], **how)
        assert (found[row] - wanted).abs() < 1e-5


def test_response_nll_needs_one_example_for_each_user(characters) -> None:
    model = shared("llama")
    with (
        steer(model, SOFT, [1.0, 2.0]),
        pytest.raises(SteeringError, match=r"batch of 3.*2 users"),
    ):
        response_nll(model, characters, EXAMPLES)


def test_generation_after_scoring_in_one_block(characters) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5, target="profile", profile_mask=PROFILES[0]):
        response_nll(model, characters, EXAMPLES)
        new = generate(model, PROMPTS[0])
    assert new == [expected(model, 0, SOFT, 1.5, target="profile")]
