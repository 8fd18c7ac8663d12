"""The models of the paper by short names, with how they are best loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A model on the hub.

    Attributes:
        hub_id: Where it is.
        dtype: What it is run in; its checkpoint's own.

    Its chat template comes with its tokenizer: the prompt is the user's turn, without a system
    message. Where there are several GPUs it is spread over them.
    """

    hub_id: str
    dtype: str = "bfloat16"


PRESETS = {
    "llama-3-8b-instruct": Preset("meta-llama/Meta-Llama-3-8B-Instruct"),
    "mistral-7b-instruct": Preset("mistralai/Mistral-7B-Instruct-v0.3"),
    "qwen2-7b-instruct": Preset("Qwen/Qwen2-7B-Instruct"),
}


def preset_of(name: str | os.PathLike[str]) -> Preset | None:
    """The preset of that name, whatever its case."""
    return PRESETS.get(str(name).lower())
