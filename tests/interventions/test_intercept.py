"""Intercepting attention: one at a time, and what is left behind."""

from __future__ import annotations

import threading

import pytest
import torch
from support.models import ARCHITECTURES, SHAPE, random_ids, shared, tiny
from support.reference import plain_logits

from prefheads.errors import SteeringError
from prefheads.interventions.hooks import attention_backend
from prefheads.interventions.intercept import intercept
from prefheads.steering.context import steer

IDS = random_ids(12)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_interception_alone_changes_nothing(kind) -> None:
    model = shared(kind)
    plain = plain_logits(model, IDS)
    with intercept(model):
        assert torch.equal(plain_logits(model, IDS), plain)
    assert torch.equal(plain_logits(model, IDS), plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_an_error(error) -> None:
    model = tiny("llama")
    plain = plain_logits(model, IDS)
    with pytest.raises(error), intercept(model):
        raise error
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert torch.equal(plain_logits(model, IDS), plain)
    with intercept(model):
        pass


def test_one_interception_at_a_time() -> None:
    model, refused = shared("llama"), []

    def elsewhere() -> None:
        try:
            with intercept(model):
                pass
        except SteeringError as error:
            refused.append(error)

    with intercept(model):
        with pytest.raises(SteeringError, match="already"), intercept(model):
            pass
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(refused) == 1
    elsewhere()
    assert len(refused) == 1


def test_a_backend_can_be_chosen_for_the_block() -> None:
    model = shared("llama", "eager")
    plain = plain_logits(model, IDS)
    with intercept(model, "sdpa"):
        assert attention_backend(model) == "sdpa"
        assert (plain_logits(model, IDS) - plain).abs().max() < 1e-4
    assert model.config._attn_implementation == "eager"


def test_other_models_of_the_same_kind_are_not_touched() -> None:
    one, other = tiny("llama", seed=1), tiny("llama", seed=2)
    plain = plain_logits(other, IDS)
    with steer(one, torch.ones(SHAPE), 3.0):
        assert torch.equal(plain_logits(other, IDS), plain)
        assert other.config._attn_implementation == "sdpa"


def test_two_threads_that_begin_with_a_new_model_are_right_or_refused() -> None:
    """The first use of a model probes it, which must not meet another thread's steering."""
    weights = torch.zeros(SHAPE)
    weights[1, 1] = 1
    for trial in range(12):
        model = tiny("llama", seed=trial)
        plain = model(IDS[None]).logits
        with torch.no_grad(), steer(tiny("llama", seed=trial), weights, 5.0) as steering:
            expected = steering.model(IDS[None], logits_to_keep=1).logits
        barrier, seen = threading.Barrier(2), []

        def work(model=model, barrier=barrier, seen=seen) -> None:
            barrier.wait()
            try:
                with torch.no_grad(), steer(model, weights, 5.0):
                    seen.append(model(IDS[None], logits_to_keep=1).logits)
            except SteeringError as refused:
                seen.append(refused)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results = [s for s in seen if isinstance(s, torch.Tensor)]
        assert len(seen) == 2 and results
        assert all(torch.allclose(logits, expected, atol=1e-5) for logits in results)
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model(IDS[None]).logits, plain)
