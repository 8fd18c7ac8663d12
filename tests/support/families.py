"""Tiny random models of every causal language model family that transformers has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from support.tiny_settings import AUDIO, BASE, EXTRA, LAYERS, VISION
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LARGEST = 10**6  # parameters of a family that has no settings of its own
FAMILIES: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

UNBUILDABLE: dict[str, str] = {
    "gemma3n": "its picture encoder needs timm",
    "gemma4_assistant": "it drafts from the cache of another model",
    "gemma4_unified_assistant": "it drafts from the cache of another model",
    "musicgen": "AutoModelForCausalLM gives its decoder the configuration of the whole",
    "musicgen_melody": "AutoModelForCausalLM gives its decoder the configuration of the whole",
}


def declared(config: type[PreTrainedConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a kind of configuration has, under the names it gives them."""
    names = {field.name for field in fields(config)}
    own = getattr(config, "attribute_map", {})
    named = {
        name if name in names else own.get(name, name): value for name, value in settings.items()
    }
    return {name: value for name, value in named.items() if name in names}


def _default(config: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    try:
        return config()
    except Exception:  # some have no valid default
        return None


def _mixed(default: PreTrainedConfig | None) -> dict[str, Any]:
    """Every kind of layer that the family's own default has, in turns."""
    mixed: dict[str, Any] = {}
    for name in ("layer_types", "mlp_layer_types"):
        kinds = list(dict.fromkeys(getattr(default, name, None) or ()))
        if len(kinds) > 1:
            mixed[name] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    return mixed


def _small(
    config: type[PreTrainedConfig], base: Mapping[str, Any], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a tiny model, those of the configurations inside one too."""
    default = _default(config)
    settings = declared(config, {**base, **(_mixed(default) if base is BASE else {})})
    if "kv_lora_rank" in settings and "num_key_value_heads" in settings:
        settings["num_key_value_heads"] = settings["num_attention_heads"]  # one latent for all
    settings |= extra
    for name, inner in (getattr(config, "sub_configs", None) or {}).items():
        given = settings.get(name, {})
        made = getattr(default, name, None)
        if given is None or (made is None and not given):
            continue
        if "model_type" in given:
            inner = CONFIG_MAPPING[given["model_type"]]
        elif made is not None:
            inner = type(made)
        if inner is AutoConfig:
            continue
        small = VISION if "vision" in name else AUDIO if "audio" in name else BASE
        settings[name] = {"model_type": inner.model_type} | _small(inner, small, given)
    return settings


def tiny_config(kind: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a family's tiny model."""
    settings = _small(CONFIG_MAPPING[kind], BASE, {**EXTRA.get(kind, {}), **changes})
    return AutoConfig.for_model(kind, **settings)


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """The model with random weights, large enough for every head to matter; it ends no text."""
    model = model.eval().float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25, generator=generator)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def tiny_family(kind: str, attention: str | None = None, **changes: Any) -> PreTrainedModel:
    """A random model of a family; an unknown one is tried with what all are given."""
    chosen = {} if attention is None else {"attn_implementation": attention}
    try:
        config = tiny_config(kind, **changes)
        if kind not in EXTRA:
            with torch.device("meta"):
                size = AutoModelForCausalLM.from_config(config, **chosen).num_parameters()
            if size > LARGEST:
                raise ValueError(f"it would have {size} parameters")
        with torch.random.fork_rng():
            torch.manual_seed(0)  # for the parameters that stay as they are made
            model = AutoModelForCausalLM.from_config(config, **chosen)
    except Exception as error:
        if kind not in EXTRA:
            error.add_note(f"{kind} may need settings of its own in EXTRA")
        raise
    return randomized(model)
