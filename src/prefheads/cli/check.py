"""`prefheads check`: a self-test on the user's own model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from rich.console import RenderableType
from rich.table import Table
from typer import Exit, Option

from prefheads.cli import options
from prefheads.cli.output import emit
from prefheads.cli.session import load
from prefheads.errors import ModelError

WRONG = 1


def check(
    model: options.Model,
    attention: Annotated[
        str | None, Option(help="sdpa, eager, flex_attention, ...; the model's own if unset.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Test steering and discovery on a model, device, precision and attention; about a minute.

    Exits with 1 where something is wrong.
    """
    from prefheads.selftest.check import check as run

    loaded, tokenizer = load(model, device, dtype, seed)
    if attention is not None:
        try:
            loaded.set_attn_implementation(attention)
        except (ValueError, ImportError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(f"--attention {attention}: {reason}") from None
    result = run(loaded, tokenizer, progress=not quiet)
    table = Table("what", "largest difference", "limit", "", title_justify="left")
    for finding in result.findings:
        found = "n/a" if finding.difference is None else f"{finding.difference:.1e}"
        verdict = finding.note or "right"
        if not finding.right:
            verdict = f"WRONG {finding.note}".strip()
        table.add_row(finding.what, found, f"{finding.limit:.1e}", verdict)
    n_layers, n_heads = result.shape
    wrong = sum(not finding.right for finding in result.findings)
    lines: list[RenderableType] = [
        f"{result.model}: {n_layers} layers of {n_heads} heads, {result.dtype} on {result.device}, "
        f"{result.attention} attention",
        table,
        "Differences are relative to the largest logit. The model's own cached and padded decoding "
        f"differs from its full passes by {result.noise:.1e}.",
        "All right." if result.right else f"{wrong} of {len(result.findings)} are wrong.",
    ]
    emit(as_json, asdict(result) | {"right": result.right}, lines)
    if not result.right:
        raise Exit(WRONG)
