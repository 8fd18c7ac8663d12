"""`prefheads fit`: clusters of users, the heads of each, and the strength to steer with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from rich.console import RenderableType
from typer import Option

from prefheads.calibration.headsets import candidates
from prefheads.cli import options, session
from prefheads.cli.cost import fit_stages, tell_cost
from prefheads.cli.output import emit
from prefheads.cli.terminal import calibration_table, cluster_table
from prefheads.data.example import Example, load_examples
from prefheads.errors import DataError
from prefheads.models.loading import load_config
from prefheads.progress import stage
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steerer.fit import divide
from prefheads.types import Mode, Objective
from prefheads.users.embed import require_extra

Parts = tuple[list[Example], list[Example], list[Example]]  # clustered, of these scored, held out


def _fractions(text: str) -> list[float]:
    try:
        fractions = [float(part) for part in text.split(",")]
    except ValueError:
        fractions = []
    if len(fractions) != 3:
        raise DataError(f"--split {text!r}: give three shares of the users, as 0.5,0.25,0.25")
    return fractions


def _used(
    examples: list[Example],
    fractions: Sequence[float],
    clusters: int | None,
    limits: tuple[int | None, int | None],
    seed: int,
) -> Parts:
    """The samples of all discovery users, those to score, and those for calibration.

    Refuses what fitting would only stumble over hours later.
    """
    parts, found, held = divide(examples, fractions, limits, seed)
    n_found = len({e.user_id for e in parts["discovery"]})
    if clusters is not None and clusters > n_found:
        raise DataError(
            f"{clusters} clusters, but discovery has {n_found} users; ask for fewer, or give more "
            "users or a larger share of them (--split)"
        )
    return parts["discovery"], found, held


def _load(
    data: Path, use: Callable[[list[Example]], Parts], loading: dict[str, Any]
) -> tuple[list[Example], list[Example], list[Example]]:
    """All examples, those that fitting will use with their profiles; and these in two parts."""
    known: list[Example] = []
    parts: list[Parts] = []

    def choose(examples: list[Example]) -> list[Example]:
        known.extend(examples)
        parts.append(use(examples))
        return [e for part in parts[0] for e in part]

    filled = {e.id: e for e in load_examples(data, select=choose, **loading)}
    _, found, held = ([filled[e.id] for e in part] for part in parts[0])
    return [filled.get(e.id, e) for e in known], found, held


def fit(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    clusters: Annotated[
        int | None, Option(min=1, help="Number of clusters; chosen from the data if absent.")
    ] = None,
    discovery: Annotated[
        int | None, Option(min=1, help="At most so many samples for discovery.")
    ] = None,
    calibration: Annotated[
        int | None, Option(min=2, help="At most so many samples for calibration.")
    ] = None,
    split: Annotated[
        str, Option(help="Shares of the users for discovery, calibration and tests.")
    ] = "0.5,0.25,0.25",
    scope: options.Scope = "response",
    reference: options.Reference = "none",
    objective: Annotated[Objective, Option(help="What calibration aims at.")] = "likelihood",
    mode: Annotated[Mode | None, Option(help="Calibrate this mode only.")] = None,
    target: Annotated[options.Target | None, Option(help="Calibrate this target only.")] = None,
    min_samples: options.MinSamples = 10,
    encoder: options.Encoder = "bundled",
    limit: options.Limit = None,
    items: options.Items = 5,
    retrieval: options.Retrieval = "bm25",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Cluster users, discover the heads of each cluster, and calibrate how to steer."""
    settings = session.recorded(locals())
    for name in ("mode", "target"):  # runs of before they existed can still be resumed
        if settings[name] is None:
            del settings[name]
    settings["split"] = fractions = _fractions(split)
    config = load_config(model)
    with stage(f"reading {data}", not quiet):
        examples, found, held = _load(
            data,
            lambda known: _used(known, fractions, clusters, (discovery, calibration), seed),
            {"items": items, "retrieval": retrieval, "limit": limit, "seed": seed},
        )
    require_extra()
    run = session.open_run(out, "fit", model, config, settings)
    resumed = session.has_results(out)
    how: dict[str, Any] = {"scope": scope, "reference": None if reference == "none" else reference}
    tried = [s for s in candidates() if mode in (None, s.mode) and target in (None, s.target)]
    with session.notes() as prompts:
        network, tokenizer = session.load(model, device, dtype, seed, not quiet)
        prompts.append(len(found) + len(held))
        if not quiet and not resumed:
            stages = fit_stages(network, found, held, len(tried), objective, **how)
            tell_cost(network, tokenizer, stages)
        session.begin(out, run)
        steerer = PreferenceSteerer.fit(
            network,
            tokenizer,
            examples,
            clusters,
            fractions=fractions,
            discovery_limit=discovery,
            calibration_limit=calibration,
            **how,
            settings=tried,
            objective=objective,
            min_samples=min_samples,
            encoder=encoder,
            run=out,
            seed=seed,
            progress=not quiet,
        )
    steerer.save(out)
    result = {
        "run": out,
        "clusters": steerer.clusters.sizes,
        "setting": str(steerer.setting),
        "users": {part: len(users) for part, users in steerer.users.items()},
        "calibration": steerer.calibration.to_dict(),
    }
    shown: list[RenderableType] = [
        cluster_table(steerer.clusters, [m.n_active for m in steerer.maps]),
        calibration_table(steerer.calibration),
        f"Chosen: {steerer.setting}. {len(steerer.users['test'])} users are left for `validate`.",
    ]
    emit(as_json, result, shown)
