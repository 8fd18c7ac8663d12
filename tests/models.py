"""Tiny random models of many architectures."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

BASE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
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
    "gpt2": {"num_key_value_heads": None, "intermediate_size": None, "n_inner": 48, "n_positions": 256},
    "starcoder2": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
}
ARCHITECTURES = tuple(EXTRA)


def tiny(kind: str = "llama", attention: str | None = None, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model, with weights large enough for every head to matter."""
    settings = {k: v for k, v in (BASE | EXTRA[kind] | changes).items() if v is not None}
    config = AutoConfig.for_model(kind, **settings)
    torch.manual_seed(seed)
    if attention is None:
        attention = "eager" if kind == "gemma2" else "sdpa"  # sdpa has no soft cap
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model
