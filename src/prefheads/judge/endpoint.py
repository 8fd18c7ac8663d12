"""Chat completions of any OpenAI-compatible endpoint, asked until an answer can be used."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from prefheads.errors import DataError, PrefheadsError
from prefheads.judge.store import Answer

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds of back-off
PATIENCE = 600.0  # seconds: an endpoint that wants a longer pause is left for a later run
_PASSING = {408, 409, 425, 429}  # of the errors below 500, those that another try may not meet
T = TypeVar("T")


class EndpointError(PrefheadsError):
    """An endpoint that refuses, or that does not answer however often it is asked."""


class UnusableError(PrefheadsError):
    """An endpoint that answers, but never with what was asked for."""


@dataclass
class Usage:
    """What was sent and what it took; unusable answers are counted too."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, requests: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Count; from any thread."""
        with self._lock:
            self.requests += requests
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Tokens(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Tokens | None = None


class Endpoint:
    """An OpenAI-compatible endpoint; threads may share it.

    Args:
        base_url: Up to the version, such as ``http://localhost:8000/v1``.
        key: Sent with every request and kept nowhere; none if empty.
        timeout: Seconds that a request may take to connect, and between parts of its answer.
        retries: Tries after the first one.
        sleep: How to wait; by default in a way that `stop` ends.

    Raises:
        DataError: No such URL, or a key that cannot be one.
    """

    def __init__(
        self,
        base_url: str,
        key: str = "",
        *,
        timeout: float = 120.0,
        retries: int = 5,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        try:
            url = httpx2.URL(base_url.rstrip("/") + "/chat/completions")
        except httpx2.InvalidURL:
            url = httpx2.URL()
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
            raise DataError(
                "--base-url must be such as http://localhost:8000/v1, without a key in it"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise DataError("the key holds characters that no key has; look at its variable")
        self.url, self.retries, self.usage = str(url), retries, Usage()
        self._key, self._stopped = key, threading.Event()
        self._sleep = self._stopped.wait if sleep is None else sleep
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(headers=headers, timeout=timeout, follow_redirects=False)

    def stop(self) -> None:
        """Try nothing again; a request that is under way still gets its answer."""
        self._stopped.set()

    def ask(self, body: Mapping[str, Any], check: Callable[[str], T]) -> tuple[T, Answer]:
        """Ask until ``check`` takes the answer's text.

        Busy or failing servers and lost connections are tried again after the pause that the
        server wants, or else ever longer ones; answers that are cut off or not what was asked for
        at once.

        Args:
            body: Of the request.
            check: Turns the text into a value, or raises ``ValueError``.

        Returns:
            The value, and the answer that it comes from.

        Raises:
            EndpointError: The endpoint refuses, cannot be reached, or fails to the last.
            UnusableError: The last answer could not be used.
        """
        spent = Usage()
        problem: PrefheadsError | None = None
        wait = 0.0
        for attempt in range(self.retries + 1):
            if wait:
                self._sleep(wait)
            if self._stopped.is_set():
                raise problem or EndpointError(f"{self._host}: stopped")
            backoff = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1)
            self.usage.add(requests=1)
            try:
                response = self._client.post(self.url, json=body)
            except httpx2.TransportError as error:
                reason = self._hidden(str(error)) or "no answer in time"
                problem = EndpointError(f"{self._host}: {type(error).__name__}: {reason}")
                wait = backoff
                continue
            if response.status_code != 200:
                problem = EndpointError(f"{self._host}: {self._reason(response)}")
                if response.status_code < 500 and response.status_code not in _PASSING:
                    raise problem
                wait = max(backoff, _retry_after(response))
                if wait > PATIENCE:
                    raise EndpointError(f"{problem}; it wants a pause of {wait:.0f} seconds")
                continue
            try:
                text = self._text(response, spent)
                return check(text), Answer(text, spent.prompt_tokens, spent.completion_tokens)
            except ValueError as error:
                problem = UnusableError(f"{self._host}: {_first_problem(error)}")
                wait = 0.0
        assert problem is not None
        raise type(problem)(f"{problem} ({self.retries + 1} tries)")

    def _text(self, response: httpx2.Response, spent: Usage) -> str:
        completion = _Completion.model_validate_json(response.content)
        if completion.usage is not None:
            sent, written = completion.usage.prompt_tokens, completion.usage.completion_tokens
            for usage in (spent, self.usage):
                usage.add(prompt_tokens=sent or 0, completion_tokens=written or 0)
        if not completion.choices:
            raise ValueError("an answer without choices")
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            raise ValueError("the answer was cut off")
        if not choice.message.content:
            raise ValueError("an empty answer, or a refusal")
        return choice.message.content

    @property
    def _host(self) -> str:
        return httpx2.URL(self.url).netloc.decode()

    def _reason(self, response: httpx2.Response) -> str:
        hints = {
            401: "; put a valid key into the variable that --key-env names",
            404: "; look at --base-url and --model",
        }
        told = " ".join(self._hidden(response.text).split())[:300]
        return f"HTTP {response.status_code} {told}{hints.get(response.status_code, '')}"

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that the server wants to be left alone: a number, or a date; 0 if it says none."""
    text = response.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _first_problem(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"an answer that is not as asked: {where or 'JSON'}: {first['msg']}"
    return str(error)
