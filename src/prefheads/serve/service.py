"""What the routes share: the parts of the service, and who may use them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from prefheads.serve.engine import Engine
from prefheads.serve.keys import Keys
from prefheads.serve.limits import Limits, RateLimit
from prefheads.serve.observe import Metrics
from prefheads.serve.personal import Personaliser
from prefheads.serve.problems import Problem
from prefheads.serve.profiles import Profiles


@dataclass
class Service:
    """The parts."""

    name: str  # what clients call the model
    engine: Engine
    personaliser: Personaliser
    keys: Keys
    profiles: Profiles
    metrics: Metrics
    limits: Limits = field(default_factory=Limits)
    needed: tuple[str, ...] = ("text",)  # fields that a profile's items must have
    description: str = ""  # how the run steers, for ``/v1/models``
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.rate = RateLimit(self.limits.rate, self.limits.burst)
        self.metrics.waiting.set_function(lambda: self.engine.waiting)

    @classmethod
    def of(cls, request: Request) -> Service:
        """The service that a request has reached."""
        service: Service = request.app.state.service
        return service

    def require_model(self, name: str) -> None:
        """Refuse any other model."""
        if name != self.name:
            message = f"there is no such model; the model here is {self.name}"
            raise Problem(404, message, "model_not_found", "model")


async def authenticated(request: Request) -> str:
    """The id of the key that a request carries, if it may make a request now."""
    service = Service.of(request)
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    key = None
    if scheme.lower() == "bearer":
        key = await run_in_threadpool(service.keys.check, secret.strip())
    if key is None:
        message = "no valid API key; send one as Authorization: Bearer KEY"
        raise Problem(401, message, "invalid_api_key")
    request.state.trace.key = key
    wait = service.rate.take(key)
    if wait > 0:
        message = f"too many requests; try again in {wait:.1f} s"
        raise Problem(429, message, "rate_limit_exceeded", retry_after=wait)
    return key
