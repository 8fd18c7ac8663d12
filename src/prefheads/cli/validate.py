"""`prefheads validate`: the gain of a fitted steering on unseen users, beside its controls."""

from dataclasses import asdict

from rich.console import RenderableType

from prefheads.analysis.findings import findings
from prefheads.cli import options, session
from prefheads.cli.cost import Stage, tell_cost
from prefheads.cli.tables import validation_table, verdict
from prefheads.examples import load_examples
from prefheads.loading import load_config
from prefheads.progress import stage
from prefheads.steerer import PreferenceSteerer
from prefheads.storage import writable_dir, write_json
from prefheads.validate import N_RANDOM


def validate(
    model: options.Model,
    run: options.Run,
    data: options.Data,
    limit: options.Limit = None,
    items: options.Items = 5,
    retrieval: options.Retrieval = "bm25",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Measure a fitted steering on users that fitting has not seen, beside its controls."""
    session.require_fitted(run, load_config(model))
    with stage(f"reading {data}", not quiet):
        examples = load_examples(data, items=items, retrieval=retrieval, limit=limit, seed=seed)
    writable_dir(run)
    checkpoint = run / "unfinished-validation.safetensors"
    with session.notes() as prompts:
        network, tokenizer = session.load(model, device, dtype, seed, not quiet)
        steerer = PreferenceSteerer.load(run, network, tokenizer)
        unseen = steerer.unseen(examples)
        if unseen and not quiet and not any(run.glob(f"{checkpoint.stem}*")):
            # The own profile with all controls, the two other prompts without random ones.
            copies = 3 * 4 + (0 if steerer.setting.plain else 2 * N_RANDOM)
            todo = Stage("with controls", unseen, copies, 3, steerer.scope == "all")
            tell_cost(network, tokenizer, [todo])
        result = steerer.validate(
            examples,
            checkpoint=checkpoint,
            seed=seed,
            progress=not quiet,
        )
        tested = len(result.example_ids)
        prompts.append(tested)
    left_out = len(examples) - tested
    write_json(run / "validation.json", session.plain(result.to_dict()))
    for path in run.glob(f"{checkpoint.stem}*"):  # so that other data can be validated next
        path.unlink()
    claims = findings(result)
    shown: list[RenderableType] = [
        validation_table(result.rows(), tested),
        verdict(claims),
        f"{left_out} of {len(examples)} samples were left out: their users took part in fitting.",
    ]
    report = result.to_dict() | {"left_out": left_out, "findings": [asdict(c) for c in claims]}
    session.emit(as_json, report, shown)
