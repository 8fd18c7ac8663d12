"""`prefheads analyze`: figures, tables and a page of what a run says of the paper's claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from prefheads.cli import options, session
from prefheads.cli.output import emit, table
from prefheads.errors import ArtifactError, DataError
from prefheads.heads.scores import fingerprint
from prefheads.models.bundled import NAME
from prefheads.models.loading import load_config
from prefheads.progress import stage
from prefheads.storage import read_json, writable_dir


def analyze(
    run: Annotated[Path, Argument(help="Folder that `discover`, `fit` or `eval` wrote.")],
    model: Annotated[
        str | None,
        Option(
            help="The run's model, to measure what heads do and read texts token by token; what "
            "was measured is kept in RUN/measured.",
            metavar="MODEL",
        ),
    ] = None,
    data: Annotated[
        Path | None, Option(help="The run's data, to count it; and if it has moved since.")
    ] = None,
    samples: Annotated[int, Option(min=1, help="Samples to measure heads on.")] = 16,
    texts: Annotated[int, Option(min=1, help="Samples of a task to read token by token.")] = 4,
    out: Annotated[
        Path | None, Option(help="Folder of the results; RUN/analysis if absent.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Draw and tabulate what a run says of sparsity, users, controls, strengths and routing."""
    from prefheads.report.measure.kept import Measurements
    from prefheads.report.page.collect import collect
    from prefheads.report.page.entry import write
    from prefheads.report.page.page import write_page

    about = _about(run)
    if data is not None and not (data.exists() or data == Path(NAME)):
        raise DataError(f"{data}: no such file or folder")
    config = None if model is None else load_config(model)
    if config is not None and about.get("fingerprint") not in (None, fingerprint(config)):
        raise ArtifactError(f"{run}: is a run of {session.named_model(about)}, not of {model}")
    measurements = Measurements(
        run / "measured",
        config,
        lambda: session.load(str(model), device, dtype, seed, not quiet),
        n_samples=samples,
        n_texts=texts,
        seed=seed,
        progress=not quiet,
    )
    with session.notes() as prompts:
        with stage("analysing", not quiet):
            entries, readings = collect(run, about, measurements, data, seed)
        prompts.append(measurements.n_prompts)
    folder = writable_dir(out or run / "analysis")
    made_by = f"prefheads {about.get('command', 'run')}, model `{session.named_model(about)}`"
    line = f"Of `{run}` ({made_by})."
    written = write(folder, entries, f"{line} Seed {seed}.")
    made = _made(about, seed)
    lead, title = f"{made['run']}, model {made['model']}", f"Analysis of {run.resolve().name}"
    report = write_page(folder, title, written, readings, made, lead=lead)
    shown = table(f"Analyses of {run}", "analysis", "paper", "result", left=3)
    for w in written:
        found = w.figures[:1] or w.tables[:1]
        shown.add_row(w.entry.title, w.entry.paper, found[0].name if found else "missing")
    said = (
        f"All of it on one page: {report}. What each shows, and how to get what is missing, is "
        f"also in {folder / 'index.md'}."
    )
    result = {
        "out": folder,
        "report": report,
        "index": folder / "index.md",
        "entries": [w.to_dict() for w in written],
    }
    emit(as_json, result, [shown, said])


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


def _made(about: dict[str, Any], seed: int) -> dict[str, str]:
    """How the run and its analysis were made, for the page."""
    import prefheads

    made = {
        "run": f"prefheads {about.get('command', 'run')}",
        "model": Path(session.named_model(about)).name,
        "version": str(about.get("version", "unknown")),
        "analysed with": f"prefheads {prefheads.__version__}, seed {seed}",
    }
    chosen = about["options"].items()
    told = (f"{k} {v}" for k, v in chosen if v is not None and not isinstance(v, list | dict))
    return made | {"options": ", ".join(told) or "none"}
