"""`prefheads analyze`: figures and tables of what a run says of the paper's claims; no model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from prefheads.cli import options, session
from prefheads.cli.inspect import Contents, read
from prefheads.errors import ArtifactError
from prefheads.heads import HeadScores
from prefheads.storage import read_json, writable_dir

if TYPE_CHECKING:
    from prefheads.analysis.index import Entry


def analyze(
    run: Annotated[Path, typer.Argument(help="Folder that `discover`, `fit` or `eval` wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results; RUN/analysis if absent.")
    ] = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Draw and tabulate what a run says of sparsity, users, controls, strengths and routing."""
    from prefheads.analysis import index  # needs the extra `plots`

    about = _about(run)
    evaluation = about.get("command") == "eval"
    entries = _of_eval(run, about, seed) if evaluation else _of_fit(run, about, seed)
    folder = writable_dir(out or run / "analysis")
    line = f"Of `{run}` (prefheads {about.get('command', 'run')}, model `{about.get('model')}`)."
    written = index.write(folder, entries, f"{line} Seed {seed}.")
    table = Table(title=f"Analyses of {run}", title_justify="left")
    for column in ("analysis", "paper", "result"):
        table.add_column(column, overflow="fold")
    for w in written:
        found = w.figures[:1] or w.tables[:1]
        table.add_row(w.entry.title, w.entry.paper, found[0].name if found else "missing")
    said = f"What each shows, and how to get what is missing, is in {folder / 'index.md'}."
    data = {"out": folder, "index": folder / "index.md", "entries": [w.to_dict() for w in written]}
    session.emit(as_json, data, [table, said])


def _about(run: Path) -> dict[str, Any]:
    path = run / session.RUN_FILE
    if not path.is_file():
        raise ArtifactError(
            f"{run}: holds no run; give a folder that `prefheads discover`, `fit` or `eval` wrote"
        )
    about = read_json(path)
    if not isinstance(about, dict) or not isinstance(about.get("options"), dict):
        raise ArtifactError(f"{path}: damaged; run the command again into another folder")
    return about


def _of_fit(run: Path, about: dict[str, Any], seed: int) -> list[Entry]:
    from prefheads.analysis import quality

    contents = read(run)
    command = _Commands(about)
    return [
        *_of_part("", contents, None, command, seed),
        *quality.validation_entries(contents.validation, "", command.validate(run), seed),
        *quality.evaluation_entries(None, command.evaluate(run), seed),
    ]


def _of_eval(run: Path, about: dict[str, Any], seed: int) -> list[Entry]:
    from prefheads.analysis import quality
    from prefheads.analysis.chapter import named
    from prefheads.analysis.evaluated import Evaluation
    from prefheads.analysis.index import Entry

    copying = None
    if (run / "retrieval-heads.safetensors").is_file():
        copying = HeadScores.load(run / "retrieval-heads.safetensors")
    command = _Commands(about)
    entries: list[Entry] = []
    for folder in sorted(path.parent for path in run.glob("*/fit-*/steerer.json")):
        several = len(list(folder.parent.glob("fit-*"))) > 1
        name = named(folder.parent.name, folder.name if several else "")
        entries += _of_part(name, read(folder), copying, command, seed)
    for fitted in about["options"].get("fitted") or ():
        missing = f"they were found in another run: `prefheads analyze {shlex.quote(fitted)}`."
        entries.append(
            Entry(
                named("heads", Path(fitted).name),
                f"Heads of {fitted}",
                "Fig. 3-5, 7",
                missing=missing,
            )
        )
    found = Evaluation.read(run) if (run / "results.json").is_file() else None
    if not entries and found is None:
        raise ArtifactError(f"{run}: nothing has been finished there; run `prefheads eval` again")
    return [*entries, *quality.evaluation_entries(found, command.evaluate(run), seed)]


def _of_part(
    name: str, contents: Contents, copying: HeadScores | None, command: _Commands, seed: int
) -> list[Entry]:
    from prefheads.analysis import chapters, quality
    from prefheads.analysis.chapter import Part

    part = Part(name, contents.scores, contents.clusters, command.fit())
    return [
        *chapters.entries(part, copying, seed),
        *quality.calibration_entries(contents.calibration, name, command.fit()),
    ]


class _Commands:
    """Commands that would add what a run lacks, with the run's own model and data."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.model = shlex.quote(str(about.get("model") or "MODEL"))
        self.data = shlex.quote(str(about["options"].get("data") or "DATA"))
        self.fitted = about.get("command") == "fit"

    def fit(self) -> str:
        return f"prefheads fit --model {self.model} --data {self.data} --out OTHER_RUN"

    def validate(self, run: Path) -> str:
        steered = shlex.quote(str(run)) if self.fitted else "OTHER_RUN"
        where = f"prefheads validate --model {self.model} --run {steered} --data {self.data}"
        return where if self.fitted else f"{self.fit()} && {where}"

    def evaluate(self, run: Path) -> str:
        from prefheads.analysis.quality import METHODS

        fitted = f" --fitted {shlex.quote(str(run))}" if self.fitted else ""
        where = f"--model {self.model} --data {self.data}{fitted} --out EVAL_RUN"
        return f"prefheads eval {where} --methods {METHODS}"
