"""What a run's folder holds, of `discover`, `fit`, `validate` or `demo`; read without the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.validate import Validation
from prefheads.errors import ArtifactError, SteeringError
from prefheads.heads.files import HEADS, STEERER, is_fitted
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.steerer.files import load_clusters, read_steerer
from prefheads.storage import read_json
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
    if (run / HEADS).is_file():
        contents.heads = HeadWeights.load(run / HEADS)
    if is_fitted(run):
        found = read_steerer(run).get("calibration")
        contents.calibration = parsed(run / STEERER, Calibration.from_dict, found)
        contents.clusters, maps, _ = load_clusters(run)
        contents.active = [m.n_active for m in maps]
    if (path := run / "validation.json").is_file():
        contents.validation = parsed(path, Validation.from_dict)
    if contents == Contents():
        raise ArtifactError(f"{run}: holds no finished run of `prefheads discover` or `fit`")
    return contents


def parsed(path: Path, parse: Callable[[Any], T], content: Any = None) -> T:
    """What a JSON file of a run holds.

    Args:
        content: Of it, if it has been read.

    Raises:
        ArtifactError: It cannot be read, or is damaged.
    """
    if content is None:
        content = read_json(path)
    try:
        return parse(content)
    except (LookupError, AttributeError, TypeError, ValueError, SteeringError) as error:
        raise ArtifactError(f"{path}: damaged ({error!r}); run the command again") from error
