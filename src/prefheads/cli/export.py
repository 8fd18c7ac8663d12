"""`prefheads export`: amplified heads as LoRA adapters or checkpoints, for other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import RenderableType
from rich.table import Table
from typer import Argument, Option

from prefheads.cli import options, session
from prefheads.cli.output import emit
from prefheads.errors import SteeringError
from prefheads.export.export import Adapter, export_adapter, export_merged, new_folder, require_new
from prefheads.heads.files import is_fitted, load_heads
from prefheads.heads.scores import HeadWeights
from prefheads.models.loading import load_config, load_model
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steerer.files import read_steerer


def export(
    source: Annotated[
        Path, Argument(help="Folder that `fit` or `discover` wrote, or a file of heads.")
    ],
    model: options.Model,
    form: Annotated[
        Literal["peft", "merged"],
        Option("--format", help="A LoRA adapter, or a checkpoint of the whole model."),
    ],
    out: Annotated[Path, Option(help="New folder; of a fitted run, with one folder a cluster.")],
    gamma: Annotated[
        float | None, Option(help="Strength, above 0; as calibrated if absent.")
    ] = None,
    max_rank: Annotated[
        int | None, Option(min=1, help="Truncate adapters to this rank; exact if absent.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(help='Of a merged checkpoint; "auto": the model\'s own.'),
    ] = "auto",
    as_json: options.Json = False,
) -> None:
    """Write amplified heads as weights: for PEFT, vLLM, or whatever loads a checkpoint."""
    if form == "merged" and max_rank is not None:
        raise SteeringError("--max-rank is for --format peft; a merged checkpoint has no rank")
    config = load_config(model)
    require_new(out)
    fitted = is_fitted(source)
    maps: dict[str, HeadWeights] = {}
    if fitted:
        read_steerer(source, config)
    elif source.is_dir():
        maps[""] = load_heads(source, config)
    else:
        maps[""] = HeadWeights.load(source, model=config)
    if not fitted and gamma is None:
        raise SteeringError(f"{source}: holds heads but no calibrated strength; give --gamma")
    with session.notes():
        wanted = config.dtype if dtype == "auto" else dtype
        network, tokenizer = load_model(model, device="cpu", dtype=wanted)
        if fitted:
            steerer = PreferenceSteerer.load(source, network, tokenizer)
            maps = {f"cluster-{i}": heads for i, heads in enumerate(steerer.maps)}
            gamma = _strength(source, steerer, gamma)
        assert gamma is not None
        written, plain = [], []
        with new_folder(out) as work:
            for name, heads in maps.items():
                if fitted and not heads.n_active:
                    plain.append(name)
                    continue
                report: dict[str, Any] = {"folder": out / name, "heads": heads.n_active}
                to, by = work / name, str(source)
                if form == "peft":
                    report |= _report(
                        export_adapter(network, heads, gamma, to, max_rank=max_rank, source=by)
                    )
                else:
                    export_merged(network, tokenizer, heads, gamma, to, source=by)
                written.append(report)
    result = {"format": form, "gamma": gamma, "written": written, "plain": plain}
    emit(as_json, result, _shown(result))


def _strength(source: Path, steerer: PreferenceSteerer, gamma: float | None) -> float:
    """The gamma to export with; refuses what is no change of weights."""
    form = steerer.form
    if (form.mode, form.target) != ("amplify", "head"):
        raise SteeringError(
            f"{source}: was calibrated to {form.mode} on target {form.target}, which is no change "
            "of weights; fit again with --mode amplify --target head --scope all"
        )
    if gamma is None and form.plain:
        raise SteeringError(
            f"{source}: calibration found no steering that helps; --gamma exports all the same"
        )
    return form.gamma if gamma is None else gamma


def _report(adapter: Adapter) -> dict[str, Any]:
    layers = [
        {"projection": c.name, "heads": c.heads, "exact_rank": c.full_rank, "error": c.error}
        for c in adapter.changes
    ]
    return {"rank": adapter.rank, "error": adapter.error, "layers": layers}


def _shown(result: dict[str, Any]) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for report in result["written"]:
        line = f"{report['folder']}: {report['heads']} heads, gamma {result['gamma']:g}"
        layers = report.get("layers", [])
        if layers:
            line += f", {len(layers)} layers, rank {report['rank']}"
            line += f", relative error {report['error']:.3g}" if report["error"] else ", exact"
        shown.append(line)
        if report.get("error"):
            table = Table("projection", "heads", "exact rank", "relative error")
            for c in layers:
                row = (c["projection"], c["heads"], c["exact_rank"], f"{c['error']:.3g}")
                table.add_row(*map(str, row))
            shown.append(table)
    if result["plain"]:
        shown.append(f"Without heads, so plain and not written: {', '.join(result['plain'])}.")
    return shown
