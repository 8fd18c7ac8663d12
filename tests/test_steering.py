"""Steering stock generation: what comes out, against plain loops of full forward passes."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from models import (
    ARCHITECTURES,
    SHAPE,
    SLIDING,
    VOCABULARY,
    left_padded,
    random_ids,
    shared,
    tiny,
)
from reference import beam_search, greedy, next_logits, plain_logits, response_loss, steered_logits
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from prefheads.discovery import discover
from prefheads.encoding import encode
from prefheads.errors import SteeringError
from prefheads.examples import Example
from prefheads.provenance import Provenance
from prefheads.scoring import response_nll
from prefheads.steering import ScopeWarning, active_steering, steer
from prefheads.weights import HeadWeights

N_NEW = 6
PROMPTS = [random_ids(n, seed=n) for n in (17, 11, 14)]
PROFILES = [torch.arange(n).ge(n - 9) & torch.arange(n).lt(n - 4) for n in (17, 11, 14)]
BATCH = {
    "input_ids": left_padded(PROMPTS),
    "attention_mask": left_padded([torch.ones_like(p) for p in PROMPTS]),
}
PROFILE_MASK = left_padded(PROFILES, False)
HARD = HeadWeights.from_heads(SHAPE, [(1, 2), (1, 3), (2, 0)]).values
SOFT = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
ZERO = torch.zeros(SHAPE)
HOW = [
    {"mode": mode, "target": target, "scope": scope}
    for mode in ("contrast", "amplify")
    for target in ("head", "profile")
    for scope in ("response", "all")
]
each_way = pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(how.values()))


def generate(model, prompt=None, n_new=N_NEW, **options):
    """New tokens: of all prompts as a padded batch, or of one alone."""
    inputs = BATCH if prompt is None else {"input_ids": prompt[None]}
    options = {"max_new_tokens": n_new, "do_sample": False} | options
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()


def step_logits(model, prompt=None, n_new=N_NEW, **options):
    """New tokens, and the logits (B, n_new, vocab) that generate saw before its processors."""
    inputs = BATCH if prompt is None else {"input_ids": prompt[None]}
    options = {"max_new_tokens": n_new, "do_sample": False} | options
    out = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    new = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return new, torch.stack(out.logits, 1)


def expected(model, row, weights, gamma, n_new=N_NEW, **how):
    assert active_steering(model) is None
    after = next_logits(model, PROMPTS[row], weights, gamma, profile=PROFILES[row], **how)
    return greedy(after, n_new)


def assert_untouched(model, before: torch.Tensor) -> None:
    assert "forward" not in model.__dict__
    assert model.config._attn_implementation in ("sdpa", "eager")
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert "forward" not in module.__dict__
    assert active_steering(model) is None
    assert torch.equal(plain_logits(model, PROMPTS[0]), before)


def assert_steered(model, prompt, new, logits, weights, gamma, **how) -> None:
    """Each step has the logits (n_new, vocab), and the likeliest token, of full passes.

    The model is causal, so one full pass over prompt and new tokens shows all steps at once.
    """
    ids = torch.cat([prompt, torch.tensor(new[:-1])])
    wanted = steered_logits(model, ids, len(prompt), weights, gamma, **how)[len(prompt) - 1 :]
    assert (logits - wanted).abs().max() < 1e-4
    assert new == wanted.argmax(-1).tolist()


# -- greedy decoding --------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize(
    ("kind", "attention"),
    [(kind, None) for kind in ARCHITECTURES] + [(k, "eager") for k in ("llama", "gemma3_text")],
)
def test_generation_equals_full_passes(kind, attention, how) -> None:
    model = shared(kind, attention)
    before = plain_logits(model, PROMPTS[0])
    plain = generate(model)
    with steer(model, SOFT, 1.5, suppression=0.8, profile_mask=PROFILE_MASK, **how):
        batch, logits = step_logits(model)
    with steer(model, HARD, 2.0, profile_mask=PROFILES[1], **how):
        (alone,), (alone_logits,) = step_logits(model, PROMPTS[1])
    for row in range(3):
        settings = {"suppression": 0.8, "profile": PROFILES[row], **how}
        assert_steered(model, PROMPTS[row], batch[row], logits[row], SOFT, 1.5, **settings)
    assert_steered(model, PROMPTS[1], alone, alone_logits, HARD, 2.0, profile=PROFILES[1], **how)
    assert batch != plain
    assert_untouched(model, before)


@pytest.mark.parametrize("how", [HOW[0], HOW[3]], ids=lambda how: "-".join(how.values()))
def test_greedy_equals_a_plain_loop(how) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
        new = generate(model)
    assert new == [expected(model, row, SOFT, 1.5, **how) for row in range(3)]


@each_way
def test_users_of_a_batch_have_their_own_heads_and_strength(how) -> None:
    model = shared("llama")
    gammas = torch.tensor([1.0, 2.0, 0.5])
    with steer(model, torch.stack([HARD, ZERO, SOFT]), gammas, profile_mask=PROFILE_MASK, **how):
        new, logits = step_logits(model)
    assert new[0] == expected(model, 0, HARD, 1.0, **how)
    assert new[2] == expected(model, 2, SOFT, 0.5, **how)
    plain, plain_steps = step_logits(model)
    assert new[1] == plain[1]
    assert (logits[1] - plain_steps[1]).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_one_map_with_a_strength_for_each_user(mode) -> None:
    model = shared("llama")
    with steer(model, SOFT, [0.0, 1.0, 2.0], mode=mode):
        new = generate(model)
    assert new[0] == generate(model)[0]
    assert new[1:] == [expected(model, row, SOFT, float(row), mode=mode) for row in (1, 2)]


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_heads_of_any_layer(layer, row) -> None:
    """The branches part at the first layer with a head in it."""
    model = shared("llama")
    weights = HeadWeights.from_heads(SHAPE, [(layer, 1), (layer, 2)])
    with steer(model, weights, 3.0):
        new = generate(model)[row]
    assert new == expected(model, row, weights.values, 3.0)


@each_way
def test_a_prompt_of_one_token(how) -> None:
    model, prompt = shared("llama"), torch.tensor([50])
    profile = torch.ones(1, dtype=torch.bool)
    with steer(model, SOFT, 1.0, profile_mask=profile, **how):
        new = generate(model, prompt)
    assert new == [greedy(next_logits(model, prompt, SOFT, 1.0, profile=profile, **how), N_NEW)]


@each_way
def test_input_embeddings_in_place_of_ids(how) -> None:
    model = shared("llama")
    embedded = model.get_input_embeddings()(BATCH["input_ids"])
    with torch.no_grad(), steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
        new = model.generate(
            inputs_embeds=embedded,
            attention_mask=BATCH["attention_mask"],
            max_new_tokens=N_NEW,
            do_sample=False,
        )
    assert new.tolist() == [expected(model, row, SOFT, 1.5, **how) for row in range(3)]


@each_way
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_static_cache_gives_the_same_tokens(kind, how) -> None:
    model = shared(kind)
    assert generate(model, cache_implementation="static") == generate(model)
    with steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
        static = generate(model, n_new=12, cache_implementation="static")
        assert static == generate(model, n_new=12)
    with steer(model, SOFT, 1.5, profile_mask=PROFILES[1][-5:], **how):
        static = generate(model, PROMPTS[1][-5:], n_new=12, cache_implementation="static")
        assert static == generate(model, PROMPTS[1][-5:], n_new=12)


@pytest.mark.parametrize("target", ["head", "profile"])
def test_scope_all_needs_no_cache(target) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5, scope="all", target=target, profile_mask=PROFILES[0]):
        new = generate(model, PROMPTS[0], use_cache=False)
    assert new == [expected(model, 0, SOFT, 1.5, scope="all", target=target)]


@pytest.mark.parametrize("target", ["head", "profile"])
@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_bfloat16_is_close(mode, target) -> None:
    model, full = tiny("llama").to(torch.bfloat16), shared("llama")
    with steer(model, SOFT, 0.5, mode=mode, target=target, profile_mask=PROFILES[0]):
        new, half = step_logits(model, PROMPTS[0])
    how = {"mode": mode, "target": target, "profile": PROFILES[0]}
    after = next_logits(full, PROMPTS[0], SOFT, 0.5, **how)
    logits = torch.stack([after(new[0][:step]) for step in range(N_NEW)])
    assert (half[0].float() - logits).abs().mean() < 0.05 * logits.std()


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
        first = model(input_ids=ids[None, :n], use_cache=True)
        found = [first.logits[0, -1]]
        cache = first.past_key_values
        for token in ids[n:]:
            found.append(model(input_ids=token[None, None], past_key_values=cache).logits[0, -1])
    assert (torch.stack(found) - wanted[n - 1 :]).abs().max() < 1e-4
    assert (wanted[n - 1 :] - plain_logits(model, ids)[n - 1 :]).abs().max() > 0.1


# -- nothing to steer -------------------------------------------------------------------------


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


# -- all of generate --------------------------------------------------------------------------


@each_way
def test_sampling_draws_from_the_steered_distribution(how) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.0, profile_mask=PROFILES[0], **how):
        torch.manual_seed(5)
        new, logits = step_logits(model, PROMPTS[0], do_sample=True, top_k=0)
    after = next_logits(model, PROMPTS[0], SOFT, 1.0, profile=PROFILES[0], **how)
    torch.manual_seed(5)
    drawn: list[int] = []
    for step in range(N_NEW):
        wanted = after(drawn)
        assert (logits[0, step] - wanted).abs().max() < 1e-4
        drawn.append(int(torch.multinomial(wanted.softmax(-1), 1)))
    assert new == [drawn]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_sampling_several_sequences_of_each_prompt(kind) -> None:
    model = shared(kind)
    how = {"profile_mask": PROFILE_MASK, "target": "profile"}
    weights = torch.stack([SOFT, HARD, ZERO])
    with steer(model, weights, 1.0, **how):
        torch.manual_seed(1)
        new, logits = step_logits(model, do_sample=True, top_k=0, num_return_sequences=2)
    assert len(new) == 6
    for i, tokens in enumerate(new):
        row = i // 2
        after = next_logits(
            model, PROMPTS[row], weights[row], 1.0, target="profile", profile=PROFILES[row]
        )
        for step in range(N_NEW):
            assert (logits[i, step] - after(tokens[:step])).abs().max() < 1e-4


@each_way
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_beams_equal_a_plain_beam_search(kind, how) -> None:
    model = shared(kind)
    options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 1.0}
    with steer(model, SOFT, 1.0, profile_mask=PROFILE_MASK, **how):
        out = model.generate(
            **BATCH,
            **options,
            max_new_tokens=5,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    new = out.sequences[:, 17:].tolist()
    for row in range(3):
        after = next_logits(model, PROMPTS[row], SOFT, 1.0, profile=PROFILES[row], **how)
        beams = beam_search(after, 5, 3)[:2]
        assert new[2 * row : 2 * row + 2] == [tokens for _, tokens in beams]
        scores = torch.tensor([score / 5 for score, _ in beams])
        assert (out.sequences_scores[2 * row : 2 * row + 2] - scores).abs().max() < 1e-4


def test_beams_with_a_static_cache() -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.0):
        assert generate(model, num_beams=3, cache_implementation="static") == generate(
            model, num_beams=3
        )


def test_beams_of_different_users() -> None:
    model = shared("llama")
    weights = torch.stack([HARD, SOFT, ZERO])
    gammas = [1.0, 0.5, 1.0]
    with steer(model, weights, gammas):
        new = generate(model, num_beams=2, n_new=4)
    for row in range(3):
        after = next_logits(model, PROMPTS[row], weights[row], gammas[row])
        assert new[row] == beam_search(after, 4, 2)[0][1]


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_streaming_from_another_thread_is_steered() -> None:
    model, recorder = shared("llama"), Recorder()
    with steer(model, SOFT, 1.5):
        thread = threading.Thread(
            target=generate, args=(model, PROMPTS[0]), kwargs={"streamer": recorder}
        )
        thread.start()
        thread.join()
    assert recorder.tokens == PROMPTS[0].tolist() + expected(model, 0, SOFT, 1.5)
    assert recorder.ended


def test_stop_strings(characters) -> None:
    model = shared("llama")
    text = characters.decode(expected(model, 0, SOFT, 1.5))
    with steer(model, SOFT, 1.5):
        new = generate(model, PROMPTS[0], stop_strings=text[2:4], tokenizer=characters)
    assert characters.decode(new[0]) == text[: text.index(text[2:4]) + 2]


def test_end_of_text_ends_single_rows() -> None:
    model = shared("llama")
    whole = [expected(model, row, SOFT, 1.5) for row in range(3)]
    end = whole[0][2]
    with steer(model, SOFT, 1.5):
        new = generate(model, eos_token_id=end, pad_token_id=0)
    for tokens, full in zip(new, whole, strict=True):
        n = full.index(end) + 1 if end in full else N_NEW
        assert tokens == full[:n] + [0] * (len(tokens) - n)


def test_logits_processors_see_steered_logits() -> None:
    model, seen = shared("llama"), []

    class Watch(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(scores[0].clone())
            return scores

    with steer(model, SOFT, 1.5):
        new = generate(model, PROMPTS[0], logits_processor=LogitsProcessorList([Watch()]))
    after = next_logits(model, PROMPTS[0], SOFT, 1.5)
    for step in range(N_NEW):
        assert (seen[step] - after(new[0][:step])).abs().max() < 1e-4


def test_repetition_penalty_acts_on_steered_logits() -> None:
    model = shared("llama")
    after = next_logits(model, PROMPTS[0], SOFT, 1.5)

    def penalised(new: list[int]) -> torch.Tensor:
        logits = after(new).clone()
        used = torch.cat([PROMPTS[0], torch.tensor(new, dtype=torch.long)]).unique()
        logits[used] = torch.where(logits[used] < 0, logits[used] * 1.5, logits[used] / 1.5)
        return logits

    with steer(model, SOFT, 1.5):
        new = generate(model, PROMPTS[0], repetition_penalty=1.5)
    assert new == [greedy(penalised, N_NEW)]


def test_several_generations_in_one_block() -> None:
    model = shared("llama")
    wanted = [expected(model, row, SOFT, 1.5) for row in range(3)]
    with steer(model, SOFT, 1.5):
        for row in (0, 1, 0):
            assert generate(model, PROMPTS[row]) == [wanted[row]]
        assert generate(model) == wanted


def test_forward_keeps_its_output_type() -> None:
    model = shared("llama")
    with torch.no_grad(), steer(model, SOFT, 1.5):
        named = model(input_ids=PROMPTS[0][None])
        positional = model(PROMPTS[0][None], return_dict=False)
        last = model(input_ids=PROMPTS[0][None], logits_to_keep=1)
    assert type(named) is type(model(input_ids=PROMPTS[0][None]))
    assert isinstance(positional, tuple)
    assert named.logits.shape == (1, 17, VOCABULARY)
    assert torch.equal(named.logits, positional[0])
    assert last.logits.shape == (1, 1, VOCABULARY)
    assert (named.logits[:, -1:] - last.logits).abs().max() < 1e-4
    assert (named.logits[0, :-1] - plain_logits(model, PROMPTS[0])[:-1]).abs().max() < 1e-4
    wanted = steered_logits(model, PROMPTS[0], 17, SOFT, 1.5)[-1]
    assert (named.logits[0, -1] - wanted).abs().max() < 1e-4


# -- schedules and plausibility ---------------------------------------------------------------


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


# -- likelihood under steering ----------------------------------------------------------------

EXAMPLES = [
    Example("a", "u", ({"text": "Tea, no sugar!"},), "Say it: ", "Hot & plain."),
    Example("b", "v", ({"text": "LOUD"}, {"text": "wow"}), "Shout. Now: ", "HEY"),
    Example("c", "w", (), "Nothing known: ", "fine, I think so."),
]


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


def test_generation_after_scoring_in_one_block(characters) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5, target="profile", profile_mask=PROFILES[0]):
        response_nll(model, characters, EXAMPLES)
        new = generate(model, PROMPTS[0])
    assert new == [expected(model, 0, SOFT, 1.5, target="profile")]


@pytest.mark.bundled
@each_way
def test_bundled_generation_equals_full_passes(bundled_model, how) -> None:
    model, tokenizer = bundled_model
    weights = torch.zeros(30, 9)
    weights[3, 1] = weights[14, 6] = weights[29, 0] = 1
    encoded = encode(tokenizer, Example("x", "u", ({"text": "Rain. Splendid."},), "Next: ", "a"))
    prompt, profile = encoded.prompt_ids, encoded.profile_mask
    with steer(model, weights, 1.0, profile_mask=profile, **how):
        new, logits = step_logits(model, prompt, n_new=3)
    after = next_logits(model, prompt, weights, 1.0, profile=profile, **how)
    for step in range(len(new[0])):
        assert (logits[0, step] - after(new[0][:step])).abs().max() < 1e-3
    assert new == [greedy(after, len(new[0]))]


# -- nothing stays ----------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_an_error_in_the_block(error, how) -> None:
    model = shared("llama")
    before = plain_logits(model, PROMPTS[0])
    with (
        pytest.raises(error),
        steer(model, SOFT, 1.5, profile_mask=PROFILES[0], **how),
    ):
        generate(model, PROMPTS[0])
        raise error
    assert_untouched(model, before)
    with steer(model, SOFT, 1.5, profile_mask=PROFILES[0], **how):
        new = generate(model, PROMPTS[0])
    assert new == [expected(model, 0, SOFT, 1.5, **how)]


def test_nothing_stays_after_an_interrupt_in_generate() -> None:
    model = shared("llama")
    before = plain_logits(model, PROMPTS[0])

    class Interrupt(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] > 19:
                raise KeyboardInterrupt
            return scores

    with pytest.raises(KeyboardInterrupt), steer(model, SOFT, 1.5):
        generate(model, PROMPTS[0], logits_processor=LogitsProcessorList([Interrupt()]))
    assert_untouched(model, before)


def test_nothing_stays_after_an_interrupt_in_a_layer() -> None:
    model = tiny("llama")
    before = plain_logits(model, PROMPTS[0])

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model.model.layers[2].mlp.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), steer(model, SOFT, 1.5):
        generate(model, PROMPTS[0])
    handle.remove()
    assert_untouched(model, before)


def test_one_steering_of_a_model_at_a_time() -> None:
    model = shared("llama")
    wanted = expected(model, 0, SOFT, 1.5)
    errors = []

    def elsewhere() -> None:
        try:
            with steer(model, HARD, 1.0):
                pass
        except SteeringError as error:
            errors.append(str(error))

    with steer(model, SOFT, 1.5):
        with pytest.raises(SteeringError, match="already"), steer(model, HARD, 1.0):
            pass
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert generate(model, PROMPTS[0]) == [wanted]
    assert len(errors) == 1
    assert "already" in errors[0]
    with steer(model, HARD, 1.0):
        new = generate(model, PROMPTS[1])
    assert new == [expected(model, 1, HARD, 1.0)]


def test_discovery_waits_for_the_steering_to_end(characters) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5), pytest.raises(SteeringError, match="already"):
        discover(model, characters, EXAMPLES[:1], progress=False)
    assert discover(model, characters, EXAMPLES[:1], progress=False).shape == (1, *SHAPE)


def test_two_models_in_two_threads() -> None:
    kinds, how = ("llama", "gemma3_text"), {"target": "profile"}
    results: dict[str, list] = {kind: [] for kind in kinds}
    together = threading.Barrier(2, timeout=60)

    def work(kind: str) -> None:
        model = shared(kind)
        with steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
            together.wait()
            for _ in range(5):
                results[kind].append(generate(model))

    threads = [threading.Thread(target=work, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for kind in kinds:
        wanted = [expected(shared(kind), row, SOFT, 1.5, **how) for row in range(3)]
        assert results[kind] == [wanted] * 5


def test_two_models_of_one_config_object() -> None:
    """They share the setting that routes attention, so steering both would unsteer one."""
    first = tiny("llama", seed=1)
    second = type(first)(first.config).eval()
    with (
        steer(first, SOFT, 1.5),
        pytest.raises(SteeringError, match="config"),
        steer(second, SOFT, 1.5),
    ):
        pass
    with steer(second, SOFT, 1.5):
        pass
    assert first.config._attn_implementation == "sdpa"


# -- models that a library has wrapped --------------------------------------------------------


@each_way
@pytest.mark.parametrize("offload", ["hooks", "cpu", "disk"])
def test_models_dispatched_by_accelerate(offload, how, tmp_path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny("llama")
    wanted = [expected(model, row, SOFT, 1.5, **how) for row in range(3)]
    before = plain_logits(model, PROMPTS[0])
    if offload == "hooks":
        accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    elif offload == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    wrapped = model.forward
    with steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
        assert generate(model) == wanted
    assert model.forward is wrapped
    assert torch.equal(plain_logits(model, PROMPTS[0]), before)


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.zeros(4, 4)}, r"\(4, 4\).*\(3, 4\)"),
        ({"weights": torch.zeros(4)}, "shape"),
        ({"weights": torch.zeros(1, 1, 3, 4)}, "shape"),
        ({"weights": torch.zeros(0, 3, 4)}, "weights"),
        ({"weights": SOFT * float("nan")}, "NaN"),
        ({"weights": SOFT + float("inf")}, "infinity"),
        ({"weights": SOFT - 1}, r"\[0, 1\]"),
        ({"weights": SOFT + 0.5}, r"\[0, 1\]"),
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"gamma": float("inf")}, "gamma"),
        ({"gamma": [0.5, -1.0]}, "gamma"),
        ({"mode": "add"}, "mode 'add'"),
        ({"target": "value"}, "target 'value'"),
        ({"scope": "prompt"}, "scope 'prompt'"),
        ({"schedule": "linear"}, "schedule 'linear'"),
        ({"suppression": 1.1}, "suppression"),
        ({"suppression": float("nan")}, "suppression"),
        ({"plausibility": 0.0}, "plausibility"),
        ({"plausibility": 1.5}, "plausibility"),
        ({"weights": torch.stack([SOFT, SOFT]), "gamma": [1.0, 1.0, 1.0]}, "2 maps.*3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_options_are_refused_at_once(change, message) -> None:
    model = shared("llama")
    options = {"weights": SOFT, "gamma": 1.0} | change
    with pytest.raises(SteeringError, match=message) as caught, steer(model, **options):
        pytest.fail("the block was entered")
    assert "\n" not in str(caught.value)
    assert active_steering(model) is None


@pytest.mark.parametrize(
    ("steering", "options", "message"),
    [
        ({"target": "profile"}, {}, "profile_mask"),
        ({"target": "profile", "profile_mask": PROFILES[1]}, {}, "11 tokens"),
        ({"target": "profile", "profile_mask": torch.ones(20).bool()}, {}, "20 tokens"),
        ({"weights": torch.stack([SOFT] * 2)}, {}, "batch of 3"),
        ({"gamma": [1.0, 2.0]}, {}, "batch of 3"),
        ({"weights": torch.stack([SOFT] * 5)}, {}, "batch of 3"),
        (
            {"target": "profile", "profile_mask": PROFILE_MASK[:2]},
            {},
            "batch of 3",
        ),
        ({}, {"prefill_chunk_size": 4}, "chunked prefill"),
        ({}, {"use_cache": False}, "use_cache"),
    ],
)
@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_calls_that_cannot_be_honoured_are_refused(steering, options, message, mode) -> None:
    model = shared("llama")
    before = plain_logits(model, PROMPTS[0])
    settings = {"weights": SOFT, "gamma": 1.0, "mode": mode} | steering
    with steer(model, **settings), pytest.raises(SteeringError, match=message) as caught:
        generate(model, **options)
    assert "\n" not in str(caught.value)
    assert_untouched(model, before)


def test_labels_are_refused() -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.0), pytest.raises(SteeringError, match="response_nll"):
        model(input_ids=PROMPTS[0][None], labels=PROMPTS[0][None])


def test_scope_all_refuses_a_prompt_encoded_without_it() -> None:
    model = shared("llama")
    with torch.no_grad():
        cache = model(input_ids=PROMPTS[0][None, :9], use_cache=True).past_key_values
        with steer(model, SOFT, 1.0, scope="all"), pytest.raises(SteeringError, match="cache"):
            model(input_ids=PROMPTS[0][None, 9:], past_key_values=cache)


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
    heads = HeadWeights(SOFT, Provenance(scope="all"))
    with pytest.warns(ScopeWarning, match="scope='all'.*scope='response'"), steer(model, heads, 1):
        new = generate(model, PROMPTS[0])
    assert new == [expected(model, 0, SOFT, 1.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steer(model, heads, 1, scope="all"):
            pass
