"""Contrasting layers, against full passes that show all hidden states."""

from __future__ import annotations

import math

import pytest
import torch
from support.layers import reference
from support.models import random_ids, shared, tiny
from support.reference import beam_search, greedy, plain_logits
from support.steered import (
    EXAMPLES,
    N_NEW,
    PROMPTS,
    SOFT,
    assert_untouched,
    generate,
    step_logits,
)
from transformers import DynamicCache

from prefheads.data.encoding import encode
from prefheads.errors import SteeringError
from prefheads.interventions.intercept import head_layout
from prefheads.scoring.scorer import response_nll
from prefheads.steering.combine import contrast_layers
from prefheads.steering.context import steer
from prefheads.steering.dola import candidate_layers, layer_contrast

KINDS = ["llama", "mistral", "gemma3_text", "gpt_neox", "gpt2", "mixtral"]
LAYERS = [0, 1, 2]


def after_prompt(model, row, layers, plausibility=0.1):
    def after(new):
        ids = torch.cat([PROMPTS[row], torch.tensor(new, dtype=torch.long)])
        return reference(model, ids, layers, plausibility)[0]

    return after


def assert_equal(found, wanted) -> None:
    assert torch.equal(found.isneginf(), wanted.isneginf())
    finite = ~wanted.isneginf()
    assert (found - wanted)[finite].abs().max() < 1e-4


@pytest.mark.parametrize("plausibility", [0.1, None])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_equals_full_passes(kind, plausibility) -> None:
    model = shared(kind)
    before = plain_logits(model, PROMPTS[0])
    plain = generate(model)
    with layer_contrast(model, LAYERS, plausibility=plausibility):
        batch, logits = step_logits(model)
        (alone,), _ = step_logits(model, PROMPTS[1])
    for row in range(3):
        after = after_prompt(model, row, LAYERS, plausibility)
        for step in range(N_NEW):
            wanted = after(batch[row][:step])
            assert_equal(logits[row, step], wanted)
            assert batch[row][step] == int(wanted.argmax())
    assert alone == batch[1]
    assert batch != plain
    assert_untouched(model, before)


def test_each_row_and_step_chooses_its_layer() -> None:
    """Otherwise a batch would differ from its rows alone."""
    model, chosen = shared("llama"), []
    with layer_contrast(model, LAYERS):
        batch, logits = step_logits(model)
    for step in range(N_NEW):
        for row in range(3):
            ids = torch.cat([PROMPTS[row], torch.tensor(batch[row][:step], dtype=torch.long)])
            wanted, layer = reference(model, ids, LAYERS)
            assert_equal(logits[row, step], wanted)
            chosen.append((step, layer))
    assert len(set(chosen)) > N_NEW  # rows differ in some step


@pytest.mark.parametrize(("layers", "numbers"), [("low", [0, 2]), ("high", [3, 5])])
def test_halves(layers, numbers) -> None:
    model = tiny("llama", num_hidden_layers=6)
    with layer_contrast(model, layers):
        _, logits = step_logits(model, n_new=1)
    for row in range(3):
        assert_equal(logits[row, 0], reference(model, PROMPTS[row], numbers)[0])


def test_tied_embeddings_leave_layer_0_out() -> None:
    model = tiny("llama", num_hidden_layers=6, tie_word_embeddings=True)
    with layer_contrast(model, "low"):
        _, logits = step_logits(model, n_new=1)
    for row in range(3):
        assert_equal(logits[row, 0], reference(model, PROMPTS[row], [2])[0])


@pytest.mark.parametrize(
    ("n", "tied", "low", "high"),
    [
        (32, False, range(0, 16, 2), range(16, 32, 2)),
        (30, True, range(2, 15, 2), range(15, 30, 2)),
        (40, False, range(0, 20, 2), range(20, 40, 2)),
        (80, False, range(0, 20, 2), range(60, 80, 2)),
        (81, True, range(2, 20, 2), range(61, 81, 2)),
        (4, True, [2], [2]),
        (3, True, [2], [1]),
        (2, True, [1], [1]),
        (1, False, [0], [0]),
    ],
)
def test_candidates(n, tied, low, high) -> None:
    assert candidate_layers("low", n, tied) == list(low)
    assert candidate_layers("high", n, tied) == list(high)


def test_no_second_pass() -> None:
    model = shared("llama")
    head_layout(model)  # looks at the model once, in passes of its own
    calls = []
    handle = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: calls.append(tuple(args[0].shape))
    )
    with layer_contrast(model, LAYERS):
        generate(model, n_new=4)
    handle.remove()
    assert calls == [(3, 17), (3, 1), (3, 1), (3, 1)]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_what_else_the_caller_asked_for(kind) -> None:
    model = tiny(kind)
    ids = PROMPTS[0][None]
    with torch.no_grad():
        wanted = model(input_ids=ids, output_hidden_states=True)
        with layer_contrast(model, LAYERS):
            plain = model(input_ids=ids)
            found = model(input_ids=ids, output_hidden_states=True)
            as_tuple = model(input_ids=ids, return_dict=False)
    assert plain.hidden_states is None
    assert all(map(torch.equal, found.hidden_states, wanted.hidden_states))
    assert isinstance(as_tuple, tuple)
    for position in range(17):  # every position whose logits are asked for
        expected = reference(model, PROMPTS[0][: position + 1], LAYERS)[0]
        assert_equal(plain.logits[0, position], expected)
        assert_equal(as_tuple[0][0, position], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_beams(kind) -> None:
    model = shared(kind)
    with layer_contrast(model, LAYERS, plausibility=None):
        new = generate(model, num_beams=3, length_penalty=0.0)
    for row in range(3):
        after = after_prompt(model, row, LAYERS, None)
        assert new[row] == beam_search(after, N_NEW, 3)[0][1]


def test_repetition_penalty_is_generates_own() -> None:
    model = shared("llama")
    with layer_contrast(model, LAYERS):
        new = generate(model, PROMPTS[0], repetition_penalty=1.2)
    after, wanted = after_prompt(model, 0, LAYERS), []
    for _ in range(N_NEW):
        scores = after(wanted)
        seen = torch.tensor([*PROMPTS[0].tolist(), *wanted]).unique()
        scores[seen] = torch.where(scores[seen] < 0, scores[seen] * 1.2, scores[seen] / 1.2)
        wanted.append(int(scores.argmax()))
    assert new == [wanted]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_a_prompt_that_was_encoded_before(kind) -> None:
    model = shared(kind)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=PROMPTS[0][None, :-1], past_key_values=cache)
    with layer_contrast(model, LAYERS):
        new = generate(model, PROMPTS[0], past_key_values=cache)
    assert new == [greedy(after_prompt(model, 0, LAYERS), N_NEW)]


def test_chunks_and_proposed_tokens() -> None:
    model, prompt = shared("llama"), PROMPTS[0]
    wanted = [greedy(after_prompt(model, 0, LAYERS), N_NEW)]
    with layer_contrast(model, LAYERS):
        assert generate(model, prompt, prefill_chunk_size=4) == wanted
        assert generate(model, prompt, prompt_lookup_num_tokens=3) == wanted
        assert generate(model, prompt, use_cache=False) == wanted


def test_likelihood(characters) -> None:
    model = shared("llama")
    with layer_contrast(model, LAYERS, plausibility=None):
        found = response_nll(model, characters, EXAMPLES)
    for nll, example in zip(found, EXAMPLES, strict=True):
        encoded = encode(characters, example)
        ids, n = torch.cat([encoded.prompt_ids, encoded.response_ids]), len(encoded.prompt_ids)
        losses = [
            -reference(model, ids[:i], LAYERS, None)[0].log_softmax(-1)[ids[i]]
            for i in range(n, len(ids))
        ]
        assert (nll - torch.stack(losses).mean()).abs() < 1e-4


# -- the formula -------------------------------------------------------------------------------


def test_a_small_case_by_hand() -> None:
    final = torch.tensor([0.5, 0.25, 0.25]).log()
    near, far = torch.tensor([0.25, 0.5, 0.25]).log(), torch.tensor([0.125, 0.125, 0.75]).log()
    wanted = torch.tensor([math.log(4), math.log(2), -math.log(3)])
    assert (contrast_layers(final, [near, far]) - wanted).abs().max() < 1e-6
    assert (contrast_layers(final, [far, near + 3]) - wanted).abs().max() < 1e-6
    ruled_out = contrast_layers(final, [near, far], 0.6)
    assert ruled_out.isneginf().tolist() == [False, True, True]


def test_farthest_is_by_the_divergence_in_the_authors_code() -> None:
    """The first candidate is farther by Jensen and Shannon's proper, the second by theirs."""
    final = torch.tensor([0.5, 0.25, 0.25]).log()
    first, second = torch.tensor([0.05, 0.05, 0.9]).log(), torch.tensor([0.5, 1e-20, 0.5]).log()
    assert torch.equal(contrast_layers(final, [first, second]), contrast_layers(final, [second]))
    assert torch.equal(contrast_layers(final, [second, first]), contrast_layers(final, [second]))


def test_tokens_that_are_ruled_out_already_stay_so() -> None:
    final = torch.tensor([0.0, 1.0, float("-inf")])
    found = contrast_layers(final, [torch.randn(3), torch.tensor([1.0, 0.0, float("-inf")])])
    assert found.isneginf().tolist() == [False, False, True]
    assert not found.isnan().any()


# -- refusals, and what stays ------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_an_error(error) -> None:
    model = shared("llama")
    before = plain_logits(model, PROMPTS[0])
    with pytest.raises(error), layer_contrast(model, LAYERS):
        generate(model)
        raise error
    assert_untouched(model, before)


def test_one_at_a_time() -> None:
    model = shared("llama")
    before = plain_logits(model, PROMPTS[0])
    with (
        steer(model, SOFT, 1.0),
        pytest.raises(SteeringError, match="already"),
        layer_contrast(model),
    ):
        pass
    with layer_contrast(model):
        with pytest.raises(SteeringError, match="already"), steer(model, SOFT, 1.0):
            pass
        with pytest.raises(SteeringError, match="already"), layer_contrast(model):
            pass
    assert_untouched(model, before)


@pytest.mark.parametrize("layers", ["middle", [], [3], [-1], "0"])
def test_unknown_layers_are_refused(layers) -> None:
    model = shared("llama")
    before = plain_logits(model, random_ids(17, seed=17))
    with pytest.raises(SteeringError, match="0 to 2"), layer_contrast(model, layers):
        pytest.fail("the block was entered")
    with pytest.raises(SteeringError, match="plausibility"), layer_contrast(model, plausibility=0):
        pytest.fail("the block was entered")
    assert_untouched(model, before)
