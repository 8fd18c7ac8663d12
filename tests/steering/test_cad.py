"""Context-aware decoding, against two full forward passes a step."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import transformers
from packaging.version import Version
from support.models import left_padded, random_ids, shared
from support.reference import beam_search, greedy, plain_logits, response_loss
from support.steered import (
    BATCH,
    EXAMPLES,
    N_NEW,
    PROMPTS,
    SOFT,
    assert_untouched,
    generate,
    step_logits,
)
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from prefheads.data.encoding import encode, pad_batch
from prefheads.data.example import without_profile
from prefheads.discovery import discover
from prefheads.errors import SteeringError
from prefheads.interventions.intercept import head_layout
from prefheads.scoring.scorer import response_nll
from prefheads.steering.cad import context_contrast
from prefheads.steering.context import steer

BARE = [random_ids(n, seed=50 + n) for n in (9, 12, 4)]
BARE_BATCH = (left_padded(BARE), left_padded([torch.ones_like(b) for b in BARE]))
KINDS = ["llama", "mistral", "gemma3_text", "gpt_neox", "gpt2", "mixtral"]


def bare(row: int) -> tuple[torch.Tensor, torch.Tensor]:
    return BARE[row][None], torch.ones_like(BARE[row])[None]


def contrasted(model, row: int, gamma: float, plausibility: float | None = None):
    """Logits (vocab,) after some new tokens, by a full pass over each of the two sequences."""

    def after(new: list[int]) -> torch.Tensor:
        tail = torch.tensor(new, dtype=torch.long)
        with_profile = plain_logits(model, torch.cat([PROMPTS[row], tail]))[-1]
        without = plain_logits(model, torch.cat([BARE[row], tail]))[-1]
        result = (1 + gamma) * with_profile - gamma * without
        p = with_profile.softmax(-1)
        if plausibility is not None:
            result[p < plausibility * p.max()] = float("-inf")
        return result

    return after


@contextmanager
def counted(model):
    """The number of (rows, tokens) of each pass through the model's own layers."""
    head_layout(model)  # looks at the model once, in passes of its own
    calls: list[tuple[int, int]] = []

    def note(module, args, kwargs) -> None:
        calls.append(tuple((args[0] if args else kwargs["input_ids"]).shape))

    handle = model.get_input_embeddings().register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_equals_two_full_passes_a_step(kind, gamma) -> None:
    model = shared(kind)
    before = plain_logits(model, PROMPTS[0])
    plain = generate(model, n_new=12)
    with context_contrast(model, *BARE_BATCH, gamma=gamma):
        batch, logits = step_logits(model, n_new=12)
    with context_contrast(model, *bare(1), gamma=gamma):
        (alone,), _ = step_logits(model, PROMPTS[1], n_new=12)
    for row in range(3):
        after = contrasted(model, row, gamma)
        for step in range(12):
            wanted = after(batch[row][:step])
            assert (logits[row, step] - wanted).abs().max() < 1e-4
            assert batch[row][step] == int(wanted.argmax())
    assert alone == batch[1]
    assert batch != plain
    assert_untouched(model, before)


def test_padding_changes_nothing() -> None:
    model = shared("llama")
    with context_contrast(model, *bare(2)):
        _, wanted = step_logits(model, PROMPTS[2])
    padded = (
        torch.nn.functional.pad(BARE_BATCH[0], (5, 0)),
        torch.nn.functional.pad(BARE_BATCH[1], (5, 0)),
    )
    with context_contrast(model, *padded):
        _, found = step_logits(model)
    assert (found[2] - wanted[0]).abs().max() < 1e-4


def test_one_more_prompt_pass_and_one_more_pass_a_token() -> None:
    model = shared("llama")
    with counted(model) as calls, context_contrast(model, *BARE_BATCH):
        generate(model, n_new=4)
    assert calls == [(3, 17), (3, 12)] + [(3, 1)] * 2 * 3


def test_strength_zero_is_exactly_plain() -> None:
    model = shared("llama")
    plain, wanted = step_logits(model)
    with counted(model) as calls, context_contrast(model, *BARE_BATCH, gamma=0):
        new, logits = step_logits(model)
    assert new == plain
    assert torch.equal(logits, wanted)
    assert len(calls) == N_NEW


def test_plausibility() -> None:
    model = shared("llama")
    with context_contrast(model, *BARE_BATCH, gamma=2.0, plausibility=0.3):
        new, logits = step_logits(model)
    after = contrasted(model, 0, 2.0, 0.3)
    for step in range(N_NEW):
        wanted = after(new[0][:step])
        assert wanted.isneginf().any()
        assert torch.equal(logits[0, step].isneginf(), wanted.isneginf())
        finite = wanted > float("-inf")
        assert (logits[0, step] - wanted)[finite].abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_beams(kind) -> None:
    model = shared(kind)
    with context_contrast(model, *BARE_BATCH, gamma=0.5):
        new = generate(model, num_beams=3, length_penalty=0.0)
    for row in range(3):
        assert new[row] == beam_search(contrasted(model, row, 0.5), N_NEW, 3)[0][1]


def test_sampling_and_streaming() -> None:
    model = shared("llama")

    class Tokens(BaseStreamer):
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen += value.flatten().tolist()

        def end(self):
            pass

    streamer = Tokens()
    after, wanted = contrasted(model, 0, 0.5), []
    torch.manual_seed(3)
    for _ in range(N_NEW):
        wanted.append(int(torch.multinomial(after(wanted).softmax(-1), 1)))
    with context_contrast(model, *bare(0)):
        torch.manual_seed(3)
        new = generate(model, PROMPTS[0], do_sample=True, top_k=0, streamer=streamer)
    assert new == [wanted]
    assert streamer.seen == PROMPTS[0].tolist() + wanted


def test_several_samples_of_each_prompt() -> None:
    model = shared("llama")
    torch.manual_seed(0)
    with context_contrast(model, *BARE_BATCH):
        new, logits = step_logits(model, do_sample=True, num_return_sequences=2)
    for i in range(6):
        for step in range(N_NEW):
            wanted = contrasted(model, i // 2, 0.5)(new[i][:step])
            assert (logits[i, step] - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_a_prompt_that_was_encoded_before(kind) -> None:
    model = shared(kind)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=PROMPTS[0][None, :-1], past_key_values=cache)
    with counted(model) as calls, context_contrast(model, *bare(0)):
        new = generate(model, PROMPTS[0], past_key_values=cache)
    assert new == [greedy(contrasted(model, 0, 0.5), N_NEW)]
    assert calls[:3] == [(1, 1), (1, 9), (1, 1)]
    assert "reorder_cache" not in vars(cache)


def test_a_cache_cut_back_to_its_prompt_begins_anew() -> None:
    model = shared("llama")
    with context_contrast(model, *bare(0)), torch.no_grad():
        first = model.generate(
            PROMPTS[0][None], max_new_tokens=3, do_sample=False, return_dict_in_generate=True
        )
        cache = first.past_key_values
        cache.crop(16 - cache.get_seq_length())
        new = generate(model, PROMPTS[0], past_key_values=cache)
    assert new == [greedy(contrasted(model, 0, 0.5), N_NEW)]


def test_input_embeddings_in_place_of_ids() -> None:
    model = shared("llama")
    embedded = model.get_input_embeddings()(BATCH["input_ids"])
    with torch.no_grad(), context_contrast(model, *BARE_BATCH):
        new = model.generate(
            inputs_embeds=embedded,
            attention_mask=BATCH["attention_mask"],
            max_new_tokens=N_NEW,
            do_sample=False,
        )
    assert new.tolist() == [greedy(contrasted(model, row, 0.5), N_NEW) for row in range(3)]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_static_cache(kind) -> None:
    model = shared(kind)
    with context_contrast(model, *BARE_BATCH):
        new = generate(model, cache_implementation="static")
    assert new == [greedy(contrasted(model, row, 0.5), N_NEW) for row in range(3)]


ROLLBACK = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"),
    reason="sliding windows forget what assisted generation takes back",
)


@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma3_text", marks=ROLLBACK)])
def test_assisted_generation(kind, monkeypatch) -> None:
    """Proposed tokens that are not taken leave the second cache too."""
    model, prompt = shared(kind), torch.tensor([5, 6, 7, 8, 9] * 4)
    monkeypatch.setitem(globals(), "PROMPTS", [prompt])
    wanted = greedy(contrasted(model, 0, 0.5), 8)
    with context_contrast(model, *bare(0)):
        assert generate(model, prompt, n_new=8, prompt_lookup_num_tokens=3) == [wanted]
        assistant = shared("llama", "eager")
        assert generate(model, prompt, n_new=8, assistant_model=assistant) == [wanted]


def test_likelihood(characters) -> None:
    model = shared("llama")
    without = [without_profile(e) for e in EXAMPLES]
    prompts = pad_batch([encode(characters, e) for e in without], 0)
    with context_contrast(model, prompts.prompt_ids, prompts.prompt_mask, gamma=0.7):
        found = response_nll(model, characters, EXAMPLES)
    for i, example in enumerate(EXAMPLES):
        full, short = encode(characters, example), encode(characters, without[i])
        ids = torch.cat([full.prompt_ids, full.response_ids])
        logits = plain_logits(model, ids)
        other = plain_logits(model, torch.cat([short.prompt_ids, full.response_ids]))
        shift = len(full.prompt_ids) - len(short.prompt_ids)
        both = 1.7 * logits[shift:] - 0.7 * other
        wanted = response_loss(both, short)
        assert (found[i] - wanted).abs() < 1e-4


# -- refusals, and what stays ------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_an_error(error) -> None:
    model = shared("llama")
    before = plain_logits(model, PROMPTS[0])
    with pytest.raises(error), context_contrast(model, *BARE_BATCH):
        generate(model)
        raise error
    assert_untouched(model, before)


def test_one_at_a_time(characters) -> None:
    model = shared("llama")
    before = plain_logits(model, PROMPTS[0])
    with (
        steer(model, SOFT, 1.0),
        pytest.raises(SteeringError, match="already"),
        context_contrast(model, *BARE_BATCH),
    ):
        pass
    with context_contrast(model, *BARE_BATCH):
        with pytest.raises(SteeringError, match="already"), steer(model, SOFT, 1.0):
            pass
        with (
            pytest.raises(SteeringError, match="already"),
            context_contrast(model, *BARE_BATCH),
        ):
            pass
        with pytest.raises(SteeringError, match="already"):
            discover(model, characters, EXAMPLES[:1], progress=False)
    assert_untouched(model, before)


IDS, MASK = BARE_BATCH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"plausibility": 1.5}, "plausibility"),
        ({"bare_ids": IDS[0]}, "shape"),
        ({"bare_ids": IDS.float()}, "token ids"),
        ({"bare_mask": MASK[:2]}, "shape"),
        ({"bare_mask": MASK.flip(1)}, "left"),
        ({"bare_mask": torch.zeros_like(MASK)}, "left"),
        ({"bare_ids": IDS[:0], "bare_mask": MASK[:0]}, "left"),
    ],
)
def test_bad_options_are_refused_at_once(change, message) -> None:
    options = {"bare_ids": IDS, "bare_mask": MASK} | change
    with pytest.raises(SteeringError, match=message), context_contrast(shared(), **options):
        pytest.fail("the block was entered")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (2, {}, "batch of 3 .* 2 bare"),
        (2, {"num_beams": 2}, "batch of 6 .* 2 bare"),
        (3, {"use_cache": False}, "use_cache"),
        (3, {"prefill_chunk_size": 4}, "chunked prefill"),
    ],
)
def test_calls_that_cannot_be_honoured_are_refused(rows, options, message) -> None:
    model = shared("llama")
    before = plain_logits(model, PROMPTS[0])
    with (
        context_contrast(model, IDS[:rows], MASK[:rows]),
        pytest.raises(SteeringError, match=message) as caught,
    ):
        generate(model, **options)
    assert "\n" not in str(caught.value)
    assert_untouched(model, before)
