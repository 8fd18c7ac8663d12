"""What users do to a model or a cache around steering: right, or refused in one line."""

from __future__ import annotations

import copy

import pytest
import torch
from support.matrix import gap
from support.models import SHAPE, random_ids, shared, tiny
from support.reference import plain_logits, steered_logits
from support.steered import HARD, PROFILES, PROMPTS, SOFT, assert_untouched, generate
from transformers import DynamicCache, EncoderDecoderCache, LlamaForCausalLM

import prefheads as ph
from prefheads.errors import SteeringError
from prefheads.interventions.intercept import head_layout, intercept
from prefheads.interventions.probes import sharing_of

N_NEW = 4


def steps(model, ids, **options):
    out = model.generate(
        ids,
        max_new_tokens=N_NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return out.sequences, torch.stack(out.logits, 1)[0]


@pytest.mark.parametrize("target", ["head", "profile"])
@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_only_the_new_tokens_on_a_cache_that_holds_the_others(mode, target) -> None:
    """They are the end of a prompt, whose last token alone is steered."""
    model, prompt = shared("llama"), PROMPTS[0]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompt[None, :9], past_key_values=cache)
    how, ones = {"mode": mode, "target": target}, torch.ones(1, 17).long()
    with ph.steer(model, SOFT, 1.5, profile_mask=PROFILES[0], **how):
        new, logits = steps(model, prompt[None, 9:], past_key_values=cache, attention_mask=ones)
    ids = torch.cat([prompt, new[0, 8:-1]])
    wanted = steered_logits(model, ids, 17, SOFT, 1.5, profile=PROFILES[0], **how)[16:]
    assert gap(logits, wanted) < 5e-5


def test_a_further_turn_with_its_own_tokens_alone_is_refused() -> None:
    model, cache = shared("llama"), DynamicCache(config=shared("llama").config)
    with ph.steer(model, SOFT, 1.5):
        generate(model, PROMPTS[0], past_key_values=cache)
        with pytest.raises(SteeringError, match="further turns"):
            steps(model, random_ids(5)[None], past_key_values=cache)


@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_attention_changed_inside_a_block_is_refused(mode) -> None:
    model = tiny()
    with ph.steer(model, SOFT, 1.0, mode=mode):
        model.set_attn_implementation("eager")
        with pytest.raises(SteeringError, match="changed inside the block"):
            generate(model, PROMPTS[0])
        model.set_attn_implementation("sdpa")
        generate(model, PROMPTS[0])


def test_checkpointing_begun_inside_a_block_is_refused() -> None:
    model = tiny()
    with ph.steer(model, SOFT, 1.0):
        model.gradient_checkpointing_enable()
        model.train()
        with pytest.raises(SteeringError, match="eval"):
            model(PROMPTS[0][None], logits_to_keep=1)
        model.eval()


def test_a_model_without_a_cache_gets_none() -> None:
    model = tiny()
    model.config.use_cache = False
    with torch.no_grad(), ph.steer(model, SOFT, 1.5), ph.response_from(17):
        out = model(PROMPTS[0][None])
    assert out.get("past_key_values") is None
    assert gap(out.logits[0, -1], steered_logits(model, PROMPTS[0], 17, SOFT, 1.5)[-1]) < 5e-5


def test_tokens_that_a_model_rules_out_do_not_keep_branches_from_sharing() -> None:
    model = tiny()
    head = model.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(97))
    head.bias.data[5] = float("-inf")
    with intercept(model):
        assert sharing_of(model).recorded and sharing_of(model).any_layer


@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_models_that_share_layers_are_steered_one_at_a_time(mode) -> None:
    one = tiny()
    other = LlamaForCausalLM(one.config).eval()
    other.model = one.model
    with ph.steer(one, SOFT, 1.0, mode=mode):
        before = generate(one, PROMPTS[0])
        with pytest.raises(SteeringError, match="shares its layers"), ph.steer(other, SOFT, 1.0):
            pass
        assert generate(one, PROMPTS[0]) == before


@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_layers_that_were_replaced_are_found_again(mode) -> None:
    model, donor = tiny(), tiny(seed=1)
    with ph.steer(model, SOFT, 1.0):
        generate(model, PROMPTS[0])
    model.model.layers[1].self_attn = donor.model.layers[1].self_attn
    with ph.steer(model, SOFT, 1.5, mode=mode):
        new, logits = steps(model, PROMPTS[0][None])
    ids = new[0, :-1]
    assert gap(logits, steered_logits(model, ids, 17, SOFT, 1.5, mode=mode)[16:]) < 5e-5
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    assert head_layout(model).shape == (2, 4)


def test_a_cache_of_another_kind() -> None:
    model = shared("gpt2")
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with ph.steer(model, SOFT, 1.0), pytest.raises(SteeringError, match="EncoderDecoderCache"):
        generate(model, PROMPTS[0], past_key_values=cache)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_a_forked_cache_outside_of_its_block_is_refused(kind, implementation) -> None:
    model = shared(kind)
    options = {} if implementation == "dynamic" else {"cache_implementation": "static"}
    with ph.steer(model, SOFT, 1.0):
        out = model.generate(
            PROMPTS[0][None], max_new_tokens=4, return_dict_in_generate=True, **options
        )
    with torch.no_grad(), pytest.raises(SteeringError, match="fresh cache"):
        model(torch.tensor([[5]]), past_key_values=out.past_key_values)


def test_a_model_is_not_copied_inside_a_block() -> None:
    model = tiny()
    before = plain_logits(model, PROMPTS[0])
    with ph.steer(model, SOFT, 1.0), pytest.raises(SteeringError, match="copied"):
        copy.deepcopy(model)
    assert_untouched(model, before)
    assert torch.equal(plain_logits(copy.deepcopy(model), PROMPTS[0]), before)


def test_generate_knows_its_own_prompt_better() -> None:
    model = shared("llama")
    with ph.steer(model, HARD, 2.0):
        wanted = generate(model, PROMPTS[0])
        with ph.response_from(5):
            assert generate(model, PROMPTS[0]) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": []},
        {"gamma": None},
        {"gamma": "much"},
        {"gamma": torch.tensor([1 + 1j])},
        {"weights": None},
        {"weights": "all"},
        {"weights": torch.ones(SHAPE, dtype=torch.complex64)},
        {"suppression": None},
        {"suppression": "full"},
        {"suppression": torch.tensor([0.5, 1.0])},
        {"schedule": "entropy", "cap": float("nan")},
        {"schedule": "entropy", "cap": "none"},
        {"plausibility": "some"},
        {"target": "profile", "profile_mask": "all"},
    ],
    ids=str,
)
def test_what_is_no_number_is_refused(options) -> None:
    given = {"weights": SOFT, "gamma": 1.0} | options
    with pytest.raises(SteeringError) as caught, ph.steer(shared("llama"), **given):
        pytest.fail("the block was entered")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start", [3.5, True, None, "five", [1.0, 2.0], 0, [4, 0]], ids=str)
def test_responses_begin_at_whole_numbers(start) -> None:
    with pytest.raises(SteeringError), ph.response_from(start):
        pytest.fail("the block was entered")


def test_calls_without_tokens_are_refused() -> None:
    model = shared("llama")
    with ph.steer(model, SOFT, 1.0):
        for call in ({}, {"input_ids": [[1, 2, 3]]}):
            with pytest.raises(SteeringError, match="input_ids"):
                model(**call)
