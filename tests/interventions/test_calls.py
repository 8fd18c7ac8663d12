"""Steered calls of many kinds, against full passes: static caches, forward calls that score a whole
text at once, other outputs, and calls that are not for the users of a steering."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from support.families import tiny_family
from support.matrix import gap
from support.models import left_padded, random_ids, shared, tiny
from support.reference import beam_search, next_logits, plain_logits, steered_logits
from support.steered import (
    BATCH,
    EXAMPLES,
    PROFILE_MASK,
    PROFILES,
    PROMPTS,
    SOFT,
    generate,
    step_logits,
)

from prefheads import response_from, response_nll, steer
from prefheads.data.encoding import encode
from prefheads.errors import SteeringError
from prefheads.heads.weights import HeadWeights, Provenance, fingerprint
from prefheads.scoring.scorer import token_nll

EXACT = 5e-5  # of the largest logit
WAYS = [(mode, target) for mode in ("contrast", "amplify") for target in ("head", "profile")]
both_modes = pytest.mark.parametrize("mode", ["contrast", "amplify"])
each_mode_and_target = pytest.mark.parametrize(("mode", "target"), WAYS)
LENGTHS = [17, 11, 14]
GAMMAS = [1.5, 0.7, 1.0]
MAPS = torch.stack([SOFT, SOFT * (SOFT > 0.5), SOFT.flip(0)])


def right_padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


TEXTS = [torch.cat([p, random_ids(n, seed=n)]) for p, n in zip(PROMPTS, (4, 3, 6), strict=True)]
FIRST_PROFILES = right_padded(PROFILES)


# -- static caches -----------------------------------------------------------------------------

STATIC = {"cache_implementation": "static", "disable_compile": True}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "kind", ["qwen2", "qwen3", "smollm3", "olmo3", "cohere2", "exaone4", "llama4_text"]
)
def test_static_caches_of_models_with_several_masks(kind, attention) -> None:
    """Layers of full attention are given a mask, or none at all, beside one of a window."""
    model = tiny_family(kind, attention)
    assert len(set(model.config.layer_types)) == 2
    weights = torch.rand(4, 4, generator=torch.Generator().manual_seed(3))
    for prompt in (random_ids(20, seed=1), random_ids(5, seed=2)):  # windows are of 8
        profile = torch.arange(len(prompt)).ge(1) & torch.arange(len(prompt)).lt(4)
        plain = step_logits(model, prompt, n_new=6, **STATIC)[1]
        for mode, target in WAYS:
            how = {"mode": mode, "target": target}
            with steer(model, weights, 1e-6, profile_mask=profile, **how):
                assert gap(step_logits(model, prompt, n_new=6, **STATIC)[1], plain) < EXACT
            with steer(model, weights, 1.5, profile_mask=profile, **how):
                (new,), (logits,) = step_logits(model, prompt, n_new=6, **STATIC)
            ids = torch.cat([prompt, torch.tensor(new[:-1])])
            wanted = steered_logits(model, ids, len(prompt), weights, 1.5, profile=profile, **how)
            assert gap(logits, wanted[len(prompt) - 1 :]) < EXACT
            assert gap(logits, plain[0]) > 0.01


# -- forward calls outside of generate() -------------------------------------------------------


@both_modes
def test_a_call_that_does_not_say_where_the_response_begins_is_refused(mode) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5, mode=mode), pytest.raises(SteeringError) as caught:
        model(input_ids=PROMPTS[0][None])
    assert "response_from" in str(caught.value) and "\n" not in str(caught.value)
    with torch.no_grad(), steer(model, SOFT, 1.5, mode=mode, scope="all"):
        logits = model(input_ids=PROMPTS[0][None]).logits[0]
    wanted = steered_logits(model, PROMPTS[0], 17, SOFT, 1.5, mode=mode, scope="all")
    assert gap(logits, wanted) < EXACT


@each_mode_and_target
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize(
    ("kind", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("gemma3_text", "sdpa"), ("gpt2", "sdpa")],
)
def test_positions_that_predict_the_response_are_steered(
    kind, attention, use_cache, mode, target
) -> None:
    model, n = shared(kind, attention), 12
    profile = torch.arange(n).ge(3) & torch.arange(n).lt(9)
    how = {"mode": mode, "target": target}
    with torch.no_grad(), steer(model, SOFT, 1.5, profile_mask=profile, **how):
        with response_from(n):
            out = model(input_ids=PROMPTS[0][None], use_cache=use_cache)
        after = None
        if use_cache:
            step = {"input_ids": torch.tensor([[50]]), "past_key_values": out.past_key_values}
            after = model(**step).logits[0]
    ids = torch.cat([PROMPTS[0], torch.tensor([50])])
    wanted = steered_logits(model, ids, n, SOFT, 1.5, profile=profile, **how)
    assert gap(out.logits[0], wanted[:-1]) < EXACT
    plain = plain_logits(model, PROMPTS[0])
    assert gap(out.logits[0, : n - 1], plain[: n - 1]) < EXACT
    assert ((out.logits[0] - plain)[n - 1 :].abs().amax(-1) > 0.01 * plain.abs().max()).all()
    assert after is None or gap(after, wanted[-1:]) < EXACT


@each_mode_and_target
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize(
    ("kind", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("gemma3_text", "sdpa"), ("falcon_h1", "sdpa")],
)
def test_rows_padded_on_the_right_begin_where_they_are_told(
    kind, attention, use_cache, mode, target
) -> None:
    """As programs do that score many continuations at once: without an attention mask."""
    how = {"mode": mode, "target": target}
    own_state = kind == "falcon_h1"  # which branches run from the first token on
    model = tiny_family(kind, num_hidden_layers=3) if own_state else shared(kind, attention)
    with torch.no_grad(), steer(model, MAPS, GAMMAS, profile_mask=FIRST_PROFILES, **how):
        with response_from(LENGTHS):
            logits = model(input_ids=right_padded(TEXTS), use_cache=use_cache).logits
        with response_from(torch.tensor(LENGTHS)):
            last = model(input_ids=right_padded(TEXTS), use_cache=use_cache, logits_to_keep=6)
    assert gap(last.logits, logits[:, -6:]) < EXACT
    for row, (text, n) in enumerate(zip(TEXTS, LENGTHS, strict=True)):
        wanted = steered_logits(
            model, text, n, MAPS[row], GAMMAS[row], profile=PROFILES[row], **how
        )
        assert gap(logits[row, : len(text)], wanted) < EXACT


@pytest.mark.parametrize("kind", ["llama", "falcon_h1"])
def test_no_token_is_ruled_out_before_the_response(kind) -> None:
    model = tiny_family(kind, num_hidden_layers=3)
    with torch.no_grad(), steer(model, MAPS, GAMMAS, plausibility=0.5), response_from(LENGTHS):
        ruled_out = model(input_ids=right_padded(TEXTS)).logits.isneginf().any(-1)
    for row, n in enumerate(LENGTHS):
        assert ruled_out[row].tolist() == [i >= n - 1 for i in range(ruled_out.shape[1])]


@both_modes
def test_other_starts_than_one_a_row_are_refused(mode) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5, mode=mode):
        for starts in ([17, 11], [17, 11, 14, 9], []):
            with response_from(starts), pytest.raises(SteeringError, match="batch of 3") as caught:
                model(input_ids=right_padded(TEXTS))
            assert "\n" not in str(caught.value)
    for nothing in (0, -1, [17, 0, 14], torch.tensor([0, 1])):
        with pytest.raises(SteeringError, match="at least one token"), response_from(nothing):
            pytest.fail("the block was entered")


@each_mode_and_target
@pytest.mark.parametrize("kept", [1, 4, 17])
def test_the_logits_that_are_asked_for_are_those_steered(kept, mode, target) -> None:
    model, n = shared("llama"), 18 - kept
    profile = torch.arange(n).ge(0) & torch.arange(n).lt(n - 1)
    how = {"mode": mode, "target": target}
    with torch.no_grad(), steer(model, SOFT, 1.5, profile_mask=profile, **how):
        logits = model(input_ids=PROMPTS[0][None], logits_to_keep=kept).logits[0]
    wanted = steered_logits(model, PROMPTS[0], n, SOFT, 1.5, profile=profile, **how)
    assert gap(logits, wanted[n - 1 :]) < EXACT


@each_mode_and_target
def test_likelihoods_are_those_of_such_calls(mode, target, characters) -> None:
    model = shared("llama")
    encoded = [encode(characters, example) for example in EXAMPLES]
    profiles = left_padded([e.profile_mask for e in encoded], False)
    how = {"mode": mode, "target": target}
    with torch.no_grad(), steer(model, MAPS, GAMMAS, profile_mask=profiles, **how):
        found = response_nll(model, characters, EXAMPLES)
        texts = [torch.cat([e.prompt_ids, e.response_ids[:-1]]) for e in encoded]
        starts = [len(e.prompt_ids) for e in encoded]
        masks = right_padded([e.profile_mask for e in encoded])
        with response_from(starts, profile_mask=masks):
            logits = model(input_ids=right_padded(texts)).logits
    for row, e in enumerate(encoded):
        n = len(texts[row])
        predicting = logits[row, starts[row] - 1 : n]
        assert abs(token_nll(predicting, e.response_ids).mean() - found[row]) < 1e-5
        wanted = steered_logits(
            model, texts[row], starts[row], MAPS[row], GAMMAS[row], profile=e.profile_mask, **how
        )
        assert gap(predicting, wanted[starts[row] - 1 :]) < EXACT


# -- other outputs -----------------------------------------------------------------------------


@both_modes
@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("target", ["head", "profile"])
def test_hidden_states_and_attentions_are_those_of_the_personalised_branch(
    target, scope, mode
) -> None:
    model = shared("llama", "eager")
    outputs = {"output_hidden_states": True, "output_attentions": True}
    options = outputs | {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    mask = (BATCH["attention_mask"] > 0)[:, :, None]
    stock = model.generate(**BATCH, **options)
    with steer(
        model, MAPS, GAMMAS, mode=mode, scope=scope, target=target, profile_mask=PROFILE_MASK
    ):
        out = model.generate(**BATCH, **options)
    for name in ("hidden_states", "attentions"):
        found, wanted = getattr(out, name), getattr(stock, name)
        assert [[x.shape for x in step] for step in found] == [
            [x.shape for x in step] for step in wanted
        ]
    first = [x * mask for x in out.hidden_states[0]]
    plain = [x * mask for x in stock.hidden_states[0]]
    if mode == "contrast":
        for found, wanted in zip(first, plain, strict=True):
            assert gap(found, wanted) < EXACT
        ids = torch.cat([PROMPTS[0], out.sequences[0, 17:-1]])
        with torch.no_grad():
            whole = model(input_ids=ids[None], use_cache=False, **outputs)
        for step in range(1, 4):
            for found, wanted in zip(out.hidden_states[step], whole.hidden_states, strict=True):
                assert gap(found[0, -1], wanted[0, 16 + step]) < EXACT
            for found, wanted in zip(out.attentions[step], whole.attentions, strict=True):
                assert gap(found[0, :, -1], wanted[0, :, 16 + step, : 17 + step]) < EXACT
    elif scope == "response":
        for found, wanted in zip(first, plain, strict=True):
            assert gap(found[:, :-1], wanted[:, :-1]) < EXACT
        assert gap(first[-1][:, -1], plain[-1][:, -1]) > 0.01
    else:
        assert gap(first[-1][:, :-1], plain[-1][:, :-1]) > 0.01


# -- calls that are not for these users --------------------------------------------------------


@contextmanager
def no_pass(model) -> Iterator[None]:
    """Nothing goes through the model inside the block."""

    def fail(*_) -> None:
        pytest.fail("the model ran")

    hook = model.get_input_embeddings().register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(SteeringError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@both_modes
def test_a_batch_of_more_people_than_the_steering_is_for_is_refused_before_any_work(
    mode, characters
) -> None:
    model, four = shared("llama"), torch.stack([PROMPTS[0]] * 4)
    examples = [*EXAMPLES, EXAMPLES[0]]
    for two in ({"weights": MAPS[:2], "gamma": 1.0}, {"weights": SOFT, "gamma": [0.5, 1.0]}):
        with steer(model, mode=mode, **two), no_pass(model):
            refused(lambda: model.generate(four, max_new_tokens=2), "batch of 4.*2 users")
            refused(lambda: model.generate(four[:1], max_new_tokens=2), "batch of 1.*2 users")
            refused(lambda: response_nll(model, characters, examples), "batch of 4.*2 users")
            with response_from(17):
                refused(lambda: model(four), "batch of 4.*2 users")


@both_modes
def test_a_profile_mask_of_other_rows_is_refused_before_any_work(mode) -> None:
    model, how = shared("llama"), {"mode": mode, "target": "profile"}
    with steer(model, SOFT, 1.0, profile_mask=PROFILE_MASK[:2], **how), no_pass(model):
        refused(lambda: generate(model), "batch of 3.*2 users")
        four = torch.stack([PROMPTS[0]] * 4)
        refused(lambda: model.generate(four, max_new_tokens=2), "batch of 4.*2 users")


@each_mode_and_target
def test_several_answers_to_two_people(mode, target) -> None:
    model, n_new = shared("llama"), 4
    two = {name: x[:2] for name, x in BATCH.items()} | {"max_new_tokens": n_new}
    how = {"mode": mode, "target": target}
    with steer(model, MAPS[:2], GAMMAS[:2], profile_mask=PROFILE_MASK[:2], **how):
        beams = model.generate(**two, num_beams=3, num_return_sequences=2, do_sample=False)
        torch.manual_seed(1)
        drawn = model.generate(
            **two,
            num_return_sequences=2,
            do_sample=True,
            top_k=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    for row in range(2):
        after = next_logits(
            model, PROMPTS[row], MAPS[row], GAMMAS[row], profile=PROFILES[row], **how
        )
        wanted = [tokens for _, tokens in beam_search(after, n_new, 3)][:2]
        assert beams[2 * row : 2 * row + 2, 17:].tolist() == wanted
        for answer in (2 * row, 2 * row + 1):
            new = drawn.sequences[answer, 17:].tolist()
            for step in range(n_new):
                assert gap(drawn.logits[step][answer], after(new[:step])) < EXACT


def test_heads_of_another_model_are_refused_by_name() -> None:
    model, other = tiny("llama"), fingerprint(tiny("llama", vocab_size=98).config)
    model.config._name_or_path = "ours/llama"
    heads = HeadWeights(SOFT, Provenance(model_id="theirs/llama", fingerprint=other))
    with (
        pytest.raises(SteeringError, match=r"theirs/llama.*ours/llama") as caught,
        steer(model, heads, 1.5),
    ):
        pytest.fail("the block was entered")
    assert "\n" not in str(caught.value)
    own = HeadWeights(SOFT, Provenance(fingerprint=fingerprint(model.config)))
    wanted = steered_logits(model, PROMPTS[0], 17, SOFT, 1.5)[-1:]
    for weights in (heads.values, own):
        with torch.no_grad(), steer(model, weights, 1.5):
            logits = model(input_ids=PROMPTS[0][None], logits_to_keep=1).logits[0]
        assert gap(logits, wanted) < EXACT
