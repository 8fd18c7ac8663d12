"""A fitted steerer as files: JSON and safetensors, nothing else."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from prefheads.calibration.calibrate import Calibration
from prefheads.data.people import Seen
from prefheads.errors import ArtifactError, PrefheadsError
from prefheads.heads.scores import HeadScores, HeadWeights, Provenance, fingerprint
from prefheads.heads.weights import require_model
from prefheads.models.bundled import model_name
from prefheads.storage import load_tensors, read_json, save_tensors, write_json
from prefheads.users import Clusters

if TYPE_CHECKING:
    from prefheads.steerer.core import PreferenceSteerer

KIND = "steerer"
SEEN = "seen.json"
USED = ("discovery", "calibration")
PLAIN_FIELDS = ("users", "scope", "routing", "temperature", "encoder", "task", "seed")


def save(steerer: PreferenceSteerer, folder: Path) -> None:
    """Write ``steerer.json`` last, so that a folder with it is complete."""
    tensors, meta = steerer.clusters.to_tensors()
    tensors |= {
        "maps": torch.stack([m.values for m in steerer.maps]),
        "shared": steerer.shared.values,
    }
    infos = [asdict(m.info) for m in (steerer.shared, *steerer.maps)]
    save_tensors(folder / "steerer.safetensors", tensors, KIND, meta | {"infos": infos})
    for target, scores in steerer.scores.items():
        scores.save(folder / f"scores-{target}.safetensors")
    write_json(folder / SEEN, steerer.seen.to_dict())
    config = steerer.model.config
    data = {
        "model_id": config.name_or_path,
        "fingerprint": fingerprint(config),
        "calibration": steerer.calibration.to_dict(),
        "targets": list(steerer.scores),
    }
    data |= {name: getattr(steerer, name) for name in PLAIN_FIELDS}
    write_json(folder / "steerer.json", data)


def load(folder: Path, model: PreTrainedModel) -> dict[str, Any]:
    """The fields of a saved steerer, checked against the model."""
    if not (folder / "steerer.json").is_file():
        raise ArtifactError(f"{folder}: holds no fitted steerer (steerer.json is missing)")
    data = read_json(folder / "steerer.json")
    tensors, meta = load_tensors(folder / "steerer.safetensors", KIND)
    try:
        if data["fingerprint"] != fingerprint(model.config):
            raise ArtifactError(
                f"{folder}: was fitted for {model_name(data['model_id'])}, "
                f"not for {model_name(model.config.name_or_path)}"
            )
        of_shared, *infos = (Provenance(**info) for info in meta["infos"])
        fields = {
            "clusters": Clusters.from_tensors(tensors, meta),
            "maps": [HeadWeights(m, i) for m, i in zip(tensors["maps"], infos, strict=True)],
            "shared": HeadWeights(tensors["shared"], of_shared),
            "calibration": Calibration.from_dict(data["calibration"]),
            "scores": {
                t: HeadScores.load(folder / f"scores-{t}.safetensors", model)
                for t in data["targets"]
            },
            "seen": load_seen(folder),
            **{name: data[name] for name in PLAIN_FIELDS},
        }
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, PrefheadsError) as error:
        raise ArtifactError(f"{folder}: damaged steerer ({error})") from error
    shared = fields["shared"]
    require_model(folder, shared.values, shared.info, model.config)
    return fields


def fitted_task(folder: Path) -> str | None:
    """The task that a steerer was fitted for.

    Raises:
        ArtifactError: No steerer, or a damaged one.
    """
    path = folder / "steerer.json"
    if not path.is_file():
        raise ArtifactError(f"{folder}: holds no fitted steerer; run `prefheads fit` first")
    data = read_json(path)
    if not isinstance(data, dict) or "task" not in data:
        raise ArtifactError(f"{path}: damaged; fit again into another folder")
    task = data["task"]
    return None if task is None else str(task)


def load_seen(folder: Path) -> Seen:
    """The samples and people that a fit saw, which a test must not see again. Of fits by version
    0.1.0 before it kept them, the names of users alone, which files of LaMP do not give.

    Raises:
        ArtifactError: Damaged.
    """
    path = folder / SEEN
    if path.is_file():
        try:
            return Seen.from_dict(read_json(path))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: damaged ({error})") from None
    try:
        users = read_json(folder / "steerer.json")["users"]
        return Seen(users=frozenset(u for part in USED for u in users.get(part, ())))
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder}: damaged steerer ({error})") from None
