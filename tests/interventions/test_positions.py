"""Models whose positions depend on more than the tokens of a call: on the length of a text, or on
what they saw last."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version
from support.matrix import gap
from support.models import SHAPE, random_encoded, random_ids, tiny
from support.pictures import END, picture_inputs, tiny_picture_model
from support.reference import gained_logits, next_logits, steered_logits
from support.steered import EXAMPLES, SOFT, step_logits
from torch.nn.functional import cross_entropy

from prefheads import discover, response_from, response_nll, steer
from prefheads.data.encoding import encode
from prefheads.data.example import Example
from prefheads.interventions.intercept import head_layout, intercept
from prefheads.scoring.scorer import Scorer

EXACT = 5e-5  # of the largest logit
SWITCH = 40  # tokens up to which a text is short
BOTH = [(mode, target) for mode in ("contrast", "amplify") for target in ("head", "profile")]
# Older ones decode on with the short text's cache, so that plain texts are not right either.
starts_again = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"),
    reason="this transformers does not begin again where a text turns long",
)
each_mode_and_target = pytest.mark.parametrize(("mode", "target"), BOTH)


def longrope(attention: str | None = None):
    """A model that turns all positions another way once a text is longer than the switching point,
    those of the tokens before too."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 2.3, 2.6, 2.9],
        "original_max_position_embeddings": SWITCH,
        "factor": 4.0,
    }
    return tiny(
        "phi3",
        attention,
        max_position_embeddings=4 * SWITCH,
        original_max_position_embeddings=SWITCH,
        rope_parameters=rope,
    )


@starts_again
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("scope", ["response", "all"])
@each_mode_and_target
@pytest.mark.parametrize("n", [SWITCH - 4, SWITCH, SWITCH + 1])
def test_every_step_across_the_switching_point_equals_a_full_pass(
    n, mode, target, scope, attention
) -> None:
    model, prompt = longrope(attention), random_ids(n, seed=1)
    profile = torch.arange(n).ge(3) & torch.arange(n).lt(12)
    how = {"mode": mode, "target": target, "scope": scope}
    with steer(model, SOFT, 1.5, profile_mask=profile, **how):
        (new,), (logits,) = step_logits(model, prompt, n_new=8)
    after = next_logits(model, prompt, SOFT, 1.5, profile=profile, **how)
    for step in range(8):
        assert gap(logits[step], after(new[:step])) < EXACT


@starts_again
@each_mode_and_target
def test_beams_across_the_switching_point(mode, target) -> None:
    model = longrope()
    prompt = random_ids(SWITCH - 3, seed=1)
    profile = torch.arange(len(prompt)) < 9
    how = {"mode": mode, "target": target}
    with steer(model, SOFT, 1.5, profile_mask=profile, **how):
        out = model.generate(
            prompt[None],
            max_new_tokens=6,
            num_beams=3,
            num_return_sequences=3,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    after = next_logits(model, prompt, SOFT, 1.5, profile=profile, **how)
    for beam, score in zip(out.sequences, out.sequences_scores, strict=True):
        new = beam[len(prompt) :].tolist()
        steps = (after(new[:i]).log_softmax(-1)[token] for i, token in enumerate(new))
        assert abs(sum(steps) / 6 - score) < 1e-4


def test_forward_calls_of_short_and_long_texts() -> None:
    model = longrope()
    for n, length in ((10, SWITCH), (20, SWITCH + 6), (SWITCH + 2, SWITCH + 6)):
        text = random_ids(length, seed=length)
        with torch.no_grad(), steer(model, SOFT, 1.5), response_from(n):
            logits = model(input_ids=text[None], use_cache=False).logits[0]
        assert gap(logits, steered_logits(model, text, n, SOFT, 1.5)) < EXACT


def ablated(model, encoded, target: str, scope: str) -> torch.Tensor:
    """PCS of all heads, by full passes of what the response is predicted from."""
    text = torch.cat([encoded.prompt_ids, encoded.response_ids[:-1]])
    n, shape = len(encoded.prompt_ids), head_layout(model).shape

    def nll(gains: torch.Tensor) -> torch.Tensor:
        logits = gained_logits(model, text, n, gains, target, scope, encoded.profile_mask)
        return cross_entropy(logits[n - 1 :].double(), encoded.response_ids)

    one_less = 1 - torch.eye(shape[0] * shape[1]).reshape(-1, *shape)
    plain = nll(torch.ones(shape))
    return torch.stack([nll(gains) - plain for gains in one_less]).reshape(shape)


@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("target", ["head", "profile"])
@pytest.mark.parametrize("length", [SWITCH, SWITCH + 1, SWITCH + 4])
def test_heads_are_found_on_texts_that_cross_the_switching_point(
    length, target, scope, characters
) -> None:
    model = longrope()
    example = Example("a", "u", ({"text": "Tea"},), "ab", "Hot & plain."[: length - 33])
    encoded = encode(characters, example)
    n = len(encoded.prompt_ids)
    assert n < SWITCH and n + len(encoded.response_ids) - 1 == length
    how = {"target": target, "scope": scope, "progress": False}
    wanted = ablated(model, encoded, target, scope)
    for method in ("exact", "screen"):
        scores = discover(model, characters, [example], method=method, candidates=1, **how)
        assert (scores.values[0] - wanted).abs().max() < 1e-5
    assert wanted.abs().max() > 0.01


def test_a_model_that_was_made_in_inference_mode(characters) -> None:
    """It writes over tensors of its own when the length changes, which only works in that mode."""
    wanted = discover(longrope(), characters, EXAMPLES, progress=False)
    with torch.inference_mode():
        model = longrope()
        found = discover(model, characters, EXAMPLES, progress=False)
        with steer(model, SOFT, 1.5):
            steps = step_logits(model, random_ids(SWITCH - 2), n_new=5)[1]
    assert (found.values - wanted.values).abs().max() < 1e-5
    model = longrope()
    with steer(model, SOFT, 1.5):
        assert gap(steps, step_logits(model, random_ids(SWITCH - 2), n_new=5)[1]) < EXACT


# -- lengths that a model remembers ------------------------------------------------------------


def dynamic(max_position_embeddings: int = 24):
    """A model that turns positions by the longest text it has seen since a short one."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return tiny(max_position_embeddings=max_position_embeddings, rope_parameters=rope)


@torch.no_grad()
def longer(model) -> None:
    """A plain call with a long text."""
    model(random_ids(150)[None])
    assert model.model.rotary_emb.max_seq_len_cached == 150


def test_heads_after_a_long_text_are_those_before_it(characters) -> None:
    model = dynamic(max_position_embeddings=100)
    before = discover(model, characters, EXAMPLES, progress=False)
    longer(model)
    after = discover(model, characters, EXAMPLES, progress=False)
    assert (after.values - before.values).abs().max() < 1e-5
    assert (after.nll - before.nll).abs().max() < 1e-5
    for example, scores in zip(EXAMPLES, after.values, strict=True):
        wanted = ablated(model, encode(characters, example), "head", "response")
        assert (scores - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("scope", ["response", "all"])
def test_texts_longer_than_the_model_s_first_are_scored_by_their_own_length(scope) -> None:
    model, encoded, gains = dynamic(), random_encoded(30, 5), torch.ones(2, *SHAPE)
    gains[0, 1, 2] = 0
    for _ in range(2):
        with intercept(model):
            plain, nll = Scorer(model, encoded, scope).nll(gains, "head")
        model(random_ids(2)[None])  # short, which a full pass goes on from
        assert (nll[1] - plain).abs() < 1e-5
        assert (nll[0] - plain - ablated(model, encoded, "head", scope)[1, 2]).abs() < 1e-5
        longer(model)


@each_mode_and_target
def test_steering_grows_with_a_text_as_the_model_does(mode, target) -> None:
    """Its own keys stay as they were turned when the text was shorter."""
    model, prompt = dynamic(), random_ids(17, seed=1)
    how = {"mode": mode, "target": target, "profile_mask": torch.arange(17) < 9}
    plain = step_logits(model, prompt, n_new=12)[1]
    assert model.model.rotary_emb.max_seq_len_cached > 24
    longer(model)
    with steer(model, SOFT, 1e-6, **how):
        assert gap(step_logits(model, prompt, n_new=12)[1], plain) < EXACT


# -- positions that a model keeps from one call to the next ------------------------------------


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "glm4v"])
def test_heads_after_a_chat_with_a_picture_are_those_before_it(kind, characters) -> None:
    model, picture = tiny_picture_model(kind), picture_inputs(kind)
    before = discover(model, characters, EXAMPLES, progress=False)
    nll = response_nll(model, characters, EXAMPLES)
    wanted = ablated(model, encode(characters, EXAMPLES[0]), "head", "response")
    assert (before.values[0] - wanted).abs().max() < 1e-5
    three = random_ids(17, seed=1).clamp_max(END - 1).expand(3, -1)
    for inputs in (picture, {"input_ids": three, "attention_mask": torch.ones_like(three)}):
        model.generate(**inputs, max_new_tokens=2)
        deltas = model.model.rope_deltas
        kept = None if deltas is None else deltas.clone()
        after = discover(model, characters, EXAMPLES, progress=False)
        assert (after.values - before.values).abs().max() < 1e-5
        assert (after.nll - before.nll).abs().max() < 1e-5
        assert (response_nll(model, characters, EXAMPLES) - nll).abs().max() < 1e-5
        assert model.model.rope_deltas is deltas
        assert deltas is None or torch.equal(deltas, kept)
