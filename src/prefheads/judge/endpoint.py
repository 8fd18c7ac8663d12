"""Chat completions of any OpenAI-compatible endpoint, asked until an answer can be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, omit
from pydantic import BaseModel, ValidationError

from prefheads.errors import DataError, PrefheadsError
from prefheads.judge.store import Answer

_HINTS = {
    401: "; put a valid key into the variable that --key-env names",
    404: "; look at --base-url and --model",
}


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


# The client's own types ask for more than servers send.


class _Message(BaseModel):
    content: str | None = None


class _Candidate(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Tokens(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    choices: list[_Candidate]
    usage: _Tokens | None = None


class Endpoint:
    """An OpenAI-compatible endpoint, open in an ``async with`` block.

    Busy or failing servers and lost connections are tried again after the pause that the server
    wants, or else ever longer ones, as the ``openai`` client does it.

    Args:
        base_url: Up to the version, such as ``http://localhost:8000/v1``.
        key: Sent with every request and kept nowhere; none if empty.
        timeout: Seconds that a request may take to connect, and between parts of its answer.
        retries: Tries after the first one.

    Raises:
        DataError: No such URL, or a key that cannot be one.
    """

    def __init__(
        self, base_url: str, key: str = "", *, timeout: float = 120.0, retries: int = 5
    ) -> None:
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise DataError("the key holds characters that no key has; look at its variable")
        self.retries, self.usage, self._key = retries, Usage(), key
        self._authorization = f"Bearer {key}" if key else omit
        try:
            self._client = AsyncOpenAI(
                base_url=base_url,
                api_key=key or "none",  # the client refuses to be made without one
                max_retries=retries,
                http_client=DefaultAsyncHttpxClient(
                    timeout=timeout, follow_redirects=False, event_hooks={"request": [self._count]}
                ),
            )
            url = self._client.base_url
            usable = url.scheme in ("http", "https") and url.host
        except Exception:  # the error of the client's own HTTP library
            usable = False
        if not usable or url.userinfo or url.query:
            raise DataError(
                "--base-url must be such as http://localhost:8000/v1, without a key in it"
            )
        self.url, self._host = f"{url}chat/completions", url.netloc.decode()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, body: Mapping[str, Any], check: Callable[[str], object]) -> Answer:
        """Ask until ``check`` takes the answer's text.

        Answers that are cut off or not what was asked for are asked for again at once.

        Args:
            body: Of the request.
            check: Raises ``ValueError`` for a text that cannot be used.

        Raises:
            EndpointError: The endpoint refuses, cannot be reached, or fails to the last.
            UnusableError: The last answer could not be used.
        """
        spent, problem = Usage(), ""
        for _ in range(self.retries + 1):
            try:
                content = await self._client.post(
                    "/chat/completions",
                    cast_to=str,
                    body=dict(body),
                    options={"headers": {"Authorization": self._authorization}},
                )
            except (APIConnectionError, APIStatusError) as error:
                raise EndpointError(f"{self._host}: {self._reason(error)}") from None
            try:
                text = self._text(content, spent)
                check(text)
                return Answer(text, spent.prompt_tokens, spent.completion_tokens)
            except ValueError as error:
                problem = _first_problem(error)
        raise UnusableError(f"{self._host}: {problem} ({self.retries + 1} tries)")

    async def _count(self, request: object) -> None:
        self.usage.requests += 1

    def _text(self, content: str, spent: Usage) -> str:
        completion = _Completion.model_validate_json(content)
        tokens = completion.usage or _Tokens()
        for usage in (spent, self.usage):
            usage.prompt_tokens += tokens.prompt_tokens or 0
            usage.completion_tokens += tokens.completion_tokens or 0
        if not completion.choices:
            raise ValueError("an answer without choices")
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            raise ValueError("the answer was cut off")
        if not choice.message.content:
            raise ValueError("an empty answer, or a refusal")
        return choice.message.content

    def _reason(self, error: APIConnectionError | APIStatusError) -> str:
        tries = int(error.request.headers["x-stainless-retry-count"]) + 1
        again = f" ({tries} tries)" if tries > 1 else ""
        if isinstance(error, APIConnectionError):
            cause = error.__cause__ or error
            said = str(cause) or "no answer in time"
            return self._hidden(f"{type(cause).__name__}: {said}{again}")
        code, response = error.status_code, error.response
        if (pause := response.headers.get("Retry-After", "")).isdigit() and not again:
            again = f"; it wants a pause of {pause} seconds"
        told = " ".join(self._hidden(response.text).split())[:300]
        return f"HTTP {code} {told}{_HINTS.get(code, '')}{again}"

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _first_problem(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"an answer that is not as asked: {where or 'JSON'}: {first['msg']}"
    return str(error)
