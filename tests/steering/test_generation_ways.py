"""All ways of stock generation under steering: sampling, beams, assistance, streams, processors."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from packaging.version import Version
from support.models import (
    VOCABULARY,
    shared,
)
from support.reference import (
    beam_search,
    greedy,
    next_logits,
    plain_logits,
    steered_logits,
)
from support.steered import (
    BATCH,
    HARD,
    N_NEW,
    PROFILE_MASK,
    PROFILES,
    PROMPTS,
    SOFT,
    ZERO,
    each_way,
    expected,
    generate,
    step_logits,
)
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from prefheads.steering.context import steer
from prefheads.steering.response import response_from

ROLLBACK = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20"),
    reason="sliding windows forget what assisted generation takes back",
)


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
        with response_from(17):
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


@each_way
@pytest.mark.parametrize("kind", ["llama", pytest.param("gemma3_text", marks=ROLLBACK)])
def test_assisted_generation_proposes_and_the_steered_model_decides(kind, how) -> None:
    """The first call already holds proposed tokens after the prompt; they are steered too."""
    model, prompt = shared(kind), torch.tensor([5, 6, 7, 8, 9] * 4)
    profile = torch.arange(20).ge(13) & torch.arange(20).lt(17)
    wanted = greedy(next_logits(model, prompt, SOFT, 0.5, profile=profile, **how), 8)
    with steer(model, SOFT, 0.5, profile_mask=profile, **how):
        looked_up = generate(model, prompt, n_new=8, prompt_lookup_num_tokens=3)
        assisted = generate(model, prompt, n_new=8, assistant_model=shared("llama", "eager"))
    assert looked_up == assisted == [wanted]
