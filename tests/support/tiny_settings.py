"""Settings of tiny models, for families in general and for those that need their own."""

from __future__ import annotations

from typing import Any

VOCABULARY = 97
LAYERS = 4
WINDOW = 8

# What a family is told of these, under its own names; a setting that it does not have is left out.
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,  # tied, random weights say each token again
    "is_decoder": True,
    "sliding_window": WINDOW,
    # experts
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention and indexers
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 6,
    "index_head_dim": 8,
    "index_n_heads": 8,
    # linear attention and state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "state_size": 8,
    "chunk_size": 8,
    # decoders of encoder-decoders
    "decoder_layers": LAYERS,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "forced_eos_token_id": None,
    "encoder_no_repeat_ngram_size": 0,
    "ffn_dim": 48,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
AUDIO: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_WINDOWS: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_HALF_WINDOWS: dict[str, Any] = {"use_sliding_window": True, "max_window_layers": 2}
_ROTARY: dict[str, Any] = {"rotary_dim": 4}
_PER_LAYER: dict[str, Any] = {"vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8}
_GEMMA3N: dict[str, Any] = _PER_LAYER | {
    "num_kv_shared_layers": 2,
    "laurel_rank": 8,
    "altup_num_inputs": 2,
}
_GEMMA4: dict[str, Any] = _PER_LAYER | {"global_head_dim": 16}
_DOTS3: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 16,
    "shared_experts_intermediate_size": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
_INKLING: dict[str, Any] = {
    "unpadded_vocab_size": VOCABULARY,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 32,
}
_QWEN4: dict[str, Any] = {
    "eos_token_id": 2,  # n-grams end there
    "hc_lowrank": 8,
    "ple_layer_ids": [1],
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
EXTRA: dict[str, dict[str, Any]] = {
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "index_n_heads": 2,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "bamba": {"attn_layer_indices": [1, 3]},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blt": {
        "num_hidden_layers": LAYERS,  # its cache asks for them
        "encoder_hash_byte_group_size": [3],
        "encoder_hash_byte_group_vocab": VOCABULARY,
        "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32},
    },
    "codegen": _ROTARY,
    "cohere_compass_text": _WINDOWS
    | {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
            for kind in ("sliding_attention", "full_attention")
        }
    },
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "ctrl": {"dff": 48},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 16, "moe_top_k": 2},
    },
    "deepseek_v4": {"o_lora_rank": 8, "o_groups": 2},
    "dots1": _WINDOWS,
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {
            "adapter_in_dim": 32,
            "adapter_out_dim": 32,
            "mlp_layer_types": ["dense", "dense"],
        },
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _DOTS3,
    "falcon_h1": {"mamba_d_ssm": 64},
    "fuyu": {"patch_size": 4},
    "gemma3n_text": _GEMMA3N,
    "gemma4": {
        "text_config": _GEMMA4,
        "vision_config": {"position_embedding_size": 64},
        "audio_config": None,
    },
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {
        "text_config": {"global_head_dim": 16},
        "vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32},
        "audio_config": None,
    },
    "gemma4_unified_text": {"global_head_dim": 16},
    "got_ocr2": {"vision_config": {"output_channels": 32, "mlp_dim": 48}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "gptj": _ROTARY,
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "inkling2_text": _INKLING,
    "inkling_text": _INKLING | {"logits_mup_width_multiplier": 1.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4},
    "laguna": _WINDOWS,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4": {"text_config": {"attention_chunk_size": WINDOW, "intermediate_size_mlp": 48}},
    "llama4_text": {"attention_chunk_size": WINDOW, "intermediate_size_mlp": 48},
    "longcat_flash": {"num_layers": 2, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "mellum": _WINDOWS,
    "minimax": {"block_size": WINDOW},
    "ministral": _WINDOWS,
    "modernbert-decoder": {"local_attention": WINDOW},
    "moshi": {
        "audio_vocab_size": VOCABULARY,
        "sliding_window": 256,  # its cache keeps to the window, its mask does not
    },
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
    },
    "phi4_multimodal": {
        "audio_config": {
            "num_blocks": 1,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 8,
        }
    },
    "qwen2": _HALF_WINDOWS,
    "qwen2_moe": _HALF_WINDOWS,
    "qwen3": _HALF_WINDOWS,
    "qwen3_moe": _HALF_WINDOWS,
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32},
    "reformer": {
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "attention_head_size": 8,
        "axial_pos_embds": False,
        "feed_forward_size": 48,
        "local_attn_chunk_length": WINDOW,
        "lsh_attn_chunk_length": WINDOW,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "roc_bert": {
        "pronunciation_vocab_size": VOCABULARY,
        "pronunciation_embed_dim": 8,
        "shape_vocab_size": VOCABULARY,
        "shape_embed_dim": 8,
    },
    "smollm3": _WINDOWS | {"use_sliding_window": True},
    "xlm": {"causal": True},
    "xlnet": {"d_inner": 48, "attn_type": "uni"},
    "xlstm": {"hidden_size": 128, "num_heads": 4, "chunk_size": 64},  # in steps of 64
    "xmod": {"default_language": "en_XX"},
    "zaya": {
        "num_experts_per_tok": 1,
        "router_hidden_size": 16,
        "layer_types": ["hybrid", "hybrid_sliding"] * 2,
    },
}
