"""What a run's folder holds, of `discover`, `fit`, `validate` or `demo`; read without the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.validate import Validation
from prefheads.errors import ArtifactError, PrefheadsError
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.steerer.files import KIND
from prefheads.storage import load_tensors, read_json
from prefheads.users import Clusters

T = TypeVar("T")


@dataclass
class Contents:
    """What could be read from a run's folder.

    Attributes:
        active: How many heads each cluster steers.
    """

    scores: dict[str, HeadScores] = field(default_factory=dict)
    heads: HeadWeights | None = None
    clusters: Clusters | None = None
    active: list[int] = field(default_factory=list)
    calibration: Calibration | None = None
    validation: Validation | None = None


def read(run: Path) -> Contents:
    """Read a run's folder.

    Raises:
        ArtifactError: Nothing there, or something damaged.
    """
    contents = Contents()
    for path in sorted(run.glob("scores*.safetensors")):
        scores = HeadScores.load(path)
        contents.scores[scores.info.target] = scores
    if (run / "heads.safetensors").is_file():
        contents.heads = HeadWeights.load(run / "heads.safetensors")
    if (run / "steerer.json").is_file():
        contents.calibration = parsed(run / "steerer.json", Calibration.from_dict, "calibration")
        tensors, meta = load_tensors(run / "steerer.safetensors", KIND)
        contents.clusters = Clusters.from_tensors(tensors, meta)
        maps = tensors.get("maps", torch.empty(0))
        if len(maps) != contents.clusters.n_clusters:
            raise ArtifactError(f"{run / 'steerer.safetensors'}: damaged; fit again")
        contents.active = [int(torch.count_nonzero(m)) for m in maps]
    if (run / "validation.json").is_file():
        contents.validation = parsed(run / "validation.json", Validation.from_dict)
    if contents == Contents():
        raise ArtifactError(f"{run}: holds no finished run of `prefheads discover` or `fit`")
    return contents


def parsed(path: Path, parse: Callable[[Any], T], part: str | None = None) -> T:
    """What a JSON file of a run holds, or a part of it.

    Raises:
        ArtifactError: It cannot be read, or is damaged.
    """
    content = read_json(path)
    try:
        return parse(content if part is None else content[part])
    except (LookupError, AttributeError, TypeError, ValueError, PrefheadsError) as error:
        raise ArtifactError(f"{path}: damaged ({error!r}); run the command again") from error
