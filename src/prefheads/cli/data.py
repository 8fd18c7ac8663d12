"""`prefheads data`: fetch the benchmarks' files, and count what files hold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Argument, Option, Typer

from prefheads.cli import options
from prefheads.cli.output import emit, table
from prefheads.errors import ArtifactError
from prefheads.models.bundled import people_path
from prefheads.storage import write_atomic
from prefheads.tasks.download import BASE_URL, Separation
from prefheads.tasks.download import download as fetch
from prefheads.tasks.statistics import Spread, TaskStatistics, task_statistics

app = Typer(name="data", no_args_is_help=True, help="Fetch LaMP and LongLaMP; count data.")


@app.command()
def stats(
    paths: Annotated[
        list[Path],
        Argument(
            help='Files of examples, or folders with splits or tasks; or "bundled".', metavar="PATH"
        ),
    ],
    as_json: options.Json = False,
) -> None:
    """Users, instances and lengths of each task."""
    rows = task_statistics(paths)
    spreads = ({k: v._asdict() for k, v in vars(r).items() if isinstance(v, Spread)} for r in rows)
    told = [asdict(row) | found for row, found in zip(rows, spreads, strict=True)]
    emit(as_json, told, [_table(rows)])


@app.command()
def download(
    tasks: Annotated[
        list[str], Argument(help="Tasks, such as LaMP-4 or LongLaMP-2.", metavar="TASK")
    ],
    out: Annotated[Path, Option(help="Folder for the files; resumes.")],
    split: Annotated[
        str, Option(help="Of train, dev, test; LaMP's test has no golds.")
    ] = "train,dev",
    setting: Annotated[
        Separation, Option(help="Split by user, or each user's texts by time.")
    ] = "user",
    base_url: Annotated[str, Option(help="Where the folders of LaMP are.")] = BASE_URL,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Fetch splits of LaMP or LongLaMP, resuming what an earlier run left off."""
    splits = [name for part in split.split(",") if (name := part.strip())]
    progress = not quiet
    files = fetch(tasks, splits, out, setting=setting, base_url=base_url, progress=progress)
    emit(as_json, {"files": files}, [str(path) for path in files])


@app.command()
def people(out: Annotated[Path, Option(help="The file to write, as JSONL.")]) -> None:
    """Write the 24 made-up people that `--data bundled` names, to look at or to change."""
    if out.exists():
        raise ArtifactError(f"{out}: is there already; give another name")
    write_atomic(out, people_path().read_bytes())
    print(out)


def _table(rows: list[TaskStatistics]) -> Table:
    named = ("task", "type", "setting", "splits")
    counted = ("users", "instances", "profile items", "input words", "output words")
    title = "Data; items and words as mean / median"
    shown = table(title, *named, *counted, left=len(named))
    for row in rows:
        shown.add_row(
            row.task or "no task",
            row.kind,
            row.setting,
            ", ".join(row.splits),
            f"{row.users:,}",
            f"{row.instances:,}",
            *map(_shown, (row.profile_items, row.input_words, row.output_words)),
        )
    return shown


def _shown(spread: Spread | None) -> str:
    return "n/a" if spread is None else f"{spread.mean:.1f} / {spread.median:g}"
