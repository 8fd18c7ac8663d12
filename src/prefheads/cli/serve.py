"""`prefheads serve`: personalised text over HTTP."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from prefheads.cli import options, session
from prefheads.cli.keys import DB, Db
from prefheads.cli.listening import listen
from prefheads.cli.output import tell
from prefheads.errors import ModelError
from prefheads.models.loading import PRESET_DTYPE, load_config, load_skeleton, preset_of
from prefheads.optional import needs
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steerer.files import read_steerer


def serve(
    model: options.Model,
    run: options.Run,
    db: Db = DB,
    name: Annotated[
        str | None, Option(help="What clients call the model; as --model if absent.")
    ] = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    items: Annotated[int, Option(min=1, help="Profile items in a prompt, the best by BM25.")] = 5,
    engine: Annotated[
        Literal["auto", "vllm", "transformers"],
        Option(help='What writes; "auto": vLLM where it is installed and can serve the run.'),
    ] = "auto",
    vllm_memory: Annotated[
        float | None,
        Option(
            min=0.01,
            help="GiB of vLLM's cache of keys and values; as it sees fit if absent (CPU: 4).",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, Option(min=1, help="Requests in a batch, at most; 16 if absent (vLLM: 128).")
    ] = None,
    queue: Annotated[int, Option(min=1, help="Requests that may wait.")] = 256,
    max_tokens: Annotated[int, Option(min=1, help="New tokens a request, at most.")] = 1024,
    rate: Annotated[float, Option(min=0.01, help="Requests a second of a key.")] = 20,
    burst: Annotated[int, Option(min=1, help="Requests of a key at once.")] = 100,
    grace: Annotated[
        int, Option(min=1, help="Seconds to finish answers in when told to stop.")
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

    config = load_config(model)
    read_steerer(run, config)
    with listen(host, port) as listening, ExitStack() as stack:
        default = min(max_tokens, Limits.default_tokens)
        limits = Limits(max_tokens=max_tokens, default_tokens=default, rate=rate, burst=burst)
        called = name or Path(model).name
        writer = None
        steerer, reason = _for_vllm(engine, model, run, device)
        if steerer is None:
            steerer = PreferenceSteerer.load(run, *session.load(model, device, dtype, seed))
        else:
            own = PRESET_DTYPE if preset_of(model) else None
            writer = VllmEngine(
                steerer, run, rows=batch_size or 128, queue=queue, memory=vllm_memory,
                dtype=own if dtype == "auto" else dtype, seed=seed,
            )  # fmt: skip
            stack.callback(writer.close)
        batches = BatchLimits(rows=batch_size or BatchLimits.rows, queue=queue)
        service = app.make_service(
            steerer, db, called, limits=limits, batches=batches, items=items, engine=writer
        )
        if steerer.setting.plain:
            tell("calibration found no steering that helps; requests may give a gamma")
        if not any(key.revoked is None for key in service.keys.all()):
            tell("there is no API key yet; `prefheads keys create NAME` makes one")
        address = f"[{host}]" if ":" in host else host
        by = f"transformers ({reason})" if reason else "vLLM"
        print(f"{called}: {steerer.setting}; engine: {by}")
        print(f"http://{address}:{listening.getsockname()[1]}/v1", flush=True)
        log_json()
        app.run(service, listening, grace)


def _for_vllm(
    engine: str, model: str, run: Path, device: str
) -> tuple[PreferenceSteerer | None, str]:
    """The run's steerer, its model without weights, if vLLM is to serve it; else why not.

    Raises:
        PrefheadsError: vLLM is asked for and cannot; or no such run.
    """
    from prefheads.serve.vllm_engine import installed, obstacle

    if engine == "transformers":
        return None, "as asked"
    if engine == "auto" and not installed():
        return None, "vLLM is not installed"
    steerer = PreferenceSteerer.load(run, *load_skeleton(model))
    reason = obstacle(steerer, device)
    if engine == "vllm" and reason is not None:
        raise ModelError(f"{reason}; use --engine transformers")
    return (steerer, "") if reason is None else (None, reason)
