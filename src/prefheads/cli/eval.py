"""`prefheads eval`: methods compared on benchmark tasks, in one run that resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import RenderableType
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.cli import options, session
from prefheads.encoding import shorten_prompt
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.data import find_samples, find_tasks, has_split
from prefheads.evaluation.folds import Fold, make_folds
from prefheads.evaluation.methods import Method
from prefheads.evaluation.run import Measured, Plan, evaluate_task
from prefheads.evaluation.tables import LEGEND, Cell, cells, extraction_counts, frames, write_tables
from prefheads.examples import Example, load_examples, spread
from prefheads.loading import load_config
from prefheads.scoring import context_length
from prefheads.steerer import PreferenceSteerer
from prefheads.storage import read_json, writable_dir, write_json
from prefheads.tasks.lamp import task_name
from prefheads.tasks.metrics import prepare

DEFAULT_METHODS = "plain,cad,dola,decore,dps,dps-cluster,calibrated,random-heads,random-mask"
TRAIN = "train"


def evaluate(
    model: options.Model,
    data: Annotated[
        Path, typer.Option("--data", help="Folder with LaMP_1, LaMP_2, ..., or a task's files.")
    ],
    out: options.Out,
    task: Annotated[
        str | None, typer.Option("--task", help="Tasks, as LaMP-4,LaMP-7; all in DATA if absent.")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Methods with options, as dps,dps:gamma=0.5; the first is the baseline.",
        ),
    ] = DEFAULT_METHODS,
    split: Annotated[
        str | None, typer.Option("--split", help="Split to evaluate; dev if absent.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Samples to evaluate of each task.")
    ] = None,
    discovery_split: Annotated[
        str | None,
        typer.Option(
            "--discovery-split",
            help="Split that heads are found on; train if there is one, else users set aside.",
        ),
    ] = None,
    discovery: Annotated[int, typer.Option(min=1, help="Users for discovery.")] = 30,
    calibration: Annotated[int, typer.Option(min=2, help="Users for calibration.")] = 40,
    fitted: Annotated[
        list[Path] | None,
        typer.Option("--fitted", help="Folder that `fit` wrote for a task, to use its heads."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Allow heads found on the samples to evaluate.")
    ] = False,
    measure: Annotated[
        Literal["both", "texts", "likelihood"], typer.Option(help="What to measure.")
    ] = "both",
    extract: Annotated[
        bool, typer.Option("--extract", help="Also score answers extracted from the texts.")
    ] = False,
    items: options.Items = 5,
    retrieval: options.Retrieval = "bm25",
    prompt_length: Annotated[
        int, typer.Option("--prompt-length", min=16, help="Tokens of a prompt, at most.")
    ] = 2048,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="By default what tasks need.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts at once.")] = 8,
    clusters: Annotated[
        int | None, typer.Option(min=1, help="Clusters of users; chosen from the data if absent.")
    ] = None,
    min_samples: options.MinSamples = 10,
    encoder: Annotated[
        str, typer.Option(help='Sentence encoder: "bundled", a folder or a hub id.')
    ] = "bundled",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare decoding methods on LaMP or LongLaMP tasks, with intervals and paired tests."""
    compared = _methods(methods)
    config = load_config(model)
    tasks = [task_name(t.strip()) for t in task.split(",")] if task else find_tasks(data)
    loading: dict[str, Any] = {"items": items, "retrieval": retrieval, "seed": seed}
    loading["encoder"] = encoder
    samples = {t: _load(data, t, split, **loading) for t in dict.fromkeys(tasks)}
    scored_by = {t: prepare(t) for t in samples if measure != "likelihood"}
    recorded = {
        "split": split,
        "limit": limit,
        "discovery_split": discovery_split,
        "discovery": discovery,
        "calibration": calibration,
        "fitted": sorted(str(path) for path in fitted or ()),
        "force": force,
        "prompt_length": prompt_length,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "clusters": clusters,
        "min_samples": min_samples,
        "dtype": dtype,
        **loading,
    }
    run = session.describe_run("eval", config, recorded)
    session.require_same_run(out, run)
    plan = Plan(
        compared,
        generation=measure != "likelihood",
        likelihood=measure != "texts",
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        clusters=clusters,
        min_samples=min_samples,
        encoder=encoder,
        seed=seed,
        progress=session.show_progress(quiet, as_json),
    )
    measured: list[Measured] = []
    with session.notes() as prompts:
        network, tokenizer = session.load(model, device, dtype, seed)
        length = min(prompt_length, context_length(network) or prompt_length)
        steerers = _steerers(fitted or [], network, tokenizer, force)
        folds: dict[str, list[tuple[Fold, PreferenceSteerer | None]]] = {}
        for t, examples in samples.items():
            short = [shorten_prompt(tokenizer, e, length) for e in examples]
            if (steerer := steerers.get(t)) is not None or not plan.needs_steerer:
                test = _unseen(short, steerer, limit, force, seed)
                folds[t] = [(Fold(test, [], 0.0), steerer)]
                continue
            train = _train(data, t, discovery_split, split, force, loading, discovery + calibration)
            made = make_folds(
                short,
                train and [shorten_prompt(tokenizer, e, length) for e in train],
                discovery=discovery,
                calibration=calibration,
                limit=limit,
                force=force,
                seed=seed,
            )
            folds[t] = [(fold, None) for fold in made]
        write_json(writable_dir(out) / session.RUN_FILE, run)
        prompts.append(sum(len(fold.test) for part in folds.values() for fold, _ in part))
        for t, part in folds.items():
            measured.append(evaluate_task(network, tokenizer, t, part, plan, out / t))
    found = [cells(m, extracted=extract, seed=seed) for m in measured]
    write_tables(out, measured, found, scored_by)
    session.emit(as_json, read_json(out / "results.json"), _shown(measured, found, extract, out))


def _methods(text: str) -> tuple[Method, ...]:
    found = tuple(Method.parse(part) for part in text.split(",") if part.strip())
    if not found:
        raise DataError("--methods: name at least one")
    names = [m.name for m in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"--methods: {twice[0]} is named twice")
    return found


def _load(data: Path, task: str, split: str | None, **loading: Any) -> list[Example]:
    path = find_samples(data, task, split)
    examples = load_examples(path, **loading)
    if examples[0].task != task:
        raise DataError(f"{path}: holds {examples[0].task or 'no benchmark task'}, not {task}")
    return examples


def _steerers(
    folders: list[Path], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, force: bool
) -> dict[str, PreferenceSteerer]:
    """Fitted steerers by task."""
    found: dict[str, PreferenceSteerer] = {}
    for folder in folders:
        steerer = PreferenceSteerer.load(folder, model, tokenizer)
        if steerer.task is None or steerer.task in found:
            raise ArtifactError(
                f"{folder}: is of no benchmark task, or of one that was given twice"
            )
        found[steerer.task] = steerer
    return found


def _unseen(
    examples: list[Example],
    steerer: PreferenceSteerer | None,
    limit: int | None,
    force: bool,
    seed: int,
) -> list[Example]:
    left = examples if steerer is None or force else steerer.unseen(examples)
    if not left:
        raise DataError(
            "all users of the split took part in fitting: evaluate another split, or --force it"
        )
    return spread(left, limit, seed)


def _train(
    data: Path,
    task: str,
    wanted: str | None,
    evaluated: str | None,
    force: bool,
    loading: dict[str, Any],
    users: int,
) -> list[Example] | None:
    """Samples of the split that heads are found on; None if users are to be set aside."""
    name = wanted or (TRAIN if evaluated != TRAIN and has_split(data, task, TRAIN) else None)
    if name is None:
        return None
    if not force and find_samples(data, task, name) == find_samples(data, task, evaluated):
        raise DataError(
            f"split {name!r}: heads are not found on what is evaluated; name another split"
        )
    # Files of gigabytes: the first few thousand samples leave choice enough.
    return _load(data, task, name, limit=10 * users, **loading)


def _shown(
    measured: list[Measured], found: list[list[Cell]], extracted: bool, out: Path
) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for m, part in zip(measured, found, strict=True):
        for name, frame in frames(part).items():
            folds = f", {m.folds} folds" if m.folds > 1 else ""
            table = Table(title=f"{m.task}: {name}, {part[0].n} samples{folds}")
            for column in frame.columns:
                table.add_column(column, justify="left" if column == "method" else "right")
            for row in frame.itertuples(index=False):
                table.add_row(*row)
            shown.append(table)
        if extracted:
            counts = extraction_counts(m).items()
            told = (f"{k} {c['extracted']} extracted, {c['failed']} without" for k, c in counts)
            shown.append(f"{m.task}, answers: {'; '.join(told)}")
    return [*shown, LEGEND, f"Written to {out}: table.md, table.tex, table.csv, results.json"]
