"""`prefheads tables`: evaluations of several models as the paper's Tables 1 and 2."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.console import RenderableType
from typer import Argument, Option

from prefheads.cli import options
from prefheads.cli.output import emit, table
from prefheads.optional import require
from prefheads.progress import stage
from prefheads.storage import writable_dir


def tables(
    runs: Annotated[list[Path], Argument(help="Folders that `eval` wrote.", metavar="RUN")],
    out: Annotated[
        Path | None, Option(help="Folder for tables.md, tables.tex and tables.csv.")
    ] = None,
    extract: Annotated[
        bool, Option("--extract", help="Score answers extracted from the texts.")
    ] = False,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Join evaluations into the paper's Tables 1 and 2: models, tasks and methods.

    The best method is bold where it is told from the second best by a paired test.
    """
    from prefheads.report.statistics import joined

    for library in ("pandas", "tabulate"):
        require(library, "eval")
    with stage("testing", shown=not quiet):
        scores = joined.join(runs, extracted=extract, seed=seed)
    shown: list[RenderableType] = []
    for title, frame in joined.frames(scores, "{} *").items():
        metrics = (f"{task}\n{metric}" for task, metric in frame.columns)
        filled = table(title, "model", "method", *metrics, left=2)
        for (model, method), row in frame.iterrows():
            filled.add_row(model, method, *row)
        shown.append(filled)
    shown.append(joined.LEGEND.replace("Bold", "*"))
    if out is not None:
        joined.write(writable_dir(out), scores)
        shown.append(f"Written to {out}: tables.md, tables.tex, tables.csv")
    emit(as_json, [asdict(s) | {"best": s.best} for s in scores], shown)
