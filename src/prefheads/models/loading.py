"""Load a causal language model and its tokenizer, the same way for every source."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefheads.errors import ModelError
from prefheads.models import bundled
from prefheads.models.network import no_hub

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The models of the paper by short names. Their checkpoints are in this precision; their chat
# templates come with their tokenizers. Where there are several GPUs they are spread over them.
PRESETS = {
    "llama-3-8b-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
    "qwen2-7b-instruct": "Qwen/Qwen2-7B-Instruct",
}
PRESET_DTYPE = "bfloat16"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_model(
    name: str | os.PathLike[str] = "bundled",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in evaluation mode, with a tokenizer that pads on the left.

    Only safetensors are read, and code that comes with a checkpoint is never run.

    Args:
        name: "bundled", a name of :data:`PRESETS`, a local folder, or a hub id.
        device: "cpu", "cuda", "cuda:1", ...; None or "auto" takes a GPU where there is one.
        dtype: "float32", "bfloat16", "float16" or a torch dtype; None takes the checkpoint's own,
            on a CPU float32.
        attn_implementation: The attention of transformers to use ("sdpa", "eager", ...).
        device_map: Spreads a large model over several devices, as transformers understands it;
            excludes `device`.

    Returns:
        The model and its tokenizer.

    Raises:
        ModelError: No such model, damaged files, not a causal language model, or a device, dtype
            or attention that this machine cannot serve.
    """
    if device_map is not None and device is not None:
        raise ModelError("give either device or device_map, not both")
    if preset_of(name):
        dtype = dtype or PRESET_DTYPE
        if device in (None, "auto") and device_map is None and torch.cuda.device_count() > 1:
            device, device_map = None, "auto"
    place = None if device_map is not None else _device(device)
    wanted_dtype = _dtype(dtype, place)
    source = _source(name)
    config, offline = _read_config(source)
    with _explained(f"cannot load model {source}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=wanted_dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
            local_files_only=offline,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    model: PreTrainedModel
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{source} is damaged or not a causal language model: "
            f"it misses {len(missing)} of the weights, such as {missing[0]}"
        )
    tokenizer = _read_tokenizer(source, offline)
    if place is not None:
        with _explained(f"cannot put {source} on {place}"):
            model.to(place)  # type: ignore[arg-type]
    return model.eval(), tokenizer


def load_skeleton(
    name: str | os.PathLike[str] = "bundled",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model without its weights (they are on the device "meta"), with its tokenizer.

    It runs nothing, but says what a model is: its configuration, its end tokens.

    Raises:
        ModelError: As :func:`load_model`, but for its weights.
    """
    source = _source(name)
    config, offline = _read_config(source)
    with _explained(f"cannot load model {source}"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with suppress(OSError):  # without one, what the configuration says
        model.generation_config = GenerationConfig.from_pretrained(source, local_files_only=offline)
    return model.eval(), _read_tokenizer(source, offline)


def preset_of(name: str | os.PathLike[str]) -> str | None:
    """The hub id of the preset of that name, whatever its case."""
    return PRESETS.get(str(name).lower())


def _device(device: str | torch.device | None) -> torch.device:
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ModelError(f'no such device: {device!r}; use "auto", "cpu" or "cuda"') from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ModelError(f'no device {str(chosen)!r}: {found} CUDA devices here; use "cpu"')
    return chosen


def _dtype(dtype: str | torch.dtype | None, device: torch.device | None) -> torch.dtype | str:
    """Return what `from_pretrained` takes: a dtype, or "auto" for the checkpoint's own."""
    if dtype is None:
        # Half precision is slow on most CPUs, and too coarse for differences of likelihoods.
        return torch.float32 if device is not None and device.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; use one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _source(name: str | os.PathLike[str]) -> str:
    """Return a checked local folder, or `name` where it can be a hub id."""
    if name == "bundled":
        return str(bundled.model_dir())
    if preset := preset_of(name):
        return preset
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no model: config.json is missing")
        return str(path)
    if path.exists():
        raise ModelError(f"{path} is a file; give the folder that holds config.json")
    if not _HUB_ID.fullmatch(str(name)):
        raise ModelError(f"no such model folder: {path}")
    return str(name)


def load_config(name: str | os.PathLike[str] = "bundled") -> PreTrainedConfig:
    """The configuration of a model, without its weights: enough for most checks.

    Raises:
        ModelError: No such model, or not a causal language model.
    """
    return _read_config(_source(name))[0]


def _read_config(source: str) -> tuple[PreTrainedConfig, bool]:
    """The configuration, and whether nothing but what was downloaded before can be had."""
    why = no_hub(source)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source, trust_remote_code=False, local_files_only=bool(why)
        )
    except Exception as error:  # anything can be wrong with foreign files
        if Path(source).is_dir():
            raise ModelError(f"cannot read {source}/config.json: {_one_line(error)}") from None
        cannot = f"cannot get model {source!r}: no such folder, "
        if why:
            cannot += f"none downloaded before, and the hub cannot be reached ({why})"
        else:
            cannot += f"and the hub does not offer it ({_one_line(error)})"
        raise ModelError(cannot) from None
    architectures = config.architectures or []
    if config.is_encoder_decoder or any(name.endswith("MaskedLM") for name in architectures):
        raise ModelError(f"{source} is not a causal language model but {config.model_type}")
    return config, bool(why)


def _read_tokenizer(source: str, offline: bool) -> PreTrainedTokenizerBase:
    with _explained(f"cannot load the tokenizer of {source}"):
        tokenizer = AutoTokenizer.from_pretrained(
            source, padding_side="left", trust_remote_code=False, local_files_only=offline
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn any error into a line: anything can be wrong with foreign files."""
    try:
        yield
    except Exception as error:
        raise ModelError(f"{what}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
