"""`prefheads serve`: personalised text over HTTP; `prefheads keys`: who may ask for it."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from prefheads.cli import options, session
from prefheads.cli.listening import listen
from prefheads.errors import DataError, ModelError
from prefheads.models.loading import load_config, load_skeleton
from prefheads.models.presets import preset_of
from prefheads.optional import needs

if TYPE_CHECKING:  # these need the extra `serve`, or take long to import
    from prefheads.serve.keys import Keys
    from prefheads.steerer.core import PreferenceSteerer

Db = Annotated[
    str,
    typer.Option(
        "--db",
        envvar="PREFHEADS_DB",
        help="SQLite file, or postgresql://USER@HOST/NAME; made where needed.",
    ),
]
DB = "prefheads.sqlite"
KeyId = Annotated[str, typer.Argument(help="Id of the key, as `prefheads keys list` shows it.")]

keys = typer.Typer(
    name="keys", no_args_is_help=True, help="API keys of `prefheads serve`; each has its own users."
)


def serve(
    model: options.Model,
    run: options.Run,
    db: Db = DB,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; as --model if absent.")
    ] = None,
    host: Annotated[
        str, typer.Option(help='Address to listen at; "0.0.0.0" lets the whole network in.')
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    items: Annotated[
        int, typer.Option(min=1, help="Profile items in a prompt, the best by BM25.")
    ] = 5,
    engine: Annotated[
        Literal["auto", "vllm", "transformers"],
        typer.Option(help='What writes; "auto": vLLM where it is installed and can serve the run.'),
    ] = "auto",
    vllm_memory: Annotated[
        float | None,
        typer.Option(
            "--vllm-memory",
            min=0.01,
            help="GiB of vLLM's cache of keys and values; as it sees fit if absent (CPU: 4).",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Requests in a batch, at most; 16 if absent (vLLM: 128)."),
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens a request, at most.")] = 1024,
    rate: Annotated[float, typer.Option(min=0.01, help="Requests a second of a key.")] = 20,
    burst: Annotated[int, typer.Option(min=1, help="Requests of a key at once.")] = 100,
    grace: Annotated[
        int, typer.Option(min=1, help="Seconds to finish answers in when told to stop.")
    ] = 60,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Serve an OpenAI-compatible API that writes for users whose profiles it keeps."""
    with needs("serve"):
        from prefheads.serve import app
        from prefheads.serve.limits import Limits
        from prefheads.serve.observe import log_json
        from prefheads.serve.transformers_engine import BatchLimits
        from prefheads.serve.vllm_engine import VllmEngine
    from prefheads.steerer.core import PreferenceSteerer

    config = load_config(model)
    session.require_fitted(run, config)
    with listen(host, port) as listening, ExitStack() as stack:
        limits = Limits(
            max_tokens=max_tokens,
            default_tokens=min(max_tokens, Limits.default_tokens),
            rate=rate,
            burst=burst,
        )
        called = name or Path(model).name
        writer = None
        steerer, reason = _for_vllm(engine, model, run, device)
        if steerer is None:
            steerer = PreferenceSteerer.load(run, *session.load(model, device, dtype, seed))
        else:
            writer = VllmEngine(
                steerer, run, rows=batch_size or 128, queue=queue, memory=vllm_memory,
                dtype=_dtype(model, dtype), seed=seed,
            )  # fmt: skip
            stack.callback(writer.close)
        batches = BatchLimits(rows=batch_size or BatchLimits.rows, queue=queue)
        service = app.make_service(
            steerer, db, called, limits=limits, batches=batches, items=items, engine=writer
        )
        if steerer.setting.plain:
            session.tell("calibration found no steering that helps; requests may give a gamma")
        if not any(key.revoked is None for key in service.keys.all()):
            session.tell("there is no API key yet; `prefheads keys create NAME` makes one")
        address = f"[{host}]" if ":" in host else host
        by = f"transformers ({reason})" if reason else "vLLM"
        print(f"{called}: {steerer.setting}; engine: {by}")
        print(f"http://{address}:{listening.getsockname()[1]}/v1", flush=True)
        log_json()
        app.run(service, listening, grace)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for the list.")], db: Db = DB
) -> None:
    """Make a key and print it; it is shown this once."""
    print(_keys(db).create(name)[1])


@keys.command()
def rotate(id: KeyId, db: Db = DB) -> None:
    """Give a key another secret and print it; its profiles stay, the old secret ends."""
    print(_keys(db).rotate(id))


@keys.command()
def revoke(
    id: KeyId,
    db: Db = DB,
    purge: Annotated[bool, typer.Option("--purge", help="Delete its profiles, too.")] = False,
) -> None:
    """Make a key useless for good."""
    _keys(db).revoke(id, purge)


@keys.command("list")
def list_keys(db: Db = DB, as_json: options.Json = False) -> None:
    """Show all keys, without their secrets."""
    found = _keys(db).all()
    table = Table("id", "name", "created", "revoked")
    for key in found:
        table.add_row(key.id, key.name, _day(key.created), _day(key.revoked))
    session.emit(as_json, [vars(key) for key in found], [table])


def _keys(db: str) -> Keys:
    with needs("serve"):
        from prefheads.serve.database import open_database
        from prefheads.serve.keys import Keys
    if not db.strip():
        raise DataError("--db is empty; name a file or a URL")
    return Keys(open_database(db))


def _day(seconds: int | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def _for_vllm(
    engine: str, model: str, run: Path, device: str
) -> tuple[PreferenceSteerer | None, str]:
    """The run's steerer, its model without weights, if vLLM is to serve it; else why not.

    Raises:
        PrefheadsError: vLLM is asked for and cannot; or no such run.
    """
    from prefheads.serve.vllm_engine import installed, obstacle
    from prefheads.steerer.core import PreferenceSteerer

    if engine == "transformers":
        return None, "as asked"
    if engine == "auto" and not installed():
        return None, "vLLM is not installed"
    steerer = PreferenceSteerer.load(run, *load_skeleton(model))
    reason = obstacle(steerer, device)
    if engine == "vllm" and reason is not None:
        raise ModelError(f"{reason}; use --engine transformers")
    return (steerer, "") if reason is None else (None, reason)


def _dtype(model: str, dtype: str) -> str | None:
    preset = preset_of(model)
    return dtype if dtype != "auto" else preset.dtype if preset else None
