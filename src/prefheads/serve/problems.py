"""Errors as OpenAI's clients know them: a JSON object, and the status that goes with it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from prefheads.errors import PrefheadsError
from prefheads.serve.engine import EngineFailure, Overloaded

log = logging.getLogger(__name__)
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Problem(HTTPException):
    """A request that is refused.

    Args:
        status: HTTP status.
        message: One line for whoever wrote the client, without text of users.
        code: A word for programs.
        param: The field that it is about.
        retry_after: Seconds after which it is worth trying again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after) or 1)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code, self.param = code, param


def body_of(error: Exception) -> dict[str, Any]:
    """The JSON of an error, for a response or for an event of a stream."""
    problem = problem_of(error)
    kind = TYPES.get(
        problem.status_code,
        "server_error" if problem.status_code >= 500 else "invalid_request_error",
    )
    shown = {"message": problem.detail, "type": kind, "param": problem.param, "code": problem.code}
    return {"error": shown}


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error; of one of the program itself, nothing but that."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return Problem(error.status_code, error.detail)
    if isinstance(error, Overloaded):
        return Problem(503, f"{error}; try again soon", "overloaded", retry_after=1)
    if isinstance(error, EngineFailure):
        return Problem(503, str(error), "engine_failure", retry_after=1)
    if isinstance(error, PrefheadsError):
        too_long = "longer than the context" in str(error) or "no profile item fits" in str(error)
        return Problem(400, _bare(error), "context_length_exceeded" if too_long else None)
    log.error("request failed", exc_info=error)
    if isinstance(error, SQLAlchemyError):
        return Problem(503, "the database is out of reach", "database", retry_after=1)
    return Problem(500, "the server failed; see its log for this request id", "internal_error")


def handle_errors(app: FastAPI) -> None:
    """Have an application answer all errors in this form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        problem = problem_of(error)
        headers: Mapping[str, str] | None = problem.headers
        return JSONResponse(body_of(problem), problem.status_code, headers)

    for kind in (
        HTTPException, RequestValidationError, PrefheadsError, EngineFailure, Overloaded,
        SQLAlchemyError,
    ):  # fmt: skip
        app.add_exception_handler(kind, answer)


def _bare(error: PrefheadsError) -> str:
    """The message without the name of the example, which means nothing to a client."""
    return str(error).removeprefix("example 'request': ")


def _invalid(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]
    param = ".".join(place) or None
    if first["type"] == "json_invalid":
        return Problem(400, "the body is not valid JSON", "invalid_json")
    message = str(first["msg"]).removeprefix("Value error, ")
    return Problem(400, f"{param}: {message}" if param else message, "invalid_value", param)
