"""`prefheads generate`: text for one user, steered, and beside it unsteered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

from rich.table import Table
from transformers import set_seed
from typer import Option

from prefheads.cli import options, session
from prefheads.cli.output import emit, tell
from prefheads.data.example import Example, load_examples
from prefheads.data.stream import read_text
from prefheads.errors import DataError, SteeringError
from prefheads.heads.files import is_fitted, load_heads
from prefheads.models.loading import load_config
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steerer.files import read_steerer
from prefheads.steering.generation import generate_texts
from prefheads.steering.setting import Setting
from prefheads.types import Mode, Routing, Scope, Target


def generate(
    model: options.Model,
    run: options.Run,
    profile: Annotated[
        Path, Option(help='The user\'s texts: JSON or JSONL of strings or {"text"}, or .txt.')
    ],
    prompt: Annotated[str, Option(help="What to write.")],
    gamma: Annotated[
        float | None, Option(help="Strength, at least 0; as calibrated if absent.")
    ] = None,
    mode: Annotated[Mode | None, Option(help="As calibrated if absent.")] = None,
    target: Annotated[options.Target | None, Option(help="As calibrated if absent.")] = None,
    routing: Annotated[
        Routing | None,
        Option(help="Mix the maps of clusters, or take the nearest; as fitted if absent."),
    ] = None,
    compare: Annotated[bool, Option(help="Print the unsteered text beside it.")] = False,
    max_new_tokens: Annotated[int, Option(min=1, help="Length of the text.")] = 64,
    sample: Annotated[bool, Option(help="Sample instead of taking the likeliest.")] = False,
    temperature: Annotated[
        float, Option(min=0.01, help="Of sampling; above 1 is more varied.")
    ] = 1.0,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write for one user, given by a profile, with the heads and strength of a run."""
    Setting(gamma=gamma or 0.0)  # refused before anything is read
    if not prompt.strip():
        raise DataError("--prompt is empty; say what to write")
    config = load_config(model)
    texts = read_profile(profile)
    fitted = is_fitted(run)
    if fitted:
        read_steerer(run, config)
    else:
        heads = load_heads(run, config)
        if gamma is None:
            raise SteeringError(f"{run}: holds heads but no calibrated strength; give --gamma")
    with session.notes() as prompts:
        prompts.append(1)
        network, tokenizer = session.load(model, device, dtype, seed)
        if fitted:
            steerer = PreferenceSteerer.load(run, network, tokenizer)
            heads = steerer.heads_for([texts], routing)[0]
            task, base = steerer.task, steerer.form
        else:
            task, scope = heads.info.task, cast(Scope, heads.info.scope or "response")
            found_by = cast(Target, heads.info.target or "head")
            base = Setting(f"{heads.n_active} heads", "contrast", found_by, scope=scope)
        setting = base.changed(gamma=gamma, mode=mode, target=target)
        if setting.plain and gamma is None:
            tell("calibration found no steering that helps; --gamma steers all the same")
        example = Example(str(profile), "user", tuple(texts), prompt, None, task)
        choice: dict[str, Any] = {"do_sample": sample, "max_new_tokens": max_new_tokens}
        if sample:
            choice["temperature"] = temperature

        def write(how: Setting) -> str:
            set_seed(seed)
            return generate_texts(network, tokenizer, [example], [heads], how, **choice)[0]

        result = {"setting": str(setting), "steered": write(setting)}
        if compare:
            result["plain"] = write(replace(setting, gamma=0.0))
    table = Table("plain", f"steered: {setting}", show_lines=True)
    table.add_row(result.get("plain"), result["steered"])
    emit(as_json, result, [table if compare else result["steered"]])


def read_profile(path: Path) -> list[dict[str, str]]:
    """A user's texts: JSON or JSONL of ``{"text": ...}`` or strings, or ``.txt``, one a line.

    Raises:
        DataError: A file that cannot be read or holds no texts, with its line.
    """
    text = read_text(path)
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix == ".txt":
        items: list[Any] = [line.strip() for _, line in lines]
    elif path.suffix == ".json":
        items = _json(text, str(path))
        if not isinstance(items, list):
            raise DataError(f"{path}: must be a list of texts")
    else:
        items = [_json(line, f"{path}:{n}") for n, line in lines]
    if not items:
        raise DataError(f"{path}: the profile is empty; give it at least one text")
    profile = [{"text": item} if isinstance(item, str) else item for item in items]
    row = {"id": path.name, "user_id": "user", "profile": profile, "input": ""}
    try:
        (example,) = load_examples([row], retrieval="all", require_output=False)
    except DataError as error:
        reason = str(error).removeprefix("example [0]: ")
        raise DataError(f"{path}: {reason}") from None
    return [dict(item) for item in example.profile]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}, line {error.lineno})") from None
