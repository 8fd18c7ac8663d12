"""Tiny random models that read text with a picture in it, and a prompt for each."""

from __future__ import annotations

from typing import Any

import torch
from support.families import declared, randomized, tiny_config
from support.tiny_settings import VISION, VOCABULARY
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

IMAGE = VOCABULARY - 1
START = VOCABULARY - 2
END = VOCABULARY - 3
SIDE = VISION["image_size"]
PATCH = VISION["patch_size"]
PATCHES = SIDE // PATCH  # along a side
MERGED = (PATCHES // 2) ** 2  # tokens of a picture when 2 x 2 patches make one
TILES = 2  # of mllama
BEFORE, AFTER = 5, 8  # text tokens around the picture

_ROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
}
_MERGED: dict[str, Any] = {"out_hidden_size": 32, "spatial_merge_size": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "text_config": _ROPE,
        "vision_config": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {
        "text_config": _ROPE,
        "vision_config": _MERGED | {"window_size": 2 * PATCH, "fullatt_block_indexes": [1]},
    },
    "qwen3_vl": {
        "text_config": _ROPE,
        "vision_config": _MERGED
        | {"num_position_embeddings": PATCHES**2, "deepstack_visual_indexes": [0, 1]},
    },
    "glm4v": {"text_config": _ROPE, "vision_config": _MERGED},
    "gemma3": {"mm_tokens_per_image": MERGED},
    "llava": {},
    "paligemma": {"projection_dim": 32},
    "idefics3": {"scale_factor": 2},
    "smolvlm": {"scale_factor": 2},
    "internvl": {
        "vision_config": {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
    },
    "mistral3": {},
    "mllama": {
        "text_config": {"cross_attention_layers": [1]},
        "vision_config": {
            "attention_heads": 4,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
            "max_num_tiles": TILES,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
    },
    "aya_vision": {"downsample_factor": 2},
}
PICTURES: tuple[str, ...] = tuple(SETTINGS)
_GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
_TOKENS = {"llava": PATCHES**2, "paligemma": PATCHES**2, "mllama": 1}


def tiny_picture_model(kind: str, attention: str | None = None) -> PreTrainedModel:
    """A random model of a kind."""
    tokens = {
        "image_token_id": IMAGE,
        "vision_start_token_id": START,
        "image_start_token_id": START,
        "vision_end_token_id": END,
        "image_end_token_id": END,
    }
    config = tiny_config(kind, **declared(CONFIG_MAPPING[kind], tokens), **SETTINGS[kind])
    chosen = {} if attention is None else {"attn_implementation": attention}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, **chosen)
    for name, parameter in model.named_parameters():
        if name.endswith(("attn_gate", "mlp_gate")):  # closed at first
            torch.nn.init.constant_(parameter, 0.5)
    model = randomized(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[END:] = 0  # it says no picture of its own
    return model


def picture_inputs(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A prompt with a random picture between its words; the seed draws the picture only."""
    text = torch.randint(3, END, (BEFORE + AFTER,), generator=torch.Generator().manual_seed(0))
    n = _TOKENS.get(kind, MERGED)
    picture = torch.tensor([START] + [IMAGE] * n + [END])
    ids = torch.cat([text[:BEFORE], picture, text[BEFORE:]])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    is_image = (ids == IMAGE).long()
    if kind in _GRIDS:  # patches, each of them in two frames
        patches = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # 1, 3, y, x, Y, X
        order = patches[0].reshape(3, PATCHES // 2, 2, PATCHES // 2, 2, PATCH, PATCH)
        order = order.permute(1, 3, 2, 4, 0, 5, 6).reshape(PATCHES**2, 3, 1, PATCH, PATCH)
        inputs["pixel_values"] = order.repeat(1, 1, 2, 1, 1).flatten(1)
        inputs["image_grid_thw"] = torch.tensor([[1, PATCHES, PATCHES]])
        inputs["mm_token_type_ids"] = is_image
    elif kind in ("idefics3", "smolvlm"):
        inputs["pixel_values"] = pixels[None]
        inputs["pixel_attention_mask"] = torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool)
    elif kind == "mllama":
        tiles = torch.zeros(1, 1, TILES, 3, SIDE, SIDE)
        tiles[:, :, 0] = pixels
        mask = torch.zeros(1, ids.shape[1], 1, TILES, dtype=torch.long)
        mask[:, BEFORE + 1 :, :, 0] = 1
        inputs["pixel_values"] = tiles
        inputs["aspect_ratio_ids"] = torch.tensor([[1]])
        inputs["aspect_ratio_mask"] = torch.tensor([[[1] + [0] * (TILES - 1)]])
        inputs["cross_attention_mask"] = mask
    else:
        inputs["pixel_values"] = pixels
    if kind == "gemma3":
        inputs["token_type_ids"] = is_image
    if kind == "paligemma":  # all of it prefix, seen both ways
        inputs["token_type_ids"] = torch.zeros_like(ids)
    if kind == "mistral3":
        inputs["image_sizes"] = torch.tensor([[SIDE, SIDE]])
    return inputs


REFUSED = {"paligemma": "looks ahead", "mllama": r"no attention heads .* in layers \[1\]"}
