"""The bundled model: greedy tokens of many requests in one batch are those of ph.steer."""

from __future__ import annotations

import pytest
import torch
from support.engines import Asked, answers, engine, generated, tokens

import prefheads as ph
from prefheads.models.bundled import model_dir, people_path

pytestmark = pytest.mark.bundled
SHAPE = (30, 9)


def draw(seed: int, lowest: int, k: int) -> ph.HeadWeights:
    """A random map of k heads with weights in (0, 1], none below a layer."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.zeros(SHAPE)
    free = values[lowest:].view(-1)
    heads = torch.randperm(len(free), generator=generator)[:k]
    free[heads] = 1 - torch.rand(k, generator=generator)
    return ph.HeadWeights(values)


def test_thirty_two_requests(tmp_path, monkeypatch) -> None:
    maps = {"narrow": draw(0, 8, 11), "wide": draw(1, 6, 40), "low": draw(2, 0, 22)}
    for name, weights in maps.items():
        weights.save(tmp_path / f"{name}.safetensors")
    monkeypatch.setenv("PREFHEADS_MAPS", str(tmp_path))
    monkeypatch.setenv("PREFHEADS_FORK", "6")
    model, tokenizer = ph.load_model("bundled")
    model.generation_config.eos_token_id = None
    hows = [
        None,
        {"map": "narrow", "gamma": 0.5},
        {"map": "wide", "gamma": 0.4, "mode": "amplify"},
        {"map": {"narrow": 0.5, "wide": 0.5}, "gamma": 2.0, "suppression": 0.2},
        {"map": "low", "gamma": 0.25, "mode": "amplify"},
        {"map": "wide", "gamma": 0.25, "mode": "contrast"},
    ]
    values = {name: weights.values for name, weights in maps.items()}
    requests = [
        Asked(
            ph.encode(tokenizer, example).prompt_ids, hows[i % len(hows)], 20 + i % 17, maps=values
        )
        for i, example in enumerate(ph.load_examples(people_path())[:32])
    ]
    assert len(requests) == 32
    blocks = max(len(r.prompt) + r.n_new for r in requests) // 32 + 1
    tight = {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 2 * blocks}
    wanted = [generated(model, r) for r in requests]
    plain = [generated(model, Asked(r.prompt, None, r.n_new, maps=values)) for r in requests[:12]]
    assert sum(a != b for a, b in zip(wanted, plain, strict=False)) > 5
    with engine(
        model_dir(),
        max_model_len=32 * blocks,
        max_num_seqs=32,
        kv_cache_memory_bytes=256 * 2**20,
        disable_log_stats=False,
        **tight,
    ) as llm:
        for asked, output, tokens_wanted in zip(
            requests, answers(llm, requests), wanted, strict=True
        ):
            assert tokens(output) == tokens_wanted, asked
        assert sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions") > 0
