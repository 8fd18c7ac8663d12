"""The engine on vLLM gives the answers of the engine on transformers."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from support.served import HOW, until
from support.served_by_vllm import MEMORY, children, job

import prefheads as ph
from prefheads.models.loading import load_skeleton
from prefheads.serve.engine import EngineFailure, Job, Overloaded, Piece
from prefheads.serve.transformers_engine import BatchLimits, TransformersEngine
from prefheads.serve.vllm_engine import VllmEngine
from prefheads.steering.setting import PLAIN, Setting

AMPLIFY = Setting("test", "amplify", "head", 3.0)
FAINT = Setting("test", "contrast", "head", 2.5, 0.3)
ROWS, QUEUE = 4, 16


@pytest.fixture(scope="module")
def start(fitted) -> Iterator[Callable[..., VllmEngine]]:
    """Starts engines on a steerer whose model has no weights."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PREFHEADS_MAPS", "PREFHEADS_FORK", "PREFHEADS_CONTRAST"):
            patch.setenv(name, "0")  # put back at the end; the engine sets its own

        def started(**options: Any) -> VllmEngine:
            model, run = fitted
            steerer = ph.PreferenceSteerer.load(run, *load_skeleton(model))
            assert {p.device.type for p in steerer.model.parameters()} == {"meta"}
            return VllmEngine(steerer, run, rows=ROWS, queue=QUEUE, memory=MEMORY, **options)

        yield started


@pytest.fixture(scope="module")
def engine(start) -> Iterator[VllmEngine]:
    engine = start()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """The one event loop of the engine's jobs."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def reference(twin) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(twin, BatchLimits(wait=0.2))
    yield engine
    engine.close()


async def written(engine: Any, job: Job) -> list[Piece]:
    async with aclosing(engine.generate(job)) as pieces:
        return [piece async for piece in pieces]


async def all_of(engine: Any, jobs: list[Job]) -> list[list[Piece] | Exception]:
    return await asyncio.gather(*(written(engine, j) for j in jobs), return_exceptions=True)


def told(pieces: list[Piece] | Exception) -> tuple[str, int, str | None]:
    """An answer's text, number of tokens and end."""
    if isinstance(pieces, Exception):
        raise pieces
    assert all(piece.finish is None for piece in pieces[:-1])
    return "".join(piece.text for piece in pieces), pieces[-1].n_tokens, pieces[-1].finish


def mixed(twin) -> list[Job]:
    hows = [
        (PLAIN, None),
        (HOW, None),
        (AMPLIFY, None),
        (HOW, [0.2, 0.5, 0.3]),
        (FAINT, [0.0, 1.0, 0.0]),
        (AMPLIFY, [0.7, 0.0, 0.3]),
    ]
    asked = ("Say", "Write of the sea, and be brief.")
    lengths = (5, 24, 60)
    return [
        job(twin, i % 3, how, weights, asked[i % 2], max_tokens=lengths[i % 5 % 3])
        for i, (how, weights) in enumerate(hows * 3)
    ]


def test_the_answers_of_transformers(engine, loop, reference, twin) -> None:
    jobs = mixed(twin)
    found = [told(a) for a in loop.run(all_of(engine, jobs))]
    assert found == [told(a) for a in asyncio.run(all_of(reference, jobs))]
    assert {finish for _, _, finish in found} == {"stop", "length"}
    assert len({text for text, _, _ in found}) > 12
    assert engine.waiting == 0 and engine.alive


def test_each_weighting_of_the_clusters_has_its_answer(engine, loop, twin) -> None:
    shares = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.4, 0.2, 0.4]]
    jobs = [job(twin, 0, HOW, weights, max_tokens=12) for weights in shares]
    together = [told(a)[0] for a in loop.run(all_of(engine, jobs))]
    assert together == [told(loop.run(written(engine, j)))[0] for j in jobs]
    assert len(set(together)) == len(shares)


def test_stop_texts(engine, loop, reference, twin) -> None:
    whole, n, _ = told(loop.run(written(engine, job(twin, max_tokens=40))))
    for stop in [(whole[9:12],), (whole[6:7], "no such"), ("no such",), (whole[20:22], whole[5:7])]:
        asked = job(twin, max_tokens=40, stop=stop)
        found = told(loop.run(written(engine, asked)))
        assert found == told(asyncio.run(written(reference, asked)))
        assert (found[2] == "stop") == (stop != ("no such",)) and found[1] <= n
        assert not any(text in found[0] for text in stop)


def test_pieces_come_as_they_are_written(engine, loop, twin) -> None:
    pieces = loop.run(written(engine, job(twin, max_tokens=40)))
    assert len(pieces) > 5
    counts = [piece.n_tokens for piece in pieces]
    assert counts == sorted(set(counts))


def test_sampling(engine, loop, twin) -> None:
    drawn = {"temperature": 1.2, "top_p": 0.9, "max_tokens": 12}
    seeds = [7, 7, 8, -1, -1]
    a, b, c, d, e = loop.run(all_of(engine, [job(twin, seed=s, **drawn) for s in seeds]))
    assert told(a) == told(b) != told(c) and told(d) == told(e)
    free = loop.run(all_of(engine, [job(twin, **drawn) for _ in range(3)]))
    assert len({told(a)[0] for a in free}) > 1


def test_a_job_that_is_given_up_is_aborted(engine, loop, twin, monkeypatch) -> None:
    aborted: list[str] = []
    core = engine._llm.engine_core
    abort = core.abort_requests_async

    async def noted(ids: list[str]) -> None:
        aborted.extend(ids)
        await abort(ids)

    monkeypatch.setattr(core, "abort_requests_async", noted)

    async def leave(asked: Job) -> None:
        async with aclosing(engine.generate(asked)) as pieces:
            await anext(pieces)

    loop.run(leave(job(twin, max_tokens=800)))
    assert len(aborted) == 1 and engine._llm.get_num_unfinished_requests() == 0
    text = told(loop.run(written(engine, job(twin, max_tokens=40))))[0]
    loop.run(written(engine, job(twin, max_tokens=800, stop=(text[5:8],))))
    assert len(aborted) == 2  # a stop text is found here, so vLLM has to be told
    loop.run(written(engine, job(twin, max_tokens=5)))
    assert len(aborted) == 2 and engine._jobs == 0


def test_a_job_that_fails_fails_alone(engine, loop, twin, caplog) -> None:
    good = job(twin, 1, max_tokens=10)
    other = replace(good, clusters=(0.5, 0.5))  # of another number of clusters
    long = job(twin, 1, asked="Say " * 300, max_tokens=10)  # longer than the context
    alone = told(loop.run(written(engine, good)))
    first, second, fine = loop.run(all_of(engine, [other, long, good]))
    for failed in (first, second):
        assert isinstance(failed, EngineFailure) and str(failed) == "the engine failed"
    assert told(fine) == alone and engine.alive
    assert caplog.messages == ["engine failed"] * 2


def test_a_full_queue_refuses(engine, loop, twin) -> None:
    async def crowd() -> list[Any]:
        jobs = [written(engine, job(twin, max_tokens=8)) for _ in range(ROWS + QUEUE + 3)]
        work = asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert engine.waiting == QUEUE
        return await work

    answers = loop.run(crowd())
    assert [isinstance(a, Overloaded) for a in answers] == [False] * (ROWS + QUEUE) + [True] * 3
    assert len({told(a) for a in answers if not isinstance(a, Exception)}) == 1


def test_closing_ends_what_runs(start, twin) -> None:
    engine = start()
    begun = threading.Event()

    async def long() -> list[Piece]:
        pieces = []
        async with aclosing(engine.generate(job(twin, 2, max_tokens=900))) as stream:
            async for piece in stream:
                pieces.append(piece)
                begun.set()
        return pieces

    def close() -> None:
        begun.wait(60)
        engine.close()

    closing = threading.Thread(target=close)
    closing.start()
    before = set(multiprocessing.active_children())
    with asyncio.Runner() as runner:
        with pytest.raises(EngineFailure, match="the server is shutting down"):
            runner.run(long())
        assert not engine.alive
        with pytest.raises(EngineFailure, match="the server is shutting down"):
            runner.run(long())
    closing.join(60)
    assert not closing.is_alive()
    until(lambda: len(multiprocessing.active_children()) < len(before))


def test_when_vllm_dies_the_engine_says_so(start, twin) -> None:
    others = set(children(os.getpid()))
    engine = start()
    try:
        for process_id in set(children(os.getpid())) - others:
            os.kill(process_id, signal.SIGKILL)
        until(lambda: not engine.alive)
        with pytest.raises(EngineFailure, match="the engine failed"):
            asyncio.run(written(engine, job(twin)))
    finally:
        engine.close()
