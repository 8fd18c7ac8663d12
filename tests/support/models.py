"""Tiny random models of many architectures, and random prompts for them."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prefheads.data.encoding import Encoded

VOCABULARY = 97
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,  # tied, random weights say each token again
}
SHAPE = (3, 4)
EXTRA: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 12},
    "gemma2": {"head_dim": 12, "sliding_window": 8, "query_pre_attn_scalar": 12},
    "gemma3_text": {"head_dim": 12, "sliding_window": 8, "query_pre_attn_scalar": 12},
    "phi3": {},
    "olmo2": {},
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 2.0},
    "gpt_neox": {"num_key_value_heads": None},
    "gpt2": {
        "num_key_value_heads": None,
        "intermediate_size": None,
        "n_inner": 48,
        "n_positions": 256,
    },
    "starcoder2": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
}
ARCHITECTURES = tuple(EXTRA)
# Attention of these makes something else of what the cache gives.
_LATENT: dict[str, object] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
}
_EXPERTS: dict[str, object] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
UNUSUAL: dict[str, dict[str, object]] = {
    "jetmoe": {"kv_channels": 8, "num_local_experts": 4},
    "deepseek_v2": _LATENT | _EXPERTS | {"topk_group": None, "n_group": None},
    "deepseek_v3": _LATENT | _EXPERTS,
    "minicpm3": _LATENT,
    "doge": {"keep_window_size": 6},
}
SLIDING = tuple(kind for kind in EXTRA if "sliding_window" in EXTRA[kind])
BACKENDS = [
    (kind, attention)
    for kind in ARCHITECTURES
    for attention in ("sdpa", "eager")
    if (kind, attention) != ("gemma2", "sdpa")  # sdpa has no soft cap
]


def tiny(
    kind: str = "llama", attention: str | None = None, seed: int = 0, **changes: object
) -> PreTrainedModel:
    """A random model, with weights large enough for every head to matter; it never ends a text."""
    settings = {
        k: v for k, v in (BASE | (EXTRA | UNUSUAL)[kind] | changes).items() if v is not None
    }
    config = AutoConfig.for_model(kind, **settings)
    if attention is None:
        attention = "eager" if kind == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval().float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith(".self_attn.A"):  # zero at first, which leaves out doge's own masks
                parameter.normal_(0, 1, generator=generator)
    model.generation_config.eos_token_id = None
    return model


@cache
def shared(kind: str = "llama", attention: str | None = None) -> PreTrainedModel:
    """The same random model for all tests that leave it as it is."""
    return tiny(kind, attention)


def random_ids(n: int, seed: int = 0) -> torch.Tensor:
    """Random tokens (n,), none of them special."""
    return torch.randint(3, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed))


def random_encoded(
    n_prompt: int = 17, n_response: int = 5, profile: slice = slice(10, 15), seed: int = 0
) -> Encoded:
    """A random prompt and response; the default profile is seen through a window of 8 tokens."""
    ids = random_ids(n_prompt + n_response, seed)
    mask = torch.zeros(n_prompt, dtype=torch.bool)
    mask[profile] = True
    return Encoded(ids[:n_prompt], ids[n_prompt:], mask, "", False, f"random-{seed}", "someone")


def left_padded(rows: list[torch.Tensor], fill: int | bool = 0) -> torch.Tensor:
    """Rows of different lengths as one batch."""
    width = max(map(len, rows))
    return torch.stack([torch.cat([r.new_full((width - len(r),), fill), r]) for r in rows])


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single printable characters, for the vocabulary of the tiny models."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {chr(c): c - 29 for c in range(32, 126)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="}"))
    backend.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="}",
        model_max_length=256,
    )
