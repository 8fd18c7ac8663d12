"""Atomic writes, safetensors with the project's own metadata, JSON. Never pickle."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from prefheads.errors import ArtifactError

if TYPE_CHECKING:  # JSON and folders need no torch, which takes seconds to import
    from torch import Tensor

PathLike = str | os.PathLike[str]

# One key only: with several, safetensors writes them in no fixed order and files would differ.
_METADATA_KEY = "prefheads"


def write_atomic(path: PathLike, content: bytes) -> None:
    """Write `content` to `path` whole or not at all.

    Raises:
        ArtifactError: the file cannot be written (no folder, read-only, disk full); what was at
            `path` before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({reason(error)})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def save_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], kind: str, meta: Mapping[str, Any]
) -> None:
    """Save tensors atomically as safetensors, with `kind` and JSON-serialisable `meta` inside.

    The same content gives the same bytes.
    """
    import safetensors.torch

    header = json.dumps({"kind": kind, "meta": dict(meta)}, sort_keys=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, safetensors.torch.save(contiguous, {_METADATA_KEY: header}))


def load_tensors(path: PathLike, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote under the same `kind`: the tensors and the metadata.

    Raises:
        ArtifactError: missing, unreadable, damaged or foreign file, or one of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({reason(error)})") from error
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{path}: damaged, or no safetensors file ({error})") from error
    try:
        header = json.loads(metadata[_METADATA_KEY])
        found, meta = str(header["kind"]), dict(header["meta"])
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path}: not written by prefheads (its metadata is missing)"
        raise ArtifactError(message) from error
    if found != kind:
        raise ArtifactError(f"{path}: holds {found}, but {kind} are needed here")
    return tensors, meta


def write_json(path: PathLike, data: Any) -> None:
    """Write `data` atomically as indented UTF-8 JSON."""
    write_atomic(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: PathLike) -> Any:
    """Read a JSON file; an ArtifactError names the line that is no JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({reason(error)})") from error
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path}: line {error.lineno}: no valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: no valid JSON (not UTF-8 text)") from error


def plain(data: Any) -> Any:
    """Data as JSON has it: tensors and arrays as lists, paths as strings, null for NaN, "inf"."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if hasattr(data, "tolist"):
        return plain(data.tolist())
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, float) and not math.isfinite(data):
        return None if math.isnan(data) else str(data)
    return data


def writable_dir(path: PathLike) -> Path:
    """Create the folder where needed and make sure that files can be created in it.

    Raises:
        ArtifactError: it cannot be created or written, or is a file.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell of read-only mounts, so try it.
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ArtifactError(f"{path}: not a folder to write to ({reason(error)})") from error
    return path


def reason(error: OSError) -> str:
    """What the system says of an error, in a few words."""
    return error.strerror or str(error)
