"""`prefheads flops`: what steering and discovery cost, by the paper's formula and counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from rich.console import RenderableType
from rich.table import Table
from transformers import PreTrainedConfig
from typer import Option

from prefheads.cli import options
from prefheads.cli.output import emit, table
from prefheads.errors import DataError
from prefheads.evaluation.flops import LLAMA_3_8B, ModelCost, model_cost, paper_estimate
from prefheads.models.loading import load_config
from prefheads.steering.dola import candidate_layers

PAPERS_MODEL = "llama-3-8b-instruct"
METHODS = ("plain", "contrast", "amplify", "cad", "dola")
TERA = 1e12


def flops(
    model: options.Model = PAPERS_MODEL,
    prompt: Annotated[
        str, Option(help="Tokens of the prompt, several lengths separated by commas.")
    ] = "512,1024,2048",
    new: Annotated[
        int, Option(min=1, help="Tokens generated; in discovery, of the response.")
    ] = 32,
    fork: Annotated[
        int, Option(min=0, help="First layer with a suppressed head: contrast forks there.")
    ] = 0,
    bare: Annotated[
        int, Option(min=1, help="Tokens of the prompt without the profile, for CAD.")
    ] = 128,
    as_json: options.Json = False,
) -> None:
    """Count FLOPs from a model's config: the paper's Table 3, and what is really computed."""
    lengths = _lengths(prompt)
    config = _config(model)
    cost = model_cost(config)
    n_layers = len(cost.layers)
    if fork >= n_layers:
        raise DataError(f"--fork {fork}: {model} has layers 0 to {n_layers - 1}")
    tied = bool(getattr(config, "tie_word_embeddings", False))
    early = len(candidate_layers("low", n_layers, tied))
    decoding = [_decoding(config, cost, n, new, fork, bare, early) for n in lengths]
    discovery = [_discovery(cost, n, new) for n in lengths]
    settings = {"model": model, "new": new, "fork": fork, "bare": bare, "early_layers": early}
    heads = n_layers * cost.n_heads
    scopes = ("naive,\nall logits", "naive", "ours, scope\nresponse", "ours, scope\nall")
    of_methods = [{"prompt": row["prompt"], **row["exact"]} for row in decoding]
    shown: list[RenderableType] = [
        _paper_table(model, new, decoding),
        _table(f"Each method, {new} new tokens, exact, TFLOP", METHODS, of_methods, "plain", ".2f"),
        _table(
            f"Discovery of {heads} heads, an example with {new} response tokens, TFLOP",
            scopes,
            discovery,
            "naive",
            ".3g",
        ),
        f"TFLOP at batch size 1; contrast forks at layer {fork} of {n_layers}, CAD's prompt "
        f"without the profile has {bare} tokens, DoLa reads {early} early layers.",
    ]
    emit(as_json, settings | {"decoding": decoding, "discovery": discovery}, shown)


def _lengths(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise DataError(f"--prompt {text!r}: give numbers of tokens, such as 512,1024,2048")
    return [int(part) for part in parts]


def _config(model: str) -> PreTrainedConfig:
    if model.lower() == PAPERS_MODEL:
        return LLAMA_3_8B
    path = Path(model)
    return load_config(path.parent if path.name == "config.json" else model)


def _decoding(
    config: PreTrainedConfig, cost: ModelCost, n: int, new: int, fork: int, bare: int, early: int
) -> dict[str, Any]:
    paper = paper_estimate(config, n, new)
    costs = (
        cost.plain(n, new),
        cost.contrast(n, new, fork),
        cost.amplify(n, new),
        cost.cad(n, new, bare),
        cost.dola(n, new, early),
    )
    return {
        "prompt": n,
        "paper": paper and dict(zip(METHODS, paper, strict=False)),
        "exact": dict(zip(METHODS, costs, strict=True)),
    }


def _discovery(cost: ModelCost, n: int, response: int) -> dict[str, int]:
    return {
        "prompt": n,
        "naive_all_logits": cost.naive_discovery(n, response, all_logits=True),
        "naive": cost.naive_discovery(n, response),
        "response": cost.discovery(n, response),
        "all": cost.discovery(n, response, "all"),
    }


def _paper_table(model: str, new: int, rows: list[dict[str, Any]]) -> Table:
    names = [f"{name}\n{by}" for by in ("paper", "exact") for name in ("plain", "DPS", "overhead")]
    shown = table(f"Table 3: {model}, {new} new tokens, TFLOP", "prompt", *names, left=0)
    for row in rows:
        cells = []
        for costs in (row["paper"], row["exact"]):
            if costs is None:
                cells += ["n/a"] * 3
                continue
            plain, contrast = costs["plain"], costs["contrast"]
            cells += [_tera(plain), _tera(contrast), f"{contrast / plain:.2f}x"]
        shown.add_row(str(row["prompt"]), *cells)
    return shown


def _table(
    title: str, names: Sequence[str], rows: list[dict[str, int]], unit: str, form: str
) -> Table:
    """Costs for each length of the prompt, and how many times that of ``unit`` each is."""
    shown = table(title, "prompt", *names, left=0)
    for row in rows:
        prompt, *costs = row.values()
        told = (f"{_tera(flop)} ({flop / row[unit]:{form}}x)" for flop in costs)
        shown.add_row(str(prompt), *told)
    return shown


def _tera(flop: int) -> str:
    value = flop / TERA
    return f"{value:,.2f}" if value >= 1 else f"{value:#.3g}"
