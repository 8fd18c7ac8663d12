"""Families that are refused, and why."""

from __future__ import annotations

# Families that are refused, by what is said of them. What is not here must be right.
REFUSED = {
    "no attention heads behind the AttentionInterface": {
        *("bailing_hybrid", "bamba", "big_bird", "bloom", "codegen", "cpmant", "falcon"),
        *("falcon_mamba", "git", "gpt_neo", "gpt_neox_japanese", "gptj", "granitemoehybrid"),
        *("hrm_text", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2"),
        *("megatron-bert", "minimax", "mllama", "mpt", "mvp", "nemotron_h", "olmo_hybrid"),
        *("openai-gpt", "prophetnet", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"),
        *("qwen3_5_text", "qwen3_next", "qwen4_exp", "qwen4_exp_text", "recurrent_gemma"),
        *("reformer", "rembert", "roformer", "rwkv", "trocr", "xglm", "xlm", "xlnet", "xlstm"),
        *("zamba", "zamba2"),
    },
    "together before it projects them": {"bitnet", "diffllama"},
    "looks ahead": {"bigbird_pegasus"},
    "equally many heads": {"blt"},
    "does not mark its decoder layers": {"ctrl"},
    "shares keys and values": {"gemma3n_text"},
    "let rows join": {"gpt_bigcode", "inkling2_text", "xmod"},
    "several attentions in one decoder layer": {"longcat_flash"},
}


REASON = {kind: reason for reason, kinds in REFUSED.items() for kind in kinds}
