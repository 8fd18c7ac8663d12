"""Exported adapters in stock vLLM: one a request, in one batch, with the merged models' tokens."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from support.engines import KINDS, greedy, random_prompt, tokens
from support.models import SHAPE, character_tokenizer, tiny
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from prefheads.export.export import export_adapter, export_merged
from prefheads.heads.weights import HeadWeights

NEW = 24
MAPS = {
    "hard": (HeadWeights.from_heads(SHAPE, [(0, 1), (2, 0), (2, 3)]), 1.0),
    "soft": (HeadWeights(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))), 0.5),
}
ROWS = ["soft", None, "hard", "soft", "hard", None]  # the adapter of each request
PROMPTS = [random_prompt(9 + 4 * i, i) for i in range(len(ROWS))]


def served(folder: Path, max_rank: int) -> list[list[int]]:
    """Greedy tokens from vLLM without this package's plugins, which nothing may have loaded yet."""
    os.environ["VLLM_PLUGINS"] = ""
    import vllm.v1.sample.logits_processor as processors

    processors.LOGITSPROCS_GROUP = "none"
    engine = LLM(
        str(folder / "plain"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=8,
        kv_cache_memory_bytes=32 * 2**20,
        enable_lora=True,
        max_lora_rank=max_rank,
        # One more than there are: on the CPU, vLLM 0.32 gives requests without an adapter the last
        # slot's (index -1), which must be empty.
        max_loras=len(MAPS) + 1,
    )
    loras = {
        name: LoRARequest(name, i, str(folder / f"{name}-adapter"))
        for i, name in enumerate(MAPS, 1)
    }
    outputs = engine.generate(
        [{"prompt_token_ids": prompt.tolist()} for prompt in PROMPTS],
        SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True),
        lora_request=[loras[name] if name else None for name in ROWS],
        use_tqdm=False,
    )
    return [tokens(output) for output in outputs]


@pytest.mark.parametrize("kind", KINDS)
def test_each_request_has_its_adapter(kind: str, tmp_path: Path) -> None:
    # Four heads of 32, together wider than the model where vLLM can have that.
    model = tiny(kind, hidden_size=128 if kind == "qwen2" else 64, head_dim=32)
    model.save_pretrained(tmp_path / "plain")
    character_tokenizer().save_pretrained(tmp_path / "plain")
    ranks = []
    for name, (heads, gamma) in MAPS.items():
        ranks.append(export_adapter(model, heads, gamma, tmp_path / f"{name}-adapter").rank)
        export_merged(model, character_tokenizer(), heads, gamma, tmp_path / name)
    assert ranks == [64, 128 if kind == "qwen2" else 64]

    wanted = []
    for name, prompt in zip(ROWS, PROMPTS, strict=True):
        one = AutoModelForCausalLM.from_pretrained(tmp_path / (name or "plain")).eval()
        one.generation_config.eos_token_id = None
        wanted.append(greedy(one, prompt, NEW))
    plain = [greedy(model, prompt, NEW) for prompt in PROMPTS]
    assert [p != w for p, w in zip(plain, wanted, strict=True)] == [
        name is not None for name in ROWS
    ]

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        assert alone.submit(served, tmp_path, max(ranks)).result() == wanted
