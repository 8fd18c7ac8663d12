"""Saved tiny models, head maps, engines to serve them, and what transformers makes of requests."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import SHAPE, VOCABULARY, character_tokenizer, tiny
from support.reference import steered_logits
from torch import Tensor
from transformers import PreTrainedModel
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

import prefheads as ph

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
FORK = 1
SCHEDULER = "prefheads.vllm.SteeringScheduler"
_soft = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
_soft[0] = 0
MAPS = {
    "hard": ph.HeadWeights.from_heads(SHAPE, [(1, 2), (1, 3), (2, 0)]).values,
    "soft": _soft,
    "last": ph.HeadWeights.from_heads(SHAPE, [(2, 1), (2, 3)]).values,
    "none": torch.zeros(SHAPE),
}
LOWEST = ph.HeadWeights.from_heads(SHAPE, [(0, 1), (2, 2)]).values  # for amplification only


@dataclass
class Asked:
    """A request: a prompt (n,), how it is steered (None: not at all) and how many tokens."""

    prompt: Tensor
    how: dict[str, Any] | None = None
    n_new: int = 8
    options: dict[str, Any] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=lambda: MAPS | {"lowest": LOWEST}, repr=False)

    @property
    def params(self) -> SamplingParams:
        extra = None if self.how is None else {"prefheads": self.how}
        options = {"temperature": 0.0} | self.options
        return SamplingParams(max_tokens=self.n_new, ignore_eos=True, extra_args=extra, **options)

    @property
    def inputs(self) -> dict[str, list[int]]:
        return {"prompt_token_ids": self.prompt.tolist()}

    @property
    def weights(self) -> Tensor:
        """The map (L, H) that it names, whichever way."""
        name = self.how["map"] if self.how else next(iter(self.maps))
        shares = name if isinstance(name, dict) else {name: 1.0}
        return sum(share * self.maps[n] for n, share in shares.items())

    def steer(self, model: PreTrainedModel) -> Any:
        """ph.steer, with what it asks for."""
        how = {k: v for k, v in (self.how or {"gamma": 0.0}).items() if k != "map"}
        return ph.steer(model, self.weights, **how)


def random_prompt(n: int, seed: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed))


def mixed(n: int = 32) -> list[Asked]:
    """Prompts of 1 to 90 tokens; a quarter unsteered, the rest in all modes, maps, strengths."""
    hows: list[dict[str, Any] | None] = [
        None,
        {"map": "hard", "gamma": 0.5},
        {"map": "soft", "gamma": 0.7, "mode": "amplify"},
        {"map": "last", "gamma": 1.5, "mode": "contrast"},
        None,
        {"map": "soft", "gamma": 1.0, "mode": "contrast", "suppression": 0.3},
        {"map": "lowest", "gamma": 1.0, "mode": "amplify"},
        {"map": {"hard": 0.25, "soft": 0.75}, "gamma": 1.0},
        {"map": "none", "gamma": 1.0},
        {"map": "hard", "gamma": 0.0},
    ]
    lengths = torch.randint(1, 90, (n,), generator=torch.Generator().manual_seed(1)).tolist()
    return [
        Asked(random_prompt(length, i), hows[i % len(hows)], 4 + i * 7 % 30)
        for i, length in enumerate(lengths)
    ]


def generated(model: PreTrainedModel, asked: Asked) -> list[int]:
    """Greedy tokens of transformers' generate under ph.steer."""
    with asked.steer(model):
        return greedy(model, asked.prompt, asked.n_new)


def greedy(model: PreTrainedModel, prompt: Tensor, n_new: int) -> list[int]:
    """Tokens of generate. Without a mask it would take a pad token for padding."""
    inputs = {"input_ids": prompt[None], "attention_mask": torch.ones_like(prompt)[None]}
    out = model.generate(**inputs, max_new_tokens=n_new, do_sample=False)
    return out[0, len(prompt) :].tolist()


def log_probabilities(model: PreTrainedModel, asked: Asked, new: list[int]) -> Tensor:
    """Of each new token (n_new,), by full passes over prompt and tokens."""
    ids = torch.cat([asked.prompt, torch.tensor(new)])
    how = {"mode": "contrast", "gamma": 0.0} | (asked.how or {})
    how = {k: v for k, v in how.items() if k != "map"}
    logits = steered_logits(model, ids, len(asked.prompt), asked.weights, **how)
    logits = logits[len(asked.prompt) - 1 : -1].log_softmax(-1)
    return logits.gather(1, torch.tensor(new)[:, None])[:, 0]


def tokens(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)


def answers(llm: LLM, requests: list[Asked]) -> list[Any]:
    inputs = [r.inputs for r in requests]
    return llm.generate(inputs, [r.params for r in requests], use_tqdm=False)


def assert_as_transformers(llm: LLM, model: PreTrainedModel, requests: list[Asked]) -> None:
    for asked, output in zip(requests, answers(llm, requests), strict=True):
        assert tokens(output) == generated(model, asked), asked


@contextmanager
def engine(path: str | Path, **options: Any) -> Iterator[LLM]:
    """An engine in this process, small and eager."""
    defaults = {
        "dtype": "float32",
        "max_model_len": 256,
        "enforce_eager": True,
        "block_size": 32,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "scheduler_cls": SCHEDULER,
        "generation_config": "vllm",
        "kv_cache_memory_bytes": 32 * 2**20,
    }
    llm = LLM(model=str(path), **defaults | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a tiny model of a kind; heads are as wide as vLLM's attention on CPUs needs them."""
    folder = tmp_path_factory.mktemp("models")

    def save(kind: str) -> Path:
        if not (folder / kind).exists():
            loaded(kind).save_pretrained(folder / kind)
            character_tokenizer().save_pretrained(folder / kind)
        return folder / kind

    return save


_models: dict[str, PreTrainedModel] = {}


def loaded(kind: str) -> PreTrainedModel:
    """The same model in transformers."""
    if kind not in _models:
        _models[kind] = tiny(kind, hidden_size=128, head_dim=32)
    return _models[kind]


@pytest.fixture(scope="session")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of maps, each a file."""
    folder = tmp_path_factory.mktemp("maps")
    for name, values in (MAPS | {"lowest": LOWEST}).items():
        ph.HeadWeights(values).save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session", autouse=True)
def configured(maps: Path) -> Iterator[None]:
    """The plugin finds the maps, and forks where all but one of them begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFHEADS_MAPS", str(maps))
        patch.setenv("PREFHEADS_FORK", str(FORK))
        yield
