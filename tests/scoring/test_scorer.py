"""Response likelihood under head gains: every fast path against full forward passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.models import BACKENDS, SHAPE, SLIDING, random_encoded, shared, tiny
from support.reference import naive_nll, plain_logits, response_loss
from support.steered import EXAMPLES

from prefheads.data.encoding import encode
from prefheads.data.example import Example, load_examples
from prefheads.errors import DataError, ModelError
from prefheads.interventions.intercept import intercept, masked_backend
from prefheads.interventions.probes import sharing_of
from prefheads.interventions.projection import vocabulary_projection
from prefheads.models.limits import Budget, context_length
from prefheads.scoring.scorer import Scorer, response_nll

N_HEADS = SHAPE[0] * SHAPE[1]
ONE_OUT = (1 - torch.eye(N_HEADS)).reshape(N_HEADS, *SHAPE)
ANY = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2
GAINS = torch.cat([ONE_OUT, ANY, torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE)])


def fast_nll(model, encoded, gains, target, scope, tokens=40):
    with intercept(model, masked_backend(model)):
        return Scorer(model, encoded, scope, Budget(tokens)).nll(gains, target)


def slow_nll(model, encoded, gains, target, scope):
    return torch.stack([naive_nll(model, encoded, g, target, scope) for g in gains])


@pytest.mark.parametrize("target", ["head", "profile"])
@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize(("kind", "attention"), BACKENDS)
def test_nll_under_gains_equals_full_passes(kind, attention, scope, target) -> None:
    model, encoded = shared(kind, attention), random_encoded()
    plain, fast = fast_nll(model, encoded, GAINS, target, scope)
    slow = slow_nll(model, encoded, GAINS, target, scope)
    assert (fast - slow).abs().max() < 1e-5
    assert (plain - naive_nll(model, encoded, torch.ones(SHAPE))).abs() < 1e-5
    assert (slow[:N_HEADS] - plain).abs().min() > 1e-6  # every head matters
    assert (slow[:-1] - plain).abs().max() > 0.01
    assert (fast[-1] - plain).abs() < 1e-5


@pytest.mark.parametrize("tokens", [1, 6, 33, 100_000])
@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_tokens_per_pass_do_not_matter(kind, scope, tokens) -> None:
    model, encoded = shared(kind), random_encoded()
    _, one_pass = fast_nll(model, encoded, GAINS, "head", scope, 1000)
    _, in_parts = fast_nll(model, encoded, GAINS, "head", scope, tokens)
    assert (one_pass - in_parts).abs().max() < 1e-5


@pytest.mark.parametrize("target", ["head", "profile"])
@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize(
    ("n_prompt", "n_response", "profile"),
    [
        (1, 4, slice(0, 1)),  # the prompt is its last token
        (1, 1, slice(0, 1)),
        (9, 1, slice(2, 5)),
        (9, 4, slice(0, 6)),  # no token before the profile: with gain 0, heads see nothing
        (9, 4, slice(3, 9)),  # no token after it
        (9, 4, slice(0, 9)),  # nothing but profile
        (9, 4, slice(0, 0)),  # no profile at all
        (40, 12, slice(3, 35)),  # longer than the windows
    ],
)
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_borders_of_prompt_profile_and_response(
    kind, n_prompt, n_response, profile, scope, target
) -> None:
    model, encoded = shared(kind), random_encoded(n_prompt, n_response, profile, seed=3)
    gains = GAINS[[1, 6, 11, 12, -2]]
    _, fast = fast_nll(model, encoded, gains, target, scope)
    assert (fast - slow_nll(model, encoded, gains, target, scope)).abs().max() < 1e-5


def test_a_profile_out_of_every_window_is_not_read() -> None:
    model, encoded = shared("mistral"), random_encoded(40, 5, slice(0, 3))
    plain, fast = fast_nll(model, encoded, ONE_OUT, "profile", "response")
    assert (fast - plain).abs().max() < 1e-6


def test_gain_zero_equals_zeroed_columns_of_the_output_projection() -> None:
    model, encoded = tiny("llama"), random_encoded()
    _, fast = fast_nll(model, encoded, ONE_OUT, "head", "all")
    ids = torch.cat([encoded.prompt_ids, encoded.response_ids])
    for layer, head in [(0, 0), (1, 3), (2, 1)]:
        weight = model.model.layers[layer].self_attn.o_proj.weight
        kept = weight.detach().clone()
        size = weight.shape[1] // SHAPE[1]
        with torch.no_grad():
            weight[:, head * size : (head + 1) * size] = 0
            loss = response_loss(plain_logits(model, ids), encoded)
            weight.copy_(kept)
        assert (fast[layer * SHAPE[1] + head] - loss).abs() < 1e-5


@pytest.mark.parametrize("scope", ["response", "all"])
def test_bfloat16_is_close(scope) -> None:
    model, encoded = tiny("llama").to(torch.bfloat16), random_encoded()
    _, half = fast_nll(model, encoded, GAINS, "profile", scope)
    _, full = fast_nll(shared("llama"), encoded, GAINS, "profile", scope)
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.2
    assert (half - full).abs().mean() < 0.05


@pytest.mark.parametrize("scope", ["response", "all"])
def test_the_prompt_is_encoded_once(scope) -> None:
    model, encoded = shared("llama"), random_encoded(17, 5)
    vocabulary_projection(model)  # looks once with a run of its own
    with intercept(model):
        sharing_of(model)  # likewise
    lengths = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(args[0].shape[1]), with_kwargs=True
    )
    try:
        fast_nll(model, encoded, GAINS, "head", scope, tokens=40)
    finally:
        hook.remove()
    assert lengths[0] == 21
    assert set(lengths[1:]) == ({5} if scope == "response" else {21})


def test_logits_that_are_not_finite_name_the_example() -> None:
    model, encoded = tiny("llama"), replace(random_encoded(), example_id="the-7th")
    with torch.no_grad():
        model.lm_head.weight[5, 5] = float("nan")
    with pytest.raises(ModelError, match="'the-7th'") as caught:
        fast_nll(model, encoded, GAINS, "head", "response")
    assert "\n" not in str(caught.value)


def test_values_are_the_same_after_memory_ran_out(monkeypatch) -> None:
    model, encoded = shared("llama"), random_encoded()
    expected = fast_nll(model, encoded, GAINS, "head", "response")[1]
    run = Scorer.run

    def tight(self, running):
        if len(running.plan.starts) > 3:
            raise torch.OutOfMemoryError
        return run(self, running)

    monkeypatch.setattr(Scorer, "run", tight)
    found = fast_nll(model, encoded, GAINS, "head", "response", 512)[1]
    assert (found - expected).abs().max() < 1e-5


class TestResponseNll:
    @pytest.mark.parametrize("kind", ["llama", *SLIDING])
    @pytest.mark.parametrize("batch_size", [1, 2, 8])
    def test_plain_equals_full_passes(self, kind, batch_size, characters) -> None:
        model = shared(kind)
        found = response_nll(model, characters, EXAMPLES, batch_size=batch_size)
        assert found.dtype == torch.float32
        for value, example in zip(found, EXAMPLES, strict=True):
            encoded = encode(characters, example)
            assert (value - naive_nll(model, encoded, torch.ones(SHAPE))).abs() < 1e-5

    def test_end_of_turn_counts_if_asked(self, characters) -> None:
        model = shared("llama")
        found = response_nll(model, characters, EXAMPLES, end_of_turn=True)
        encoded = encode(characters, EXAMPLES[0], end_of_turn=True)
        assert encoded.response_ids[-1] == characters.eos_token_id
        assert (found[0] - naive_nll(model, encoded, torch.ones(SHAPE))).abs() < 1e-5
        assert (found - response_nll(model, characters, EXAMPLES)).abs().min() > 1e-4

    def test_without_examples(self, characters) -> None:
        assert response_nll(shared("llama"), characters, []).shape == (0,)

    def test_without_response(self, characters) -> None:
        silent = replace(EXAMPLES[0], id="quiet", output=None)
        with pytest.raises(DataError, match="'quiet'"):
            response_nll(shared("llama"), characters, [EXAMPLES[1], silent])

    def test_logits_that_are_not_finite_name_the_example(self, characters) -> None:
        model = tiny("llama")
        odd = replace(EXAMPLES[0], id="odd", output="~")
        with torch.no_grad():
            model.model.embed_tokens.weight[encode(characters, EXAMPLES[1]).response_ids[1]] = (
                float("nan")
            )
        with pytest.raises(ModelError, match="'b'"):
            response_nll(model, characters, [odd, EXAMPLES[1]], batch_size=1)

    def test_a_context_that_is_too_long_is_refused(self, characters) -> None:
        long = replace(EXAMPLES[0], id="long", profile=(), input="x" * 300)
        with pytest.raises(DataError, match="'long'"):
            response_nll(shared("llama"), characters, [long])

    def test_the_context_is_the_model_s_not_the_tokenizer_s(self, characters) -> None:
        model = tiny("llama", max_position_embeddings=40)
        assert context_length(model) == 40
        with pytest.raises(DataError, match="'x'"):
            response_nll(model, characters, [Example("x", "u", (), "y" * 60, "z")])


LAYERS_AND_HEADS = ((1, 5), (15, 8), (29, 7))


@pytest.fixture(scope="module")
def person(bundled_model):
    """A short example of the bundled people."""
    from prefheads.models.bundled import people_path

    example = load_examples(people_path(), limit=1)[0]
    return encode(bundled_model[1], example.with_profile(example.profile[:1]))


@pytest.fixture(scope="module")
def bundled_gains(bundled_model):
    """Single heads of early, middle and late layers ablated, then all heads changed."""
    gains = torch.ones(len(LAYERS_AND_HEADS) + 1, 30, 9)
    for row, (layer, head) in enumerate(LAYERS_AND_HEADS):
        gains[row, layer, head] = 0
    gains[-1] = torch.rand(30, 9, generator=torch.Generator().manual_seed(0)) * 2
    return gains


@pytest.mark.bundled
@pytest.mark.parametrize("target", ["head", "profile"])
@pytest.mark.parametrize("scope", ["response", "all"])
def test_bundled_nll_under_gains_equals_full_passes(
    bundled_model, person, bundled_gains, scope, target
) -> None:
    model = bundled_model[0]
    plain, fast = fast_nll(model, person, bundled_gains, target, scope, 512)
    slow = slow_nll(model, person, bundled_gains, target, scope)
    assert (fast - slow).abs().max() < 1e-5
    assert (slow - plain).abs().max() > 0.01


@pytest.mark.bundled
def test_bundled_pcs_equals_zeroed_weights(bundled_model, person, bundled_gains) -> None:
    model = bundled_model[0]
    _, fast = fast_nll(model, person, bundled_gains[:-1], "head", "all", 512)
    ids = torch.cat([person.prompt_ids, person.response_ids])
    for value, (layer, head) in zip(fast, LAYERS_AND_HEADS, strict=True):
        columns = model.model.layers[layer].self_attn.o_proj.weight[:, head * 64 : head * 64 + 64]
        kept = columns.detach().clone()
        with torch.no_grad():
            columns.zero_()
            loss = response_loss(plain_logits(model, ids), person)
            columns.copy_(kept)
        assert (value - loss).abs() < 1e-5
