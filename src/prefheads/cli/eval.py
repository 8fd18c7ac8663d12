"""`prefheads eval`: methods compared on benchmark tasks, in one run that resumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import RenderableType
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer import Option

from prefheads.calibration.headsets import candidates
from prefheads.cli import options, session
from prefheads.cli.cost import Stage, fit_stages, tell_cost
from prefheads.cli.output import emit, table, tell
from prefheads.data.task import task_name
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.methods import Method
from prefheads.evaluation.prepare import (
    Choice,
    TaskSamples,
    choose_samples,
    find_samples,
    find_tasks,
    shortened,
)
from prefheads.evaluation.results import (
    LEGEND,
    RESULTS,
    frames,
    read_results,
    require_libraries,
    title,
    write_tables,
)
from prefheads.evaluation.run import RECORDS, SHORT, EvaluationPlan, Measured, evaluate_task
from prefheads.evaluation.tables import Cell, cells, extraction_counts
from prefheads.models.limits import context_length
from prefheads.models.loading import load_config
from prefheads.progress import stage
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steerer.files import read_steerer
from prefheads.storage import read_json, writable_dir, write_json
from prefheads.tasks.answers import answers_of
from prefheads.users.embed import require_extra

DEFAULT_METHODS = "plain,cad,dola,decore,dps,dps-cluster,calibrated,random-heads,random-mask"


def evaluate(
    model: options.Model,
    data: Annotated[Path, Option(help="Folder with LaMP_1, LaMP_2, ..., or a task's files.")],
    out: options.Out,
    task: Annotated[
        str | None, Option(help="Tasks, as LaMP-4,LaMP-7; all in DATA if absent.")
    ] = None,
    methods: Annotated[
        str, Option(help="Methods with options, as dps,dps:gamma=0.5; the first is the baseline.")
    ] = DEFAULT_METHODS,
    split: Annotated[str | None, Option(help="Split to evaluate; dev if absent.")] = None,
    limit: Annotated[int | None, Option(min=1, help="Samples to evaluate of each task.")] = None,
    discovery_split: Annotated[
        str | None,
        Option(help="Split that heads are found on; train if there is one, else users set aside."),
    ] = None,
    discovery: Annotated[int, Option(min=1, help="Users for discovery.")] = 30,
    calibration: Annotated[int, Option(min=2, help="Users for calibration.")] = 40,
    fitted: Annotated[
        list[Path] | None, Option(help="Folder that `fit` wrote for a task, to use its heads.")
    ] = None,
    force: Annotated[
        bool, Option("--force", help="Allow heads found on the samples to evaluate.")
    ] = False,
    measure: Annotated[
        Literal["both", "texts", "likelihood"], Option(help="What to measure.")
    ] = "both",
    extract: Annotated[
        bool, Option("--extract", help="Also score answers extracted from the texts.")
    ] = False,
    items: options.Items = 5,
    retrieval: options.Retrieval = "bm25",
    prompt_length: Annotated[int, Option(min=16, help="Tokens of a prompt, at most.")] = 2048,
    max_new_tokens: Annotated[int | None, Option(min=1, help="By default what tasks need.")] = None,
    label_tokens: Annotated[
        int,
        Option(
            min=1,
            help="The same for answers that are a label or a rating (LaMP-1, 2, 3): more for a "
            "model that talks first, with --extract.",
        ),
    ] = SHORT,
    batch_size: Annotated[int, Option(min=1, help="Texts at once.")] = 8,
    clusters: Annotated[
        int | None, Option(min=1, help="Clusters of users; chosen from the data if absent.")
    ] = None,
    min_samples: options.MinSamples = 10,
    encoder: options.Encoder = "bundled",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare decoding methods on LaMP or LongLaMP tasks, with intervals and paired tests."""
    recorded = session.recorded(
        locals(), "data", "task", "methods", "measure", "extract", "label_tokens", "batch_size"
    )
    recorded["fitted"] = sorted(str(path) for path in fitted or ())
    if label_tokens != SHORT:  # recorded where it is another: runs of before can be resumed
        recorded["label_tokens"] = label_tokens
    compared = _methods(methods)
    config = load_config(model)
    tasks = [task_name(t.strip()) for t in task.split(",")] if task else find_tasks(data)
    profiles: dict[str, Any] = {"items": items, "retrieval": retrieval}
    needs_heads = any(m.needs_steerer for m in compared)
    folders = _fitted(fitted or [], tasks, profiles, force)
    loading = profiles | {"seed": seed, "encoder": encoder}
    choice = Choice(limit, discovery, calibration, discovery_split, force, seed, loading)
    with stage(f"reading {data}", not quiet):
        samples = {
            t: choose_samples(
                find_samples(data, t, split),
                t,
                choice,
                needs_heads=needs_heads,
                seen=session.load_seen(folders[t]) if t in folders else None,
                require_output=measure != "texts",  # texts can be had without, likelihood cannot
            )
            for t in dict.fromkeys(tasks)
        }
    require_libraries()
    if needs_heads:
        require_extra()
    scored_by = {t: answers_of(t).prepare() for t in samples if measure != "likelihood"}
    run = session.describe_run("eval", model, config, recorded)
    session.require_same_run(out, run)
    if (out / RESULTS).is_file():
        read_results(out)  # a damaged one is told before the work
    plan = EvaluationPlan(
        compared,
        generation=measure != "likelihood",
        likelihood=measure != "texts",
        max_new_tokens=max_new_tokens,
        label_tokens=label_tokens,
        batch_size=batch_size,
        clusters=clusters,
        min_samples=min_samples,
        encoder=encoder,
        seed=seed,
        progress=not quiet,
    )
    measured: list[Measured] = []
    with session.notes() as prompts:
        network, tokenizer = session.load(model, device, dtype, seed, not quiet)
        length = min(prompt_length, context_length(network) or prompt_length)
        prepared = {
            t: shortened(chosen, tokenizer, length, needs_heads) for t, chosen in samples.items()
        }
        steerers = {
            t: PreferenceSteerer.load(folder, network, tokenizer) for t, folder in folders.items()
        }
        write_json(writable_dir(out) / session.RUN_FILE, run)
        if not quiet and not any((out / t).exists() for t in prepared):
            _tell_cost(network, tokenizer, prepared, set(steerers), plan)
        for t, ready in prepared.items():
            prompts.extend(len(fold.test) + len(fold.pool) for fold in ready.folds)
            if ready.without_profile:
                tell(f"{t}: {ready.without_profile} samples have no profile in the prompt")
            how = {"split": ready.split, "heads_from": ready.heads_from}
            measured.append(
                evaluate_task(
                    network, tokenizer, t, ready.folds, steerers.get(t), plan, out / t, **how
                )
            )
    with stage("testing differences", not quiet):
        found = [cells(m, extracted=extract, seed=seed) for m in measured]
        write_tables(out, measured, found, scored_by)
    results = read_json(out / RESULTS)
    begun = {p.parent.name for p in out.glob(f"*/{RECORDS}")}
    if others := sorted(begun - results["tasks"].keys()):
        tell(f"{out} holds {', '.join(others)} too, which has not come to its end")
    emit(as_json, results, _shown(measured, found, results["tasks"], extract, out))


def _tell_cost(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prepared: dict[str, TaskSamples],
    fitted: set[str],
    plan: EvaluationPlan,
) -> None:
    """The work on all tasks; that of texts as a number, as their lengths are not known."""
    stages, texts = [], []
    drawn = len({one.name for method in plan.methods for one in method.drawn(plan.seed)})
    for task, ready in prepared.items():
        for fold in ready.folds:
            if task not in fitted and plan.needs_steerer:
                n = round(fold.share * len(fold.pool))
                stages += fit_stages(model, fold.pool[:n], fold.pool[n:], len(candidates()))
            if plan.likelihood:
                each = " and draws" if drawn > len(plan.methods) else ""
                what = f"likelihood by {drawn} methods{each} ({task})"
                stages.append(Stage(what, fold.test, 3 * drawn, 3))
        if plan.generation:
            n = sum(len(fold.test) for fold in ready.folds) * drawn
            length = plan.new_tokens(task)
            texts.append(f"{n} of at most {length} new tokens ({task})")
    tell_cost(model, tokenizer, stages)
    if texts:
        print(f"texts: {', '.join(texts)}; their time is told after the first", file=sys.stderr)


def _methods(text: str) -> tuple[Method, ...]:
    found = tuple(Method.parse(part) for part in text.split(",") if part.strip())
    if not found:
        raise DataError("--methods: name at least one")
    names = [m.name for m in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"--methods: {twice[0]} is named twice")
    return found


def _fitted(
    folders: list[Path], tasks: list[str], loading: dict[str, Any], force: bool
) -> dict[str, Path]:
    """Folders of fits by task."""
    found: dict[str, Path] = {}
    for folder in folders:
        task = read_steerer(folder)["task"]
        if task in found:
            raise ArtifactError(f"{folder}: a second fit for {task}; give one a task")
        if task in tasks:
            if not force:
                session.require_same_profiles(folder, loading)
            found[task] = folder
        else:
            named = task or "no benchmark task"
            tell(f"{folder} was fitted for {named}, which is not evaluated here")
    return found


def _shown(
    measured: list[Measured],
    found: list[list[Cell]],
    told: dict[str, Any],
    extracted: bool,
    out: Path,
) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for m, part in zip(measured, found, strict=True):
        for name, frame in frames(part).items():
            filled = table(title(m.task, told[m.task], name), *frame.columns)
            for row in frame.itertuples(index=False):
                filled.add_row(*row)
            shown.append(filled)
        if said := told[m.task]["note"]:
            shown.append(f"{m.task}: {said}")
        if extracted:
            counts = extraction_counts(m).items()
            each = (f"{k} {c['extracted']} extracted, {c['failed']} without" for k, c in counts)
            shown.append(f"{m.task}, answers: {'; '.join(each)}")
    return [*shown, LEGEND, f"Written to {out}: table.md, table.tex, table.csv, results.json"]
