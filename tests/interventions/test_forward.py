"""A block of steering: no generation goes on after it, no other one begins inside it, and what it
refuses is refused before any work."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.matrix import gap
from support.models import SHAPE, shared, tiny
from support.reference import plain_logits, steered_logits
from support.states import registries, steps_of
from support.steered import PROMPTS, SOFT, assert_untouched, generate
from transformers.generation.streamers import BaseStreamer

from prefheads import steer
from prefheads.errors import SteeringError
from prefheads.steering.cad import context_contrast
from prefheads.steering.dola import layer_contrast

EXACT = 5e-5  # of the largest logit

# -- generations that outlive the block --------------------------------------------------------


class Held(BaseStreamer):
    """Lets a generation begin, and holds it until it may go on."""

    def __init__(self) -> None:
        self.n, self.runs, self.may_go_on = 0, threading.Event(), threading.Event()

    def put(self, value: torch.Tensor) -> None:
        self.n += 1
        if self.n == 4:
            self.runs.set()
            self.may_go_on.wait(60)

    def end(self) -> None:
        pass


BARE = torch.stack([PROMPTS[1]])
BLOCKS: dict[str, Callable[[Any], Any]] = {
    "contrast": lambda model: steer(model, SOFT, 1.5),
    "amplify": lambda model: steer(model, SOFT, 1.5, mode="amplify"),
    "cad": lambda model: context_contrast(model, BARE, torch.ones_like(BARE)),
    "dola": lambda model: layer_contrast(model),
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("own", [None, KeyError("own")], ids=["", "own"])
def test_a_generation_of_another_thread_ends_with_the_block(block, own) -> None:
    model, streamer, errors = tiny("llama"), Held(), []
    before, plain, stock = plain_logits(model, PROMPTS[0]), steps_of(model), registries()

    def work() -> None:
        try:
            generate(model, PROMPTS[0], n_new=200, streamer=streamer)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    with pytest.raises(type(own) if own else SteeringError) as caught, BLOCKS[block](model):
        thread.start()
        assert streamer.runs.wait(60)
        threading.Timer(0.2, streamer.may_go_on.set).start()  # the block has been left by then
        if own is not None:
            raise own
    thread.join(60)
    assert not thread.is_alive() and streamer.n < 10
    (error,) = errors
    assert isinstance(error, SteeringError) and "ended" in str(error)
    assert caught.value is own or "another thread" in str(caught.value)
    assert_untouched(model, before)
    assert registries() == stock
    assert torch.equal(steps_of(model), plain)
    with BLOCKS[block](model):
        assert gap(steps_of(model), plain) > 0.01


# -- one block at a time ------------------------------------------------------------------------


@pytest.mark.parametrize(("outside", "inside"), [(1.5, 0.0), (0.0, 1.5), (0.0, 0.0)])
def test_steering_by_nothing_is_a_steering_too(outside, inside) -> None:
    model = shared("llama")
    plain = plain_logits(model, PROMPTS[0])
    with (
        steer(model, SOFT, outside),
        pytest.raises(SteeringError, match="already"),
        steer(model, SOFT, inside),
    ):
        pytest.fail("the block was entered")
    with torch.no_grad(), steer(model, SOFT, inside):
        logits = model(input_ids=PROMPTS[0][None], logits_to_keep=1).logits[0]
    assert gap(logits, steered_logits(model, PROMPTS[0], 17, SOFT, inside)[-1:]) < EXACT
    assert torch.equal(plain_logits(model, PROMPTS[0]), plain)


# -- options that cannot be honoured -----------------------------------------------------------


@pytest.mark.parametrize("options", [{"guidance_scale": 1.5}, {"assistant_early_exit": 1}])
@pytest.mark.parametrize("given", ["call", "config"])
@pytest.mark.parametrize("block", BLOCKS)
def test_options_that_run_the_model_in_another_way_are_refused_before_any_work(
    block, given, options
) -> None:
    model, (name,) = tiny("llama"), options
    before, plain = plain_logits(model, PROMPTS[0]), steps_of(model)
    if given == "config":
        chosen = copy.deepcopy(model.generation_config)
        chosen.update(**options)
        options = {"generation_config": chosen}

    def fail(*_) -> None:
        pytest.fail("the model ran")

    with BLOCKS[block](model):
        hook = model.get_input_embeddings().register_forward_pre_hook(fail)
        with pytest.raises(SteeringError, match=name) as caught:
            generate(model, PROMPTS[0], **options)
        hook.remove()
    assert "\n" not in str(caught.value)
    assert model.config.num_hidden_layers == SHAPE[0]
    assert_untouched(model, before)
    assert torch.equal(steps_of(model), plain)


@pytest.mark.parametrize("block", BLOCKS)
def test_continuous_batching_is_refused(block) -> None:
    model = tiny("llama")
    before = plain_logits(model, PROMPTS[0])
    with BLOCKS[block](model):
        for call in (model.generate_batch, model.init_continuous_batching):
            with pytest.raises(SteeringError, match="continuous batching") as caught:
                call([PROMPTS[0].tolist()])
            assert "\n" not in str(caught.value)
    assert not {"generate_batch", "init_continuous_batching"} & set(vars(model))
    assert_untouched(model, before)
