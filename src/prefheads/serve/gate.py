"""What every request passes: an id, limits on its body, a line in the log, metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefheads.serve.limits import Limits
from prefheads.serve.observe import Metrics
from prefheads.serve.problems import Problem

log = logging.getLogger(__name__)
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
TOKENS = ("prompt_tokens", "completion_tokens")  # of an answer, as clients and the log name them
QUIET = ("/health", "/ready", "/metrics")


@dataclass
class Trace:
    """What is noted of a request while it is answered."""

    id: str  # the client's, or a new one
    began: float  # by a clock that only grows
    key: str | None = None  # id of the API key
    prompt_tokens: int = 0
    completion_tokens: int = 0
    mode: str | None = None


class Gate:
    """Wraps the application, errors included."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        trace = Trace(given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex, time.perf_counter())
        scope.setdefault("state", {})["trace"] = trace
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = trace.id
                headers["Cache-Control"] = "no-store"
            await send(message)

        receiving = self._limited(receive, Headers(scope=scope).get("content-length", ""))
        with self._metrics.active.track_inprogress():
            try:
                await self._app(scope, receiving, sending)
            except Exception as error:
                # The application has answered, or it is too late to say more than that it ended.
                log.error("stream failed", exc_info=error, extra={"fields": {"id": trace.id}})
                raise ConnectionAbortedError from None
            finally:
                self._note(scope, trace, status)

    def _note(self, scope: Scope, trace: Trace, status: int) -> None:
        # The route's pattern: paths hold names of users.
        route = getattr(scope.get("route"), "path", "unknown")
        seconds = time.perf_counter() - trace.began
        status = status or 499  # the client went away
        self._metrics.requests.labels(scope["method"], route, status).inc()
        self._metrics.seconds.labels(scope["method"], route).observe(seconds)
        if route in QUIET:
            return
        fields = {
            "request_id": trace.id, "key": trace.key, "method": scope["method"], "route": route,
            "status": status, "seconds": round(seconds, 4),
        }  # fmt: skip
        if trace.mode is not None:
            fields |= {name: getattr(trace, name) for name in ("mode", *TOKENS)}
        log.info("request", extra={"fields": fields})

    def _limited(self, receive: Receive, announced: str) -> Receive:
        """Receives a body that is neither too long nor too slow."""
        limits, over = self._limits, False
        began, size = time.monotonic(), 0
        too_large = Problem(
            413, f"a request has at most {limits.body_bytes} bytes", "request_too_large"
        )

        async def receiving() -> Message:
            nonlocal size, over
            if over:  # what comes now is that the client went away
                return await receive()
            if announced.isdigit() and int(announced) > limits.body_bytes:
                raise too_large
            left = began + limits.body_seconds - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except TimeoutError:
                raise Problem(408, "the request took too long to come in", "timeout") from None
            size += len(message.get("body", b""))
            if size > limits.body_bytes:
                raise too_large
            over = not message.get("more_body", False)
            return message

        return receiving
