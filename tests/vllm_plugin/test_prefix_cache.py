"""Cached blocks serve other requests only where they hold what those would compute."""

from __future__ import annotations

import pytest
import torch
from support.engines import Asked, answers, engine, generated, loaded, random_prompt, tokens
from vllm.v1.core.kv_cache_utils import get_request_block_hasher
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from prefheads.vllm.processor import SteeringProcessor
from prefheads.vllm.scheduler import SteeringScheduler

AMPLIFY = {"map": "soft", "gamma": 2.0, "mode": "amplify"}
CONTRAST = {"map": "soft", "gamma": 1.0, "mode": "contrast"}
BLOCK = 32


class Unsalted(SteeringScheduler, AsyncScheduler):
    """vLLM's own keys for all blocks."""

    def add_request(self, request):
        Scheduler.add_request(self, request)


@pytest.fixture(scope="module")
def llama(saved):
    with engine(saved("llama"), max_num_batched_tokens=256) as llm:
        yield llm


def one(llm, asked: Asked):
    return answers(llm, [asked])[0]


def turns(llm, how, next_how, prompt: torch.Tensor) -> tuple[Asked, list[int]]:
    """A steered answer, and then a request whose prompt is all of the first's tokens."""
    first = one(llm, Asked(prompt, how, 3 * BLOCK))
    longer = torch.cat([prompt, torch.tensor(tokens(first)), random_prompt(5, 99)])
    second = Asked(longer, next_how, 12)
    return second, tokens(one(llm, second))


def test_without_keys_of_their_own_steered_tokens_pollute(saved) -> None:
    with engine(saved("llama"), scheduler_cls=Unsalted) as llm:
        second, found = turns(llm, AMPLIFY, None, random_prompt(2 * BLOCK, 5))
        assert found != generated(loaded("llama"), second)


@pytest.mark.parametrize("how", [AMPLIFY, CONTRAST], ids=lambda how: how["mode"])
@pytest.mark.parametrize("then", [None, AMPLIFY, CONTRAST], ids=["plain", "amplify", "contrast"])
def test_answers_of_steered_requests_serve_no_other(llama, how, then) -> None:
    # The very steering of the first is no exception: what was its answer is now prompt.
    seed = hash((how["mode"], str(then))) % 10_000
    second, found = turns(llama, how, then, random_prompt(2 * BLOCK, seed))
    assert found == generated(loaded("llama"), second)


def test_a_prompt_that_ends_with_a_block_is_steered_in_it(llama) -> None:
    # The last prompt token is steered, so its block is, although it holds prompt tokens only.
    prompt = random_prompt(2 * BLOCK, 11)
    one(llama, Asked(prompt, AMPLIFY, 4))
    longer = Asked(torch.cat([prompt, random_prompt(7, 12)]), None, 8)
    output = one(llama, longer)
    assert output.num_cached_tokens == BLOCK
    assert tokens(output) == generated(loaded("llama"), longer)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (None, AMPLIFY, True),
        (AMPLIFY, None, True),
        (AMPLIFY, AMPLIFY | {"gamma": 1.0}, True),
        (CONTRAST, CONTRAST | {"map": "hard"}, True),
        (None, CONTRAST, False),  # the second cache was not written
        (AMPLIFY, CONTRAST, False),
        (CONTRAST, None, False),
    ],
    ids=lambda how: how["mode"] if isinstance(how, dict) else str(how),
)
def test_prompts_are_shared_where_their_caches_are_alike(llama, first, second, shared) -> None:
    prompt = random_prompt(100, hash((str(first), str(second))) % 10_000)
    one(llama, Asked(prompt, first, 4))
    asked = Asked(prompt, second, 8)
    output = one(llama, asked)
    assert output.num_cached_tokens == (3 * BLOCK if shared else 0)
    assert tokens(output) == generated(loaded("llama"), asked)


def test_the_same_request_again_reuses_its_answer(llama) -> None:
    asked = Asked(random_prompt(2 * BLOCK, 21), CONTRAST, 8)
    assert tokens(one(llama, asked)) == tokens(again := one(llama, asked))
    assert again.num_cached_tokens == BLOCK


def test_where_the_prompt_ended_is_part_of_the_key(llama) -> None:
    """Same tokens, same steering, but some are prompt in one and answer in the other.

    Blocks with answers are looked up only when a preempted request resumes, so keys are compared.
    """
    ids = random_prompt(3 * BLOCK, 31).tolist()
    scheduler = llama.llm_engine.engine_core.engine_core.scheduler
    params = Asked(torch.tensor(ids), CONTRAST).params
    SteeringProcessor.validate_params(params)
    keys = []
    for n_prompt in (2 * BLOCK + 3, 2 * BLOCK + 9):
        hasher = get_request_block_hasher(BLOCK, scheduler._hash)
        request = Request(str(n_prompt), ids[:n_prompt], params, None, block_hasher=hasher)
        scheduler.add_request(request)
        request.append_output_token_ids(ids[n_prompt:])
        scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
        keys.append(list(request.block_hashes))
    assert [a == b for a, b in zip(*keys, strict=True)] == [True, True, False]
