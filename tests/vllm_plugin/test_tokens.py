"""Greedy tokens, and log-probabilities, are those of ph.steer in transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.engines import (
    FORK,
    KINDS,
    Asked,
    answers,
    assert_as_transformers,
    engine,
    generated,
    loaded,
    log_probabilities,
    mixed,
    random_prompt,
    tokens,
)
from support.scored import scored

CONTRAST = {"map": "soft", "gamma": 1.0, "mode": "contrast"}
AMPLIFY = {"map": "soft", "gamma": 1.0, "mode": "amplify"}
# Chunks of prompts shorter than most, and blocks for about three requests of sixteen.
TIGHT = {"max_num_batched_tokens": 32, "num_gpu_blocks_override": 12, "max_model_len": 128}


@pytest.fixture(scope="module")
def llama(saved):
    with engine(saved("llama"), max_num_batched_tokens=128) as llm:
        yield llm


def preemptions(llm) -> int:
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")


def batch_of(llm):
    return llm.apply_model(lambda model: model.batch)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_chunked_and_preempted(kind, saved) -> None:
    requests = mixed()
    model = loaded(kind)
    plain = [generated(model, Asked(r.prompt, None, r.n_new)) for r in requests]
    steered = [generated(model, r) for r in requests]
    assert sum(a != b for a, b in zip(plain, steered, strict=True)) > 15  # steering shows
    with engine(saved(kind), disable_log_stats=False, **TIGHT) as llm:
        for asked, output, wanted in zip(requests, answers(llm, requests), steered, strict=True):
            assert tokens(output) == wanted, asked
        assert preemptions(llm) > 0


def test_the_form_for_compilation(saved, monkeypatch) -> None:
    monkeypatch.setattr("prefheads.vllm.models._FORCE_STATIC", True)
    with engine(saved("gemma3_text"), **TIGHT) as llm:
        assert_as_transformers(llm, loaded("gemma3_text"), mixed())


@pytest.mark.parametrize("options", [{"async_scheduling": False}, {"max_num_seqs": 1}], ids=str)
def test_other_schedules(options, saved) -> None:
    with engine(saved("llama"), **options) as llm:
        assert_as_transformers(llm, loaded("llama"), mixed(10))


def test_amplification_alone_has_no_second_cache(saved, monkeypatch) -> None:
    monkeypatch.setenv("PREFHEADS_CONTRAST", "0")
    requests = [r for r in mixed() if not r.how or r.how.get("mode") == "amplify"]
    with engine(saved("llama")) as llm:
        assert not any("branch" in name for name in layers(llm))
        assert_as_transformers(llm, loaded("llama"), requests)


def test_layers_below_the_fork_have_one_cache(llama) -> None:
    branches = [name for name in layers(llama) if name.endswith("branch")]
    assert [int(name.split(".")[2]) for name in branches] == list(range(FORK, 3))


def layers(llm) -> list[str]:
    groups = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config.kv_cache_groups
    return sorted(name for group in groups for name in group.layer_names)


def test_only_tokens_that_predict_the_response_run_twice(llama, monkeypatch) -> None:
    from prefheads.vllm.batch import Batch

    widths = []
    make = Batch._make

    def counted(batch, common):
        plan = make(batch, common)
        widths.append(len(plan.rows))
        return plan

    monkeypatch.setattr(Batch, "_make", counted)
    n_new = 5
    amplified = Asked(random_prompt(40, 9), AMPLIFY, n_new)
    contrasted = Asked(random_prompt(50, 7), CONTRAST, n_new)
    answers(llama, [amplified, contrasted, Asked(random_prompt(60, 8), None, n_new)])
    assert sum(widths) == n_new


@pytest.mark.parametrize("how", [None, CONTRAST, AMPLIFY], ids=["plain", "contrast", "amplify"])
def test_several_sampled_answers_and_their_log_probabilities(llama, how) -> None:
    options = {"temperature": 1.0, "n": 3, "logprobs": 2}
    requests = [Asked(random_prompt(n, n), how, 6, options) for n in (5, 33, 64)]
    for asked, output in zip(requests, answers(llama, requests), strict=True):
        assert len({tuple(o.token_ids) for o in output.outputs}) > 1
        for one in output.outputs:
            new = list(one.token_ids)
            found = [step[t].logprob for step, t in zip(one.logprobs, new, strict=True)]
            wanted = log_probabilities(loaded("llama"), asked, new)
            assert torch.allclose(torch.tensor(found), wanted, atol=2e-4)


def test_prompt_log_probabilities_are_the_plain_ones(llama) -> None:
    prompt = random_prompt(70, 3)
    options = {"prompt_logprobs": 0}
    hows = (None, CONTRAST, AMPLIFY)
    plain, *steered = answers(llama, [Asked(prompt, how, 3, options) for how in hows])

    def scores(output) -> list[float]:
        pairs = zip(output.prompt_logprobs[1:], prompt[1:].tolist(), strict=True)
        return [step[t].logprob for step, t in pairs]

    for output in steered:
        assert scores(output) == pytest.approx(scores(plain), abs=1e-4)
        assert tokens(output) != tokens(plain)


def test_aborted_requests_leave_the_others_alone(llama) -> None:
    """Requests come, finish and are aborted step by step; rows are reused and moved."""
    requests = mixed(24)
    core, done = llama.llm_engine, {}
    waiting = dict(enumerate(requests))
    aborted = {i for i in waiting if i % 5 == 2}
    step = 0
    while waiting or core.has_unfinished_requests():
        for _ in range(2):
            if waiting:
                i = min(waiting)
                asked = waiting.pop(i)
                core.add_request(str(i), asked.inputs, asked.params)
        if step % 3 == 2:
            late = [str(i) for i in aborted if i not in waiting and str(i) not in done]
            core.abort_request(late[:1])
            aborted -= {int(i) for i in late[:1]}
            done |= dict.fromkeys(late[:1])
        for output in core.step():
            if output.finished and output.request_id not in done:
                done[output.request_id] = tokens(output)
        step += 1
    assert None in done.values()
    model = loaded("llama")
    for i, asked in enumerate(requests):
        if done[str(i)] is not None:
            assert done[str(i)] == generated(model, asked), asked


def test_rows_are_free_again(llama) -> None:
    answers(llama, mixed(20))
    answers(llama, [Asked(random_prompt(5, 0), None, 2)])  # the next step clears finished rows
    batch = batch_of(llama)
    assert not batch._rows["slot"].any()
    assert sorted(batch._free) == list(range(1, len(batch._rows) + 1))


def test_unsteered_requests_are_untouched_bit_for_bit(llama, saved) -> None:
    """Against vLLM's own model, in a process where no maps are given."""
    requests = [Asked(random_prompt(n, n), None, 6, {"logprobs": 3}) for n in (9, 40, 77)]
    ours = [scored(o) for o in answers(llama, requests)]
    environment = {k: v for k, v in os.environ.items() if k != "PREFHEADS_MAPS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    code = PLAIN.format(path=str(saved("llama")), lengths=[9, 40, 77])
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    theirs = json.loads(ran.stdout.splitlines()[-1])
    assert theirs["model"] == "LlamaForCausalLM"
    assert ours == theirs["scores"]


PLAIN = """
import json
from support.engines import Asked, answers, engine, random_prompt
from support.scored import scored

requests = [Asked(random_prompt(n, n), None, 6, {{"logprobs": 3}}) for n in {lengths}]
with engine({path!r}, max_num_batched_tokens=128, scheduler_cls=None) as llm:
    scores = [scored(o) for o in answers(llm, requests)]
    kind = llm.apply_model(lambda model: type(model).__name__)[0]
print()
print(json.dumps({{"model": kind, "scores": scores}}))
"""
