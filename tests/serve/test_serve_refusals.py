"""Requests that the service refuses, and how it says so."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from support.served import (
    HOW,
    MODEL,
    ask,
    make_steerer,
    running,
    until,
)

from prefheads.serve.limits import Limits, RateLimit
from prefheads.serve.transformers_engine import BatchLimits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2}, "n is not supported"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
        ({"temperature": 2.5}, "temperature: "),
        ({"temperature": "1"}, "temperature: "),
        ({"top_p": 0}, "top_p: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"max_tokens": 1.5}, "max_tokens: "),
        ({"max_tokens": 65}, "max_tokens: at most 64"),
        ({"gamma": -1}, "gamma: "),
        ({"gamma": 11}, "gamma: at most 10"),
        ({"gamma": 1, "user": None}, "name it in user"),
        ({"mode": "loud"}, "mode: "),
        ({"mode": "off", "gamma": 1}, "contradicts"),
        ({"seed": 2**63}, "seed: "),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"user": "a/b"}, "user: "),
        ({"user": "x" * 129}, "user: "),
        ({"whatever": 1}, "whatever: "),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user", "content": ""}]}, "empty"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "must be the user's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, "NUL"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "content"),
        ({"messages": [{"role": "user", "content": "x" * 2001}]}, "2000 characters"),
        ({"messages": [{"role": "user", "content": "x" * 1100}]}, "longer than the context"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_in_openais_form(run, change, message) -> None:
    run.put("bad", "tea")
    body = {"model": MODEL, "user": "bad", "messages": [{"role": "user", "content": "hi"}]}
    content = json.dumps(body | change)
    with run.http() as client:
        headers = {"Content-Type": "application/json"}
        answer = client.post("/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"] and "\n" not in error["message"]
    assert error["type"] == "invalid_request_error" and set(error) == {
        "message", "type", "param", "code",
    }  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"[" * 9000, b"1" * 5000],
)
def test_bodies_that_are_no_requests(run, content) -> None:
    with run.http() as client:
        headers = {"Content-Type": "application/json"}
        answer = client.post("/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_errors_are_those_the_client_knows(run, client) -> None:
    with pytest.raises(openai.NotFoundError) as found:
        ask(client, user="stranger")
    assert found.value.code == "profile_not_found" and found.value.param == "user"
    with pytest.raises(openai.NotFoundError) as found:
        ask(client, model="gpt")
    assert found.value.code == "model_not_found"
    for wrong in ("nonsense", run.key[:-1], run.key + "x", "phk-00000000-x", "phk-é-x"):
        headers = {"Authorization": f"Bearer {wrong}".encode()}
        answer = httpx.get(f"{run.url}/models", headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        ask(run.openai(key="sk-wrong"))
    assert httpx.get(f"{run.url}/models").status_code == 401
    with run.http() as http:
        for method, path, status in (("GET", "/nothing", 404), ("DELETE", "/models", 405)):
            answer = http.request(method, path)
            assert answer.status_code == status and set(answer.json()) == {"error"}


def test_models(client) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert model.model_extra["steering"] == str(HOW)
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_body_has_a_size(run) -> None:
    message = {"role": "user", "content": "x" * 30_000}
    with run.http() as client:
        answer = client.post("/chat/completions", json={"model": MODEL, "messages": [message]})
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"

        def parts() -> Iterator[bytes]:
            yield b'{"model": "'
            for _ in range(40):
                yield b"x" * 1000

        assert client.post("/chat/completions", content=parts()).status_code == 413
        assert client.get("/models").status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    limits = Limits(body_seconds=0.3)
    with running(make_steerer(), str(tmp_path / "db"), limits=limits) as run:
        port = int(run.url.rsplit(":", 1)[1].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {run.key}"
            line.sendall((head + "\r\nContent-Length: 100\r\n\r\n{").encode())
            assert line.recv(1000).startswith(b"HTTP/1.1 408")


# --- rates


def test_a_bucket_fills_again() -> None:
    now = [0.0]
    limit = RateLimit(2.0, 3, lambda: now[0])
    assert [limit.take("a") for _ in range(3)] == [0, 0, 0]
    assert limit.take("a") == pytest.approx(0.5)
    assert limit.take("b") == 0  # each key has a bucket of its own
    now[0] = 0.4
    assert limit.take("a") == pytest.approx(0.1)
    now[0] = 0.5
    assert limit.take("a") == 0 and limit.take("a") > 0
    now[0] = 1000.0
    assert [limit.take("a") > 0 for _ in range(4)] == [False] * 3 + [True]


def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    limits = Limits(rate=2.0, burst=2)
    with running(make_steerer(), str(tmp_path / "db"), limits=limits) as run:
        other = run.service.keys.create("other")[1]
        client = run.openai()
        client.models.list(), client.models.list()
        with pytest.raises(openai.RateLimitError) as told:
            client.models.list()
        assert told.value.code == "rate_limit_exceeded"
        assert told.value.response.headers["retry-after"] == "1"
        run.openai(key=other).models.list()
        assert run.openai(max_retries=5).models.list()  # the client waits and comes back


def test_a_full_queue_is_told(tmp_path: Path) -> None:
    batches = BatchLimits(rows=1, queue=1)
    with running(make_steerer(), str(tmp_path / "db"), batches=batches) as run:
        answers: list[Any] = []

        def long() -> None:
            answers.append(ask(run.openai(), max_tokens=700))

        threads = [threading.Thread(target=long) for _ in range(2)]
        threads[0].start()
        until(lambda: run.service.engine._running)
        threads[1].start()
        until(lambda: run.service.engine.waiting == 1)
        with pytest.raises(openai.InternalServerError) as told:
            ask(run.openai())
        assert told.value.status_code == 503 and told.value.code == "overloaded"
        assert told.value.response.headers["retry-after"] == "1"
        for thread in threads:
            thread.join()
        assert len(answers) == 2
