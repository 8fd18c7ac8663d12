"""Chat completions of a server that misbehaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from support.chat_server import Chat, Response, completion
from support.judged import scored, verdict

from prefheads.errors import DataError, PrefheadsError
from prefheads.judge.endpoint import Endpoint, EndpointError, UnusableError
from prefheads.judge.llm import parse_verdict
from prefheads.judge.store import Answer

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def chat() -> Iterator[Chat]:
    with Chat(scored).listening() as server:
        yield server


BODY = {"messages": [{}, {"content": '{"first":"","second":""}'}]}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's pauses, noted and not made."""
    noted: list[float] = []

    async def note(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr("openai._base_client.anyio.sleep", note)
    return noted


def ask_once(endpoint: Endpoint, body: dict[str, Any] = BODY) -> Answer:
    async def asked() -> Answer:
        async with endpoint:
            return await endpoint.ask(body, parse_verdict)

    return asyncio.run(asked())


@pytest.mark.parametrize(
    "mishap, waits",
    [
        (Response("slow down", 429), True),
        (Response("oops", 500), True),
        (Response("oops", 503), True),
        (Response(completion(verdict(1, 1)), cut=True), True),  # the connection is lost
        (Response(completion(verdict(1, 1)), delay=1.5), True),
        (Response("<html>no JSON"), False),
        (Response("{}"), False),
        (Response(completion(None)), False),
        (Response(completion("I rather like both.")), False),
        (Response(completion('{"first": {"relevance": 5')), False),
        (Response(completion(verdict(6, 1))), False),
        (Response(completion(verdict(1, 1)[:-1] + ', "third": 1}')), False),
        (Response(completion(verdict(1, 1), finish="length")), False),
        (Response(json.dumps({"choices": []})), False),
    ],
)
def test_what_passes_is_tried_again(
    chat: Chat, pauses: list[float], mishap: Response, waits: bool
) -> None:
    chat.mishaps = [mishap]
    endpoint = Endpoint(chat.url, KEY, timeout=0.5)
    assert ask_once(endpoint).text == verdict(3, 2)
    assert len(chat.requests) == endpoint.usage.requests == 2
    assert len(pauses) == waits
    assert chat.headers[1]["Authorization"] == f"Bearer {KEY}"


def test_pauses_grow_and_honour_the_server(chat: Chat, pauses: list[float]) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    chat.mishaps = [
        Response(status=500),
        Response(status=500),
        Response(status=500),
        Response(status=429, headers={"Retry-After": "33"}),
        Response(status=503, headers={"Retry-After": date}),
    ]
    ask_once(Endpoint(chat.url, KEY))
    for pause, most in zip(pauses, (0.5, 1, 2), strict=False):
        assert most / 2 <= pause <= most
    assert pauses[3] == 33 and 95 < pauses[4] <= 100


def test_a_pause_is_really_made(chat: Chat) -> None:
    chat.mishaps = [Response(status=429, headers={"Retry-After": "1"})]
    ask_once(Endpoint(chat.url))
    assert chat.times[1] - chat.times[0] >= 1
    assert "Authorization" not in chat.headers[0]


def test_tokens_of_unusable_answers_are_counted(chat: Chat, pauses: list[float]) -> None:
    chat.mishaps = [Response(completion("no", sent=7, written=3)), Response(status=500)]
    endpoint = Endpoint(chat.url)
    answer = ask_once(endpoint)
    assert (answer.prompt_tokens, answer.completion_tokens) == (107, 13)
    usage = endpoint.usage
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (3, 107, 13)


@pytest.mark.parametrize(
    "mishap, kind, part, tries",
    [
        (Response(f"bad key {KEY}", 401), EndpointError, "401 bad key [key]; put a valid key", 1),
        (Response("no\nmodel", 404), EndpointError, "404 no model; look at", 1),
        (Response("no schema", 400), EndpointError, "400 no schema", 1),
        (Response("", 302, {"Location": "http://example.org"}), EndpointError, "302", 1),
        (Response("", 429, {"Retry-After": "9999"}), EndpointError, "pause of 9999 seconds", 1),
        (Response("oops", 500), EndpointError, "500 oops (3 tries)", 3),
        (Response("{}", cut=True), EndpointError, "(3 tries)", 3),
        (Response(completion("no")), UnusableError, "not as asked: JSON", 3),
        (Response(completion("", finish="length")), UnusableError, "cut off (3 tries)", 3),
    ],
)
def test_what_stays_is_told_in_a_line(
    chat: Chat,
    pauses: list[float],
    mishap: Response,
    kind: type[PrefheadsError],
    part: str,
    tries: int,
) -> None:
    chat.mishaps = [mishap] * 9
    with pytest.raises(kind) as error:
        ask_once(Endpoint(chat.url, KEY, retries=2), {})
    assert part in str(error.value) and "\n" not in str(error.value)
    assert KEY not in str(error.value)
    assert len(chat.requests) == tries


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://a/v1",
        "http://",
        "http://a:port/v1",
        "http://me:key@a/v1",
        "http://a/v1?key=1",
    ],
)
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(DataError, match="--base-url"):
        Endpoint(url)


@pytest.mark.parametrize("key", ["a b", "a\nb", "schlüssel"])
def test_keys_that_cannot_be_are_not_shown(key: str) -> None:
    with pytest.raises(DataError) as error:
        Endpoint("http://localhost/v1", key)
    assert key not in str(error.value)
