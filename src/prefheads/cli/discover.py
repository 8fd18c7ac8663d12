"""`prefheads discover`: how much each head contributes, and the heads that contribute most."""

from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Option

import prefheads
from prefheads.checkpoint import digest, model_marks
from prefheads.cli import options, session
from prefheads.cli.cost import discovery_stage, tell_cost
from prefheads.cli.output import emit
from prefheads.cli.terminal import head_rows, head_table
from prefheads.data.example import load_examples
from prefheads.errors import ArtifactError
from prefheads.heads.files import HEADS
from prefheads.heads.scores import HeadScores
from prefheads.models.loading import load_config
from prefheads.progress import stage
from prefheads.storage import read_json, write_json
from prefheads.types import Ablation, DiscoveryMethod

SHOWN = 20
FILES = ("scores.safetensors", "unfinished.jsonl")  # while it is measured, the latter
BESIDE = ("scores-zero.safetensors", "unfinished-zero.jsonl")  # the same of zero ablation


def discover(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    target: Annotated[
        options.Target,
        Option(help="Take away a head's output, or only what it reads from the profile."),
    ] = "head",
    scope: options.Scope = "response",
    reference: options.Reference = "none",
    method: Annotated[
        DiscoveryMethod, Option(help="Ablate every head, or only those that gradients put highest.")
    ] = "exact",
    ablation: Annotated[
        Ablation,
        Option(
            help="Put 0 in place of a head's output, or its mean over the samples; with the mean, "
            "0 is measured too and shown beside it."
        ),
    ] = "zero",
    fraction: Annotated[float, Option(min=1e-4, max=1, help="Share of all heads to keep.")] = 0.04,
    limit: options.Limit = None,
    items: options.Items = 5,
    retrieval: options.Retrieval = "bm25",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Score every attention head by ablation (PCS), and keep the strongest."""
    settings = session.recorded(locals(), "ablation", "fraction")
    if ablation != "zero":  # runs of before it was a choice do not name it
        settings["ablation"] = ablation
    config = load_config(model)
    with stage(f"reading {data}", not quiet):
        examples = load_examples(data, items=items, retrieval=retrieval, limit=limit, seed=seed)
    run = session.open_run(out, "discover", model, config, settings)
    with session.notes() as prompts:
        prompts.append(len(examples))
        network, tokenizer = session.load(model, device, dtype, seed, not quiet)
        read = [[e.id, e.user_id, e.profile, e.input, e.output, e.task] for e in examples]
        run["made_from"] = digest([read, *model_marks(network)])
        how: dict[str, Any] = {"scope": scope, "target": target, "method": method}
        how["reference"] = None if reference == "none" else reference

        def measure(kind: Ablation, kept: Path, unfinished: Path) -> HeadScores:
            found = prefheads.discover(
                network, tokenizer, examples, **how, ablation=kind, checkpoint=unfinished,
                seed=seed, progress=not quiet,
            )  # fmt: skip
            found.save(kept)
            write_json(out / session.RUN_FILE, run)
            unfinished.unlink(missing_ok=True)
            return found

        files, beside = ([out / name for name in names] for names in (FILES, BESIDE))
        scores = _finished(run, *files)
        zero = _finished(run, *beside) if ablation == "mean" else None
        if scores is None:
            session.begin(out, run)
            if not quiet and not files[1].is_file():
                stages = [discovery_stage(network, examples, **how)] * (1 + (ablation == "mean"))
                tell_cost(network, tokenizer, stages)
            scores = measure(ablation, *files)
        if ablation == "mean" and zero is None:
            zero = measure("zero", *beside)
        heads = scores.top(fraction=fraction)
    heads.save(out / HEADS)
    result = {
        "run": out,
        "n_examples": scores.n_examples,
        "n_users": len(set(scores.user_ids)),
        "shape": scores.shape[1:],
        "nll": scores.nll.mean().item(),
        "selected": heads.heads,
        "heads": head_rows(scores, scores.values[0].numel(), zero),
    }
    lines: list[Table | str] = [
        head_table(scores, SHOWN, zero),
        f"{heads.n_active} heads in {out / HEADS}",
    ]
    if zero is not None:
        from prefheads.report.statistics.correlation import relate

        found = relate(scores, zero, ("mean ablation", "zero ablation"), heads.n_active)
        result["agreement"] = found.row()
        lines.append(
            f"mean and zero ablation rank the heads with correlation {found.correlation.mean:.2f} "
            f"[{found.correlation.low:.2f}, {found.correlation.high:.2f}]; their top {found.k} "
            f"overlap by {found.overlap:.2f} (Jaccard; {found.chance:.2f} by chance)"
        )
    emit(as_json, result, lines)


def _finished(run: dict[str, Any], kept: Path, unfinished: Path) -> HeadScores | None:
    """The scores of the same run, if it came to its end."""
    if not kept.is_file() or unfinished.is_file():
        return None
    out = kept.parent
    if read_json(out / session.RUN_FILE).get("made_from") != run["made_from"]:
        raise ArtifactError(
            f"{out}: holds a run on other data or another model; give another folder"
        )
    return HeadScores.load(kept)
