"""``/v1/chat/completions`` and ``/v1/completions``: answers whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from prefheads.data.chat import Turn
from prefheads.serve.engine import Piece, Sampling
from prefheads.serve.gate import TOKENS
from prefheads.serve.personal import Prepared, Wish
from prefheads.serve.problems import Problem, problem_of
from prefheads.serve.schema import ChatRequest, CompletionRequest
from prefheads.serve.schema import Request as AnyRequest
from prefheads.serve.service import Service, authenticated

router = APIRouter(prefix="/v1")
T = TypeVar("T")
Key = Annotated[str, Depends(authenticated)]
DEFAULT_COMPLETION_TOKENS = 16  # as OpenAI has it


@dataclass(frozen=True)
class Form:
    """How an answer is written down: the names of the objects, and what ids begin with."""

    whole: str
    chunk: str
    prefix: str

    def choice(self, text: str, finish: str | None) -> dict[str, Any]:
        """The choice of a whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        content = {"message": message} if self is CHAT else {"text": text}
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish}

    def delta(self, text: str, finish: str | None, first: bool) -> dict[str, Any]:
        """The choice of a piece."""
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        content = {"delta": delta} if self is CHAT else {"text": text}
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish}


CHAT = Form("chat.completion", "chat.completion.chunk", "chatcmpl-")
TEXT = Form("text_completion", "text_completion", "cmpl-")


@router.post("/chat/completions")
async def chat(request: Request, body: ChatRequest, key: Key) -> Response:
    """Answer a chat."""
    turns = [message.turn for message in body.messages]
    default = Service.of(request).limits.default_tokens
    tokens = body.max_completion_tokens or body.max_tokens or default
    return await _answer(request, key, body, turns, tokens, CHAT)


@router.post("/completions")
async def completions(request: Request, body: CompletionRequest, key: Key) -> Response:
    """Continue a text, without a chat template."""
    tokens = body.max_tokens or DEFAULT_COMPLETION_TOKENS
    return await _answer(request, key, body, [Turn("user", body.prompt)], tokens, TEXT)


async def _answer(
    request: Request, key: str, body: AnyRequest, turns: list[Turn], tokens: int, form: Form
) -> Response:
    service = Service.of(request)
    service.require_model(body.model)
    _check(service, body, turns, tokens)
    sampling = Sampling(tokens, body.temperature, body.top_p, body.seed, body.stops)
    wish = Wish(turns, form is CHAT, sampling, body.user, body.gamma, body.mode)
    prepared = await run_in_threadpool(service.personaliser.prepare, key, wish)
    answer = _Answer(request, service, body, prepared, form)
    pieces = service.engine.generate(prepared.job)
    if not body.stream:
        return await _unless_gone(request, answer.whole(pieces))
    # The first piece is waited for, so that what goes wrong until then has a status of its own.
    first = await _unless_gone(request, anext(pieces))
    if isinstance(first, Response):
        await pieces.aclose()
        return first
    events = answer.events(first, pieces)
    return StreamingResponse(events, media_type="text/event-stream; charset=utf-8")


def _check(service: Service, body: AnyRequest, turns: list[Turn], tokens: int) -> None:
    limits = service.limits
    if tokens > limits.max_tokens:
        message = f"max_tokens: at most {limits.max_tokens}"
        raise Problem(400, message, "invalid_value", "max_tokens")
    if body.gamma is not None and body.gamma > limits.gamma:
        raise Problem(400, f"gamma: at most {limits.gamma:g}", "invalid_value", "gamma")
    if sum(len(turn.content) for turn in turns) > limits.prompt_chars:
        message = f"the prompt has more than {limits.prompt_chars} characters"
        raise Problem(400, message, "context_length_exceeded")


class _Answer:
    """One answer on its way out."""

    def __init__(
        self, request: Request, service: Service, body: AnyRequest, prepared: Prepared, form: Form
    ) -> None:
        self._service, self._body, self._form = service, body, form
        self._trace = request.state.trace
        job, setting = prepared.job, prepared.job.setting
        self._trace.mode = "off" if setting.plain else setting.mode
        self._trace.prompt_tokens = len(job.prompt.prompt_ids)
        service.metrics.tokens.labels("prompt").inc(self._trace.prompt_tokens)
        service.metrics.steered.labels(self._trace.mode).inc()
        service.metrics.cut.inc(job.prompt.truncated)
        self._began = False
        id = f"{form.prefix}{self._trace.id}"
        self._shared = {"id": id, "created": int(time.time()), "model": service.name}
        self._how = {
            "mode": self._trace.mode, "gamma": setting.gamma,
            "target": None if setting.plain else setting.target, "clusters": list(job.clusters),
            "items": list(prepared.items), "profile_cut": job.prompt.truncated,
        }  # fmt: skip

    async def whole(self, pieces: AsyncGenerator[Piece, None]) -> Response:
        """The answer in one."""
        texts = []
        async with aclosing(pieces):
            async for piece in pieces:
                self._note(piece)
                texts.append(piece.text)
        choice = self._form.choice("".join(texts), piece.finish)
        answer = {"object": self._form.whole, "choices": [choice], "usage": self._usage()}
        return JSONResponse(self._shared | answer | {"prefheads": self._how})

    async def events(
        self, first: Piece, pieces: AsyncGenerator[Piece, None]
    ) -> AsyncIterator[bytes]:
        """The answer piece by piece."""
        options = self._body.stream_options
        wanted = options is not None and options.include_usage
        chunk = self._shared | {"object": self._form.chunk}
        usage: dict[str, Any] = {"usage": None} if wanted else {}
        async with aclosing(pieces):
            self._note(first)
            choice = self._form.delta(first.text, first.finish, True)
            yield _event(chunk | {"choices": [choice], "prefheads": self._how} | usage)
            try:
                async for piece in pieces:
                    self._note(piece)
                    choice = self._form.delta(piece.text, piece.finish, False)
                    yield _event(chunk | {"choices": [choice]} | usage)
            except Exception as error:
                yield _event(problem_of(error).body)
                return
        if wanted:
            yield _event(chunk | {"choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _note(self, piece: Piece) -> None:
        metrics = self._service.metrics
        if not self._began:
            self._began = True
            metrics.first.observe(time.perf_counter() - self._trace.began)
        metrics.tokens.labels("completion").inc(piece.n_tokens - self._trace.completion_tokens)
        self._trace.completion_tokens = piece.n_tokens

    def _usage(self) -> dict[str, int]:
        counts = {name: getattr(self._trace, name) for name in TOKENS}
        return counts | {"total_tokens": sum(counts.values())}


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


async def _unless_gone(request: Request, work: Awaitable[T]) -> T | Response:
    """The result of some work, which is given up when the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return Response(status_code=499)
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)
