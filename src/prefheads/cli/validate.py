"""`prefheads validate`: the gain of a fitted steering on unseen users, beside its controls."""

from dataclasses import asdict
from typing import Annotated

from rich.console import RenderableType
from typer import Option

from prefheads.calibration.validate import N_RANDOM
from prefheads.cli import options, session
from prefheads.cli.cost import Stage, tell_cost
from prefheads.cli.output import emit
from prefheads.cli.terminal import validation_table, verdict
from prefheads.data.example import Example, load_examples, spread
from prefheads.errors import DataError
from prefheads.models.loading import load_config
from prefheads.progress import stage
from prefheads.report.statistics.findings import findings
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steerer.files import read_steerer
from prefheads.storage import plain, writable_dir, write_json
from prefheads.types import Retrieval


def validate(
    model: options.Model,
    run: options.Run,
    data: options.Data,
    limit: options.Limit = None,
    items: Annotated[
        int | None, Option(min=1, help="Profile items; by default as many as in fitting.")
    ] = None,
    retrieval: Annotated[
        Retrieval | None, Option(help="How they are chosen; by default as in fitting.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Measure a fitted steering on users that fitting has not seen, beside its controls."""
    read_steerer(run, load_config(model))
    given = {"items": items, "retrieval": retrieval}
    session.require_same_profiles(run, {k: v for k, v in given.items() if v is not None})
    fitted = session.options_of(run)
    seen, counted = session.load_seen(run), list[int]()

    def choose(all_of_them: list[Example]) -> list[Example]:
        unseen = seen.unseen(all_of_them)
        counted.extend((len(all_of_them), len(unseen)))
        if not unseen:
            raise DataError("all users took part in fitting; validation needs users of its own")
        return spread(unseen, limit, seed)

    with stage(f"reading {data}", not quiet):
        examples = load_examples(
            data,
            items=items or fitted.get("items", 5),
            retrieval=retrieval or fitted.get("retrieval", "bm25"),
            seed=seed,
            select=choose,
        )
    writable_dir(run)
    checkpoint = run / "unfinished-validation.jsonl"
    with session.notes() as prompts:
        network, tokenizer = session.load(model, device, dtype, seed, not quiet)
        steerer = PreferenceSteerer.load(run, network, tokenizer)
        unseen = steerer.unseen(examples)
        if unseen and not quiet and not any(run.glob(f"{checkpoint.stem}*")):
            # The own profile with all controls, the two other prompts without random ones.
            copies = 3 * 6 + (0 if steerer.setting.plain else 2 * N_RANDOM)
            todo = Stage("with controls", unseen, copies, 3, steerer.scope == "all")
            tell_cost(network, tokenizer, [todo])
        result = steerer.validate(examples, checkpoint=checkpoint, seed=seed, progress=not quiet)
        tested = len(result.example_ids)
        prompts.append(tested)
    there, left = counted
    left_out = there - left
    write_json(run / "validation.json", plain(result.to_dict()))
    for path in run.glob(f"{checkpoint.stem}*"):  # so that other data can be validated next
        path.unlink()
    claims = findings(result)
    shown: list[RenderableType] = [
        validation_table(result.rows(), tested),
        verdict(claims),
        f"{left_out} of {there} samples were left out: their users took part in fitting.",
    ]
    report = result.to_dict() | {"left_out": left_out, "findings": [asdict(c) for c in claims]}
    emit(as_json, report, shown)
