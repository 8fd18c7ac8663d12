"""A fitted steerer as files: JSON and safetensors, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from prefheads.calibration.calibrate import Calibration
from prefheads.data.people import Seen
from prefheads.errors import ArtifactError, PrefheadsError
from prefheads.heads.files import (
    SHARED,
    STEERER,
    is_fitted,
    load_steerer_maps,
    save_steerer_maps,
)
from prefheads.heads.scores import HeadScores
from prefheads.heads.weights import HeadWeights, fingerprint, require_model
from prefheads.models.bundled import model_name
from prefheads.storage import read_json, write_json
from prefheads.users import Clusters

SEEN = "seen.json"
USED = ("discovery", "calibration")
PLAIN_FIELDS = ("users", "scope", "routing", "temperature", "encoder", "task", "seed")


def save(folder: Path, config: PreTrainedConfig, fields: Mapping[str, Any]) -> None:
    """Write the fields of a steerer, ``steerer.json`` last: a folder with it is complete."""
    tensors, meta = fields["clusters"].to_tensors()
    save_steerer_maps(folder, fields["shared"], fields["maps"], tensors, meta)
    for target, scores in fields["scores"].items():
        scores.save(folder / f"scores-{target}.safetensors")
    write_json(folder / SEEN, fields["seen"].to_dict())
    data = {
        "model_id": config.name_or_path,
        "fingerprint": fingerprint(config),
        "calibration": fields["calibration"].to_dict(),
        "targets": list(fields["scores"]),
    }
    data |= {name: fields[name] for name in PLAIN_FIELDS}
    write_json(folder / STEERER, data)


def read_steerer(folder: Path, config: PreTrainedConfig | None = None) -> dict[str, Any]:
    """What ``steerer.json`` holds, checked against the config of a model; no tensors are read."""
    path = folder / STEERER
    if not is_fitted(folder):
        raise ArtifactError(
            f"{folder}: holds no fitted steerer ({STEERER} is missing); run `prefheads fit` first"
        )
    data = read_json(path)
    if not isinstance(data, dict) or not {"fingerprint", "task"} <= data.keys():
        raise ArtifactError(f"{path}: damaged; fit again into another folder")
    if config is not None and data["fingerprint"] != fingerprint(config):
        raise ArtifactError(
            f"{folder}: was fitted for {model_name(data.get('model_id'))}, "
            f"not for {model_name(config.name_or_path)}"
        )
    return data


def load_clusters(folder: Path) -> tuple[Clusters, list[HeadWeights], HeadWeights]:
    """The clusters of users, the map of each, and the shared map."""
    maps, tensors, meta = load_steerer_maps(folder)
    clusters, shared = Clusters.from_tensors(tensors, meta), maps.pop(SHARED)
    if len(maps) != clusters.n_clusters:
        raise ArtifactError(f"{folder}: damaged steerer (its maps are not those of its clusters)")
    return clusters, list(maps.values()), shared


def load(folder: Path, config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a saved steerer, checked against the config of the model."""
    data = read_steerer(folder, config)
    clusters, maps, shared = load_clusters(folder)
    try:
        fields = {
            "clusters": clusters,
            "maps": maps,
            "shared": shared,
            "calibration": Calibration.from_dict(data["calibration"], data["scope"]),
            "scores": {
                t: HeadScores.load(folder / f"scores-{t}.safetensors", config)
                for t in data["targets"]
            },
            "seen": load_seen(folder),
            **{name: data[name] for name in PLAIN_FIELDS},
        }
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, PrefheadsError) as error:
        raise ArtifactError(f"{folder}: damaged steerer ({error})") from error
    require_model(folder, shared.values, shared.info, config)
    return fields


def load_seen(folder: Path) -> Seen:
    """The samples and people that a fit saw, which a test must not see again.

    Fits by version 0.1.0 may have kept the names of users alone, which files of LaMP do not give.
    """
    path = folder / SEEN
    if path.is_file():
        try:
            return Seen.from_dict(read_json(path))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: damaged ({error})") from None
    try:
        users = read_steerer(folder)["users"]
        return Seen(users=frozenset(u for part in USED for u in users.get(part, ())))
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder}: damaged steerer ({error})") from None
