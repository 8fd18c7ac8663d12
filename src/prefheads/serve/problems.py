"""Errors as OpenAI's clients know them: a JSON object, and the status that goes with it."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from prefheads.errors import PrefheadsError

log = logging.getLogger(__name__)
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Problem(HTTPException):
    """A request that is refused, in one line for whoever wrote the client, without text of users.

    ``code`` is a word for programs, ``param`` the field that it is about, ``retry_after`` the
    seconds after which it is worth trying again.
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

    def __str__(self) -> str:
        return self.detail

    @property
    def body(self) -> dict[str, Any]:
        """As JSON, for a response or for an event of a stream."""
        other = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status_code, other)
        shown = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return {"error": shown}


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error; of one of the program itself, nothing but that."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return Problem(400, "the body is not valid JSON", "invalid_json")
        param = ".".join(str(part) for part in first["loc"][1:])
        message = str(first["msg"]).removeprefix("Value error, ")
        message = f"{param}: {message}" if param else message
        return Problem(400, message, "invalid_value", param or None)
    if isinstance(error, HTTPException):
        return Problem(error.status_code, error.detail)
    if isinstance(error, PrefheadsError):
        # The name of the example means nothing to a client.
        message = str(error).removeprefix("example 'request': ")
        too_long = "longer than the context" in message or "no profile item fits" in message
        return Problem(400, message, "context_length_exceeded" if too_long else None)
    log.error("request failed", exc_info=error)
    if isinstance(error, SQLAlchemyError):
        return Problem(503, "the database is out of reach", "database", retry_after=1)
    return Problem(500, "the server failed; see its log for this request id", "internal_error")


def handle_errors(app: FastAPI) -> None:
    """Have an application answer all errors in this form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        problem = problem_of(error)
        return JSONResponse(problem.body, problem.status_code, problem.headers)

    for kind in (HTTPException, RequestValidationError, PrefheadsError, SQLAlchemyError, Exception):
        app.add_exception_handler(kind, answer)
