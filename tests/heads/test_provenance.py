"""Where maps come from, and what tells models apart."""

from dataclasses import replace
from typing import Any

import torch
from transformers import GPT2Config, LlamaConfig

from prefheads.heads.scores import HeadWeights, Provenance, fingerprint

INFO = Provenance(model_id="tiny", task="LaMP-4", scope="all", seed=3)


def make_weights(seed: int = 0, layers: int = 4, heads: int = 3) -> HeadWeights:
    return HeadWeights(torch.rand(layers, heads, generator=torch.Generator().manual_seed(seed)))


def llama(**changes: int) -> LlamaConfig:
    shape: dict[str, Any] = {
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "hidden_size": 24,
        "vocab_size": 99,
    }
    return LlamaConfig(**{**shape, **changes})


def test_mixture_keeps_only_the_provenance_its_parts_share() -> None:
    a = HeadWeights(torch.zeros(1, 1), INFO)
    b = HeadWeights(torch.zeros(1, 1), replace(INFO, scope="response", task="LaMP-7", seed=9))
    assert (a + a).info == INFO
    assert (a + b).info == replace(INFO, scope="", task=None, seed=0)


def test_fingerprint_follows_the_architecture_not_the_weights_or_names() -> None:
    assert fingerprint(llama()) == fingerprint(llama(bos_token_id=7))
    assert fingerprint(llama()) != fingerprint(llama(intermediate_size=64))
    # GPT-2 calls its layers n_layer.
    assert fingerprint(GPT2Config(n_layer=2)) != fingerprint(GPT2Config(n_layer=3))
    assert len(fingerprint(llama())) == 16
