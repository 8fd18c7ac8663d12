"""`prefheads inspect`: what a run holds, as tables and figures; needs no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import RenderableType

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.validate import Validation
from prefheads.cli import options
from prefheads.cli.output import emit
from prefheads.cli.tables import (
    calibration_table,
    cluster_table,
    head_rows,
    head_table,
    validation_table,
    verdict,
)
from prefheads.errors import ArtifactError, SteeringError
from prefheads.heads.files import HEADS, STEERER, is_fitted
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.report.findings import findings
from prefheads.steerer.files import load_clusters, read_steerer
from prefheads.storage import read_json, writable_dir
from prefheads.users import Clusters

T = TypeVar("T")


@dataclass
class Contents:
    """What could be read from a run's folder."""

    scores: dict[str, HeadScores] = field(default_factory=dict)
    heads: HeadWeights | None = None
    clusters: Clusters | None = None
    active: list[int] = field(default_factory=list)  # heads of each cluster
    calibration: Calibration | None = None
    validation: Validation | None = None


def inspect(
    run: Annotated[Path, typer.Argument(help="Folder that `discover` or `fit` wrote.")],
    top: Annotated[int, typer.Option(min=1, help="How many heads to list.")] = 15,
    seed: options.Seed = 0,  # every command takes it; nothing is drawn at random here
    as_json: options.Json = False,
) -> None:
    """Show what was found: heads, clusters, calibration, validation; and draw it."""
    contents = read(run)
    figures = draw(contents, run / "plots") if find_spec("matplotlib") else []
    said = f"Figures are in {run / 'plots'}." if figures else 'Figures need the extra "plots".'
    shown = [*tables(contents, top), said]
    emit(as_json, data(contents, top) | {"plots": figures}, shown)


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
        contents.calibration = _parse(
            run / STEERER, Calibration.from_dict, read_steerer(run).get("calibration")
        )
        contents.clusters, maps, _ = load_clusters(run)
        contents.active = [m.n_active for m in maps]
    if (run / "validation.json").is_file():
        contents.validation = _parse(
            run / "validation.json", Validation.from_dict, read_json(run / "validation.json")
        )
    if contents == Contents():
        raise ArtifactError(f"{run}: holds no finished run of `prefheads discover` or `fit`")
    return contents


def _parse(path: Path, parse: Callable[[Any], T], content: Any) -> T:
    try:
        return parse(content)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, SteeringError) as error:
        raise ArtifactError(f"{path}: damaged ({error!r}); run the command again") from error


def tables(contents: Contents, top: int) -> list[RenderableType]:
    """What was found, for people."""
    shown: list[RenderableType] = [head_table(s, top) for s in contents.scores.values()]
    if contents.heads is not None:
        shown.append(f"Selected: {contents.heads}")
    if contents.clusters is not None:
        shown.append(cluster_table(contents.clusters, contents.active))
    if contents.calibration is not None:
        shown.append(calibration_table(contents.calibration))
        shown.append(f"Chosen: {contents.calibration.setting}.")
    if contents.validation is not None:
        rows = contents.validation.rows()
        shown.append(validation_table(rows, len(contents.validation.example_ids)))
        shown.append(verdict(findings(contents.validation)))
    return shown


def data(contents: Contents, top: int) -> dict[str, Any]:
    """What was found, for programs."""
    found: dict[str, Any] = {
        "scores": {
            target: {"info": asdict(s.info), "heads": head_rows(s, top)}
            for target, s in contents.scores.items()
        }
    }
    if contents.heads is not None:
        found["selected"] = contents.heads.heads
    if contents.clusters is not None:
        found["clusters"] = {"users": contents.clusters.sizes, "heads": contents.active}
    if contents.calibration is not None:
        found["calibration"] = contents.calibration.to_dict()
    if contents.validation is not None:
        found["validation"] = contents.validation.to_dict()
        found["findings"] = [asdict(f) for f in findings(contents.validation)]
    return found


def draw(contents: Contents, folder: Path) -> list[Path]:
    """Draw what was found; returns the files."""
    from prefheads.report import plots

    figures = {
        f"heads-{target}": plots.heat_map({"all users": scores})
        for target, scores in contents.scores.items()
    }
    if contents.calibration is not None:
        figures["calibration"] = plots.calibration_curves(contents.calibration)
    if contents.validation is not None and not contents.validation.setting.plain:
        figures["validation"] = plots.validation_plot(contents.validation)
    writable_dir(folder)
    return [path for name, figure in figures.items() for path in plots.save(figure, folder / name)]
