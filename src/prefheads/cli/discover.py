"""`prefheads discover`: how much each head contributes, and the heads that contribute most."""

from pathlib import Path
from typing import Annotated, Any

import typer

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
from prefheads.types import DiscoveryMethod

SHOWN = 20
SCORES, UNFINISHED = "scores.safetensors", "unfinished.safetensors"


def discover(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    target: Annotated[
        options.Target,
        typer.Option(help="Take away a head's output, or only what it reads from the profile."),
    ] = "head",
    scope: options.Scope = "response",
    reference: options.Reference = "none",
    method: Annotated[
        DiscoveryMethod,
        typer.Option(help="Ablate every head, or only those that gradients put highest."),
    ] = "exact",
    fraction: Annotated[
        float, typer.Option(min=1e-4, max=1, help="Share of all heads to keep.")
    ] = 0.04,
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
    config = load_config(model)
    with stage(f"reading {data}", not quiet):
        examples = load_examples(data, items=items, retrieval=retrieval, limit=limit, seed=seed)
    settings = {
        "data": data,
        "limit": limit,
        "items": items,
        "retrieval": retrieval,
        "target": target,
        "scope": scope,
        "reference": reference,
        "method": method,
        "seed": seed,
        "dtype": dtype,
    }
    run = session.open_run(out, "discover", model, config, settings)
    with session.notes() as prompts:
        prompts.append(len(examples))
        network, tokenizer = session.load(model, device, dtype, seed, not quiet)
        read = [[e.id, e.user_id, e.profile, e.input, e.output, e.task] for e in examples]
        run["made_from"] = digest([read, *model_marks(network)])
        scores = _finished(out, run)
        if scores is None:
            session.begin(out, run)
            how: dict[str, Any] = {
                "scope": scope,
                "target": target,
                "reference": None if reference == "none" else reference,
                "method": method,
            }
            if not quiet and not (out / UNFINISHED).is_file():
                tell_cost(network, tokenizer, [discovery_stage(network, examples, **how)])
            scores = prefheads.discover(
                network,
                tokenizer,
                examples,
                **how,
                checkpoint=out / UNFINISHED,
                seed=seed,
                progress=not quiet,
            )
            scores.save(out / SCORES)
            write_json(out / session.RUN_FILE, run)
            (out / UNFINISHED).unlink(missing_ok=True)
        heads = scores.top(fraction=fraction)
    heads.save(out / HEADS)
    result = {
        "run": out,
        "n_examples": scores.n_examples,
        "n_users": len(set(scores.user_ids)),
        "shape": scores.shape[1:],
        "nll": scores.nll.mean().item(),
        "selected": heads.heads,
        "heads": head_rows(scores, scores.values[0].numel()),
    }
    said = f"{heads.n_active} heads in {out / 'heads.safetensors'}"
    emit(as_json, result, [head_table(scores, SHOWN), said])


def _finished(out: Path, run: dict[str, Any]) -> HeadScores | None:
    """The scores of the same run, if it came to its end.

    Raises:
        ArtifactError: They are of other samples or another model.
    """
    if not (out / SCORES).is_file() or (out / UNFINISHED).is_file():
        return None
    if read_json(out / session.RUN_FILE).get("made_from") != run["made_from"]:
        raise ArtifactError(
            f"{out}: holds a run on other data or another model; give another folder"
        )
    return HeadScores.load(out / SCORES)
