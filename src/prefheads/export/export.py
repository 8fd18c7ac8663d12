"""Amplified heads as weights, for engines that know nothing of heads.

Multiplying a head's output by ``1 + gamma * weight`` is the same as multiplying the columns of the
output projection that read it: ``W' = W (I + D)``, with D diagonal. So amplification on target
``"head"``, at every position, can leave this package: as a LoRA adapter of exactly ``W D``, or
inside a checkpoint.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.errors import ArtifactError, SteeringError
from prefheads.heads.scores import HeadWeights, fingerprint
from prefheads.interventions.intercept import head_layout
from prefheads.interventions.projection import Projection, find_projections
from prefheads.steering.context import ScopeWarning
from prefheads.steering.setting import Setting
from prefheads.storage import PathLike, reason, write_atomic, write_json

ABOUT = "prefheads.json"  # beside the weights: what they are and were made from


@dataclass(frozen=True)
class Change:
    """The change ``B A`` of one projection.

    Attributes:
        name: Path of the projection in the model.
        heads: Heads of its layer that are amplified.
        a, b: ``(rank, in)`` and ``(out, rank)`` float32.
        full_rank: The rank that is exact.
        norm, missing: Frobenius norms of the exact change, and of what truncation leaves out.
    """

    name: str
    heads: int
    a: Tensor
    b: Tensor
    full_rank: int
    norm: float
    missing: float

    @property
    def error(self) -> float:
        """Relative Frobenius error of the truncation; 0 where there is none."""
        return self.missing / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class Adapter:
    """What :func:`export_adapter` wrote: one rank in all layers, one change a layer with heads."""

    rank: int
    changes: tuple[Change, ...]

    @property
    def error(self) -> float:
        """Relative Frobenius error over all layers together."""
        missing = math.hypot(*(c.missing for c in self.changes))
        return missing / math.hypot(*(c.norm for c in self.changes)) if missing else 0.0


def low_rank(name: str, weight: Tensor, change: Tensor, max_rank: int | None = None) -> Change:
    """The change ``weight * change`` of a projection as a product of two thin matrices.

    Args:
        name: Path of the projection.
        weight: ``(out, in)``, the columns of a head side by side.
        change: ``(n_heads,)``, what is added to gains of 1.
        max_rank: Where the exact rank is larger, the best approximation of this rank is taken
            (singular value decomposition).
    """
    n_out, n_in = weight.shape
    columns = change.repeat_interleave(n_in // len(change))
    chosen = columns.nonzero()[:, 0]
    delta = weight[:, chosen].double() * columns[chosen]
    rank = min(len(chosen), n_out)
    missing = 0.0
    a = torch.zeros(min(rank, max_rank or rank), n_in)
    if len(a) < rank:
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        root, missing = values[: len(a)].sqrt(), values[len(a) :].norm().item()
        a[:, chosen] = (root[:, None] * right[: len(a)]).float()
        b = (left[:, : len(a)] * root).float().contiguous()
    elif rank == len(chosen):  # select the columns, then scale them
        a[torch.arange(rank), chosen] = 1
        b = delta.float()
    else:  # more columns than outputs: the change itself is the smaller factor
        a[:, chosen] = delta.float()
        b = torch.eye(n_out)
    heads = int(torch.count_nonzero(change))
    return Change(name, heads, a, b, rank, delta.norm().item(), missing)


def export_adapter(
    model: PreTrainedModel,
    weights: HeadWeights,
    gamma: float,
    folder: PathLike,
    *,
    max_rank: int | None = None,
    source: str = "",
) -> Adapter:
    """Write amplified heads as a LoRA adapter in PEFT's format.

    With it the model is the one of ``steer(model, weights, gamma, mode="amplify", target="head",
    scope="all")``. All layers have one rank, padded with zeros, and the scale is 1, so that the
    files mean the same to engines that do not read PEFT's patterns of ranks.

    Args:
        model: The model that the adapter is for; it is left as it is.
        folder: New; gets ``adapter_config.json``, ``adapter_model.safetensors`` (float32) and
            ``prefheads.json``, which tells what it was made from.
        max_rank: Truncate to this rank where the exact one (heads of a layer x head size) is
            larger. The error is in the result and in ``prefheads.json``.
        source: Where the heads come from, for ``prefheads.json``.

    Raises:
        SteeringError: No head to amplify, or a gamma, map or rank that cannot be used.
        ModelError: Amplification is no change of this model's weights, or they are quantised.
        ArtifactError: The folder holds something, or cannot be written.
    """
    if max_rank is not None and max_rank < 1:
        raise SteeringError(f"a rank of {max_rank} holds nothing; give at least 1")
    about = _about("peft", model, weights, gamma, source)
    changed = _amplified(model, weights, gamma)
    changes = tuple(low_rank(p.name, p.weight, change, max_rank) for p, change in changed)
    rank = max(len(c.a) for c in changes)
    adapter = Adapter(rank, changes)
    tensors, layers = {}, []
    for c in changes:
        missing = rank - len(c.a)
        prefix = f"base_model.model.{c.name}"
        tensors[f"{prefix}.lora_A.weight"] = nn.functional.pad(c.a, (0, 0, 0, missing))
        tensors[f"{prefix}.lora_B.weight"] = nn.functional.pad(c.b, (0, missing))
        ranks = {"rank": len(c.a), "exact_rank": c.full_rank}
        layers.append({"projection": c.name, "heads": c.heads, **ranks, "error": c.error})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.config.name_or_path,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # the scale is lora_alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": changed[0][0].transposed,
        "target_modules": [c.name for c in changes],
    }
    about |= {"rank": rank, "error": adapter.error, "layers": layers}
    content = safetensors.torch.save(tensors, {"format": "pt"})
    with new_folder(folder) as work:
        write_atomic(work / "adapter_model.safetensors", content)
        write_json(work / "adapter_config.json", config)
        write_json(work / ABOUT, about)
    return adapter


def export_merged(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: HeadWeights,
    gamma: float,
    folder: PathLike,
    *,
    source: str = "",
) -> None:
    """Write the model with amplified heads as a checkpoint of its own, loaded as any other.

    Arguments and errors are those of :func:`export_adapter`; the weights keep the model's dtype.
    """
    about = _about("merged", model, weights, gamma, source)
    state = model.state_dict()
    for projection, change in _amplified(model, weights, gamma):
        weight = projection.weight
        scaled = weight * (1 + change).repeat_interleave(weight.shape[1] // len(change))
        key = f"{projection.name}.weight"
        state[key] = (scaled.T if projection.transposed else scaled).to(state[key]).contiguous()
    with new_folder(folder) as work:
        try:
            model.save_pretrained(work, state_dict=state)
            tokenizer.save_pretrained(work)
        except (ValueError, safetensors.SafetensorError) as error:
            why = str(error).strip().partition("\n")[0]
            raise ArtifactError(f"{folder}: cannot be written ({why})") from None
        write_json(work / ABOUT, about)


def _amplified(
    model: PreTrainedModel, weights: HeadWeights, gamma: float
) -> list[tuple[Projection, Tensor]]:
    """The projections that change, with what is added to gains of 1 ``(n_heads,)``."""
    setting = Setting("", "amplify", "head", gamma, scope="all")
    if setting.plain:
        raise SteeringError("gamma 0: to export, it must be above 0")
    if not weights.n_active:
        raise SteeringError("the map is all zero: there is no head to amplify")
    shape = head_layout(model).shape
    if weights.shape != shape:
        raise SteeringError(f"a map of {weights.shape} heads does not fit this model's {shape}")
    rows = zip(find_projections(model), setting.change(weights.values), strict=True)
    return [(projection, change) for projection, change in rows if change.any()]


def _about(
    form: str, model: PreTrainedModel, weights: HeadWeights, gamma: float, source: str
) -> dict[str, Any]:
    info = weights.info
    if info.fingerprint and info.scope not in ("", "all"):
        warnings.warn(
            f"heads found with scope={info.scope!r} act on the prompt too once exported, as with "
            "scope='all'; fit with that scope",
            ScopeWarning,
            stacklevel=3,
        )
    return {
        "format": form,
        "base_model": model.config.name_or_path,
        "fingerprint": fingerprint(model.config),
        "steering": {"mode": "amplify", "target": "head", "scope": "all", "gamma": gamma},
        "heads": [[i, h, weights.values[i, h].item()] for i, h in weights.heads],
        "heads_info": asdict(info),
        "source": source,
    }


def require_new(path: PathLike) -> Path:
    """The absolute path of a folder that does not exist yet, or is empty; else ArtifactError."""
    path = Path(os.path.abspath(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ArtifactError(f"{path}: exists already; give a new folder")
    return path


@contextmanager
def new_folder(path: PathLike) -> Iterator[Path]:
    """A folder that appears with all that the block wrote to it, or not at all.

    Raises:
        ArtifactError: It holds something already, or cannot be written.
    """
    path = require_new(path)
    work = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        work.mkdir(parents=True)
        yield work
        os.replace(work, path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({reason(error)})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
