"""`prefheads inspect`: what a run holds, as tables and figures; needs no model."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from rich.console import RenderableType
from typer import Argument, Option

from prefheads.cli import options
from prefheads.cli.output import emit
from prefheads.cli.terminal import (
    calibration_table,
    cluster_table,
    head_rows,
    head_table,
    validation_table,
    verdict,
)
from prefheads.report.run import Contents, read
from prefheads.report.statistics.findings import findings
from prefheads.storage import writable_dir


def inspect(
    run: Annotated[Path, Argument(help="Folder that `discover` or `fit` wrote.")],
    top: Annotated[int, Option(min=1, help="How many heads to list.")] = 15,
    seed: options.Seed = 0,  # every command takes it; nothing is drawn at random here
    as_json: options.Json = False,
) -> None:
    """Show what was found: heads, clusters, calibration, validation; and draw it."""
    contents = read(run)
    figures = draw(contents, run / "plots") if find_spec("matplotlib") else []
    said = f"Figures are in {run / 'plots'}." if figures else 'Figures need the extra "plots".'
    shown = [*tables(contents, top), said]
    emit(as_json, data(contents, top) | {"plots": figures}, shown)


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
    from prefheads.report.figures.heads import heat_map
    from prefheads.report.figures.steering import calibration_curves, validation_plot
    from prefheads.report.figures.style import save

    figures = {
        f"heads-{target}": heat_map({"all users": scores})
        for target, scores in contents.scores.items()
    }
    if contents.calibration is not None:
        figures["calibration"] = calibration_curves(contents.calibration)
    if contents.validation is not None and not contents.validation.setting.plain:
        figures["validation"] = validation_plot(contents.validation)
    writable_dir(folder)
    return [path for name, figure in figures.items() for path in save(figure, folder / name)]
