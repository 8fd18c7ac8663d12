"""The web application, and running it."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

import prefheads
from prefheads.data.task import task_of
from prefheads.models.limits import context_length
from prefheads.serve import answers, people
from prefheads.serve.database import open_database
from prefheads.serve.engine import Engine
from prefheads.serve.gate import Gate
from prefheads.serve.keys import Keys
from prefheads.serve.limits import Limits
from prefheads.serve.observe import Metrics
from prefheads.serve.personal import Personaliser
from prefheads.serve.problems import handle_errors
from prefheads.serve.profiles import Profiles
from prefheads.serve.service import Service, authenticated
from prefheads.serve.transformers_engine import BatchLimits, TransformersEngine
from prefheads.steerer.core import PreferenceSteerer


def make_service(
    steerer: PreferenceSteerer,
    database: str,
    name: str,
    *,
    limits: Limits | None = None,
    batches: BatchLimits | None = None,
    items: int = 5,
    engine: Engine | None = None,
) -> Service:
    """The service for a fitted steerer, with its engine running.

    Args:
        database: As :func:`prefheads.serve.database.open_database` takes it.
        name: What clients call the model.
        items: Profile items in a prompt.
        engine: What writes; transformers with the steerer's own model if None.
    """
    limits, metrics = limits or Limits(), Metrics()
    context = context_length(steerer.model)
    if context is not None:  # an answer of unsaid length must leave room for a prompt
        limits = replace(limits, default_tokens=min(limits.default_tokens, context // 4))
    db = open_database(database)
    profiles = Profiles(db, limits.items, limits.profiles)
    personaliser = Personaliser(steerer, profiles, items)
    engine = engine or TransformersEngine(steerer, batches, metrics.batch.observe)
    form = task_of(steerer.task)
    return Service(
        name, engine, personaliser, Keys(db), profiles, metrics, limits,
        needed=tuple(dict.fromkeys([*form.fields, *form.corpus])), description=str(steerer.setting),
    )  # fmt: skip


def make_app(service: Service) -> ASGIApp:
    """The web application of a service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.engine.close)

    app = FastAPI(
        title="prefheads", version=prefheads.__version__, docs_url=None, redoc_url=None,
        lifespan=lifespan,
    )  # fmt: skip
    app.state.service = service
    app.include_router(answers.router)
    app.include_router(people.router)
    handle_errors(app)
    model = {
        "id": service.name, "object": "model", "created": service.created, "owned_by": "prefheads",
        "steering": service.description,
    }  # fmt: skip

    @app.get("/v1/models")
    async def models(key: Annotated[str, Depends(authenticated)]) -> Any:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str, key: Annotated[str, Depends(authenticated)]) -> Any:
        service.require_model(name)
        return model

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"alive": service.engine.alive}, 200 if service.engine.alive else 503)

    @app.get("/ready")
    def ready(request: Request) -> Response:
        try:
            service.keys.all()
            ready = service.engine.alive
        except SQLAlchemyError:
            ready = False
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return Gate(app, service.limits, service.metrics)


def make_server(service: Service, grace: int = 60) -> uvicorn.Server:
    """A web server; when told to stop it finishes what it has begun, for ``grace`` seconds."""
    config = uvicorn.Config(
        make_app(service), log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=grace,
    )  # fmt: skip
    return uvicorn.Server(config)


def run(service: Service, listening: socket.socket, grace: int) -> None:
    """Serve until told to stop by SIGTERM or Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # The web server raises the signal again when it has shut down; by then all is done.
        signal.signal(number, lambda *_: None)
    make_server(service, grace).run(sockets=[listening])
