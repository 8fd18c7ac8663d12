"""Steering: what it leaves behind, and what it refuses."""

from __future__ import annotations

import threading

import pytest
import torch
from support.models import (
    SHAPE,
    shared,
    tiny,
)
from support.reference import (
    plain_logits,
)
from support.steered import (
    EXAMPLES,
    HARD,
    PROFILE_MASK,
    PROFILES,
    PROMPTS,
    SOFT,
    assert_untouched,
    each_way,
    expected,
    generate,
)
from transformers import LogitsProcessor, LogitsProcessorList

from prefheads.discovery import discover
from prefheads.errors import SteeringError
from prefheads.steering.context import active_steering, steer

# -- nothing stays -----------------------------------------------------------------------------


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
    """The config keeps its words, so each is steered on its own."""
    first = tiny("llama", seed=1)
    second = type(first)(first.config).eval()
    second.generation_config.eos_token_id = None
    wanted = expected(first, 0, SOFT, 1.5), expected(second, 1, HARD, 2.0)
    with steer(first, SOFT, 1.5), steer(second, HARD, 2.0):
        assert first.config._attn_implementation == "sdpa"
        assert generate(first, PROMPTS[0]) == [wanted[0]]
        assert generate(second, PROMPTS[1]) == [wanted[1]]


# -- refusals ----------------------------------------------------------------------------------


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
        ({"cap": 1.0}, "cap"),
        ({"cap": -1.0, "schedule": "entropy"}, "cap"),
        ({"mode": "amplify", "schedule": "entropy"}, "contrast"),
        ({"mode": "amplify", "plausibility": 0.1}, "contrast"),
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
        ({}, {"guidance_scale": 1.5}, "guidance_scale"),
        ({}, {"assistant_early_exit": 1}, "assistant_early_exit"),
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
