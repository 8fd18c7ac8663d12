"""The engine by itself: batches, characters, stop strings; users are no concern of each other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing

import pytest
import torch
from support.served import HOW, TOPICS, encode_for, expected, make_steerer

import prefheads as ph
from prefheads.serve.engine import EngineFailure, Job, Overloaded, Piece, Sampling
from prefheads.serve.transformers_engine import BatchLimits, TransformersEngine
from prefheads.steering.setting import PLAIN, Setting

FORMS = [
    Setting("t", "contrast", "head", 1.5),
    Setting("t", "amplify", "head", 3.0),
    Setting("t", "contrast", "profile", 2.0, 0.5),
    Setting("t", "amplify", "profile", 2.0),
    Setting("t", "contrast", "head", 1.0, schedule="entropy", cap=2.0),
]


@pytest.fixture
def make() -> Iterator[Callable[..., TransformersEngine]]:
    engines = []

    def made(steerer=None, on_batch=lambda rows: None, **limits) -> TransformersEngine:
        limits = BatchLimits(**{"wait": 0.3} | limits)
        engines.append(TransformersEngine(steerer or make_steerer(), limits, on_batch))
        return engines[-1]

    yield made
    for engine in engines:
        engine.close()


def job(twin, topic: int = 0, setting: Setting = HOW, asked: str = "Say", **sampling) -> Job:
    profile = [{"text": TOPICS[topic]}]
    weights = () if setting.plain else tuple(twin.cluster_weights([profile])[0].tolist())
    sampling = Sampling(**{"max_tokens": 8} | sampling)
    return Job(encode_for(twin, profile, asked), sampling, setting, weights)


async def written(engine: TransformersEngine, job: Job) -> list[Piece]:
    async with aclosing(engine.generate(job)) as pieces:
        return [piece async for piece in pieces]


def together(engine: TransformersEngine, jobs: list[Job]) -> list[list[Piece] | Exception]:
    async def all_of_them() -> list[list[Piece] | Exception]:
        work = (written(engine, job) for job in jobs)
        return await asyncio.gather(*work, return_exceptions=True)

    return asyncio.run(all_of_them())


def text(pieces: list[Piece] | Exception) -> str:
    if isinstance(pieces, Exception):
        raise pieces
    return "".join(piece.text for piece in pieces)


def entropy_expected(twin, topic: int, setting: Setting) -> str:
    encoded = encode_for(twin, [{"text": TOPICS[topic]}], "Say")
    (heads,) = twin.heads_for([[{"text": TOPICS[topic]}]])
    ids = encoded.prompt_ids[None]
    with ph.steer(
        twin.model, heads, setting.gamma, mode=setting.mode, target=setting.target,
        suppression=setting.suppression, profile_mask=encoded.profile_mask,
        schedule=setting.schedule, cap=setting.cap,
    ):  # fmt: skip
        out = twin.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
    return twin.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_users_of_a_batch_get_what_they_would_get_alone(make, twin, form) -> None:
    sizes: list[int] = []
    engine = make(on_batch=sizes.append)
    answers = together(engine, [job(twin, i, form) for i in range(3)])
    assert [text(a) for a in answers] == [entropy_expected(twin, i, form) for i in range(3)]
    assert len({text(a) for a in answers}) == 3 and sizes == [3]


def test_forms_that_cannot_share_a_batch_do_not(make, twin) -> None:
    sizes: list[int] = []
    engine = make(on_batch=sizes.append)
    settings = [FORMS[0], FORMS[1], Setting("t", "contrast", "head", 0.4), PLAIN, FORMS[1]]
    answers = together(engine, [job(twin, 0, setting) for setting in settings])
    profile = [{"text": TOPICS[0]}]
    for answer, setting in zip(answers, settings, strict=True):
        assert text(answer) == expected(twin, profile, "Say", how=setting, n_new=8)
    assert sizes == [2, 2, 1]


def test_each_row_ends_on_its_own(make, twin) -> None:
    engine = make()
    lengths = [1, 12, 5]
    jobs = [job(twin, i, max_tokens=n) for i, n in enumerate(lengths)]
    answers = together(engine, jobs)
    for i, (answer, n) in enumerate(zip(answers, lengths, strict=True)):
        assert text(answer) == expected(twin, [{"text": TOPICS[i]}], "Say", n_new=n)
        assert (answer[-1].n_tokens, answer[-1].finish) == (n, "length")
        assert all(piece.finish is None for piece in answer[:-1])


def test_an_end_token_ends_an_answer(make, twin) -> None:
    steerer = make_steerer()
    ids = encode_for(twin, [{"text": TOPICS[0]}], "Say").prompt_ids[None]
    with torch.no_grad():
        out = steerer.model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    new = out[0, ids.shape[1] :].tolist()
    end = new[4]
    steerer.model.generation_config.eos_token_id = [end, 1]
    (answer,) = together(make(steerer), [job(twin, setting=PLAIN, max_tokens=30)])
    n = new.index(end)
    assert text(answer) == twin.tokenizer.decode(new[:n])
    assert (answer[-1].n_tokens, answer[-1].finish) == (n + 1, "stop")


def test_limits_of_a_batch(make, twin) -> None:
    sizes: list[int] = []
    engine = make(on_batch=sizes.append, rows=2)
    together(engine, [job(twin, i % 3) for i in range(5)])
    assert sorted(sizes) == [1, 2, 2]
    sizes.clear()
    length = len(job(twin).prompt.prompt_ids) + 20
    engine = make(on_batch=sizes.append, tokens=2 * length)
    together(engine, [job(twin), job(twin), job(twin, asked="Say " * 40)])
    assert sorted(sizes) == [1, 2]  # a job that is too long for any batch goes alone


def test_a_sampled_row_does_not_depend_on_its_batch(make, twin) -> None:
    drawn = {"temperature": 1.3, "top_p": 0.9, "seed": 7, "max_tokens": 12}
    engine = make()
    (alone,) = together(engine, [job(twin, 0, **drawn)])
    greedy, among, other = together(
        engine, [job(twin, 1), job(twin, 0, **drawn), job(twin, 0, **drawn | {"seed": 8})]
    )
    assert text(among) == text(alone) != text(other)
    assert text(greedy) == expected(twin, [{"text": TOPICS[1]}], "Say", n_new=8)


def test_samples_follow_the_models_distribution(make, twin) -> None:
    one = job(twin, setting=PLAIN, max_tokens=1)
    with torch.no_grad():
        logits = twin.model(input_ids=one.prompt.prompt_ids[None]).logits[0, -1]
    for top_p in (1.0, 0.6):
        probabilities = (logits / 0.8).softmax(-1)
        ordered, order = probabilities.sort(descending=True)
        kept = order[: int((ordered.cumsum(-1) < top_p).sum()) + 1]
        wanted = torch.zeros_like(probabilities)
        wanted[kept] = probabilities[kept] / probabilities[kept].sum()
        from prefheads.serve.transformers_engine import _Row

        async def draw(top_p: float = top_p) -> torch.Tensor:
            sampling = Sampling(1, 0.8, top_p, 3)
            row = _Row(Job(one.prompt, sampling), twin.tokenizer, set())
            tokens = torch.tensor([row.choose(logits) for _ in range(4000)])
            return tokens.bincount(minlength=len(logits)) / len(tokens)

        found = asyncio.run(draw())
        assert (found - wanted).abs().sum() / 2 < 0.06  # total variation
        assert not found[wanted == 0].any()


def test_a_users_broken_numbers_are_no_concern_of_others(make, twin) -> None:
    steerer = make_steerer(FORMS[1])
    steerer.maps[0] = steerer.maps[0].__class__(torch.ones_like(steerer.maps[0].values))
    engine = make(steerer)
    broken = Job(
        job(twin).prompt, Sampling(8), Setting("t", "amplify", "head", 1e38), (1.0, 0.0, 0.0)
    )
    failed, fine = together(engine, [broken, job(twin, 1, FORMS[1])])
    assert isinstance(failed, EngineFailure) and "not finite" in str(failed)
    assert text(fine) == expected(twin, [{"text": TOPICS[1]}], "Say", how=FORMS[1], n_new=8)


def test_a_batch_too_large_for_memory_goes_in_halves(make, twin, monkeypatch) -> None:
    from prefheads.serve import transformers_engine

    real, tried = transformers_engine.complete, []

    def complete(model, tokenizer, batch, **options):
        tried.append(len(batch.prompt_ids))
        if len(batch.prompt_ids) > 2:
            raise torch.OutOfMemoryError("full")
        return real(model, tokenizer, batch, **options)

    monkeypatch.setattr(transformers_engine, "complete", complete)
    answers = together(make(), [job(twin, i % 3) for i in range(5)])
    for i, answer in enumerate(answers):
        assert text(answer) == expected(twin, [{"text": TOPICS[i % 3]}], "Say", n_new=8)
    assert tried == [5, 2, 3, 1, 2]

    def never(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(transformers_engine, "complete", never)
    (failed,) = together(make(), [job(twin)])
    assert isinstance(failed, EngineFailure) and "memory" in str(failed)


def test_a_failure_ends_its_batch_and_nothing_else(make, twin, monkeypatch) -> None:
    engine = make()
    bad = Job(job(twin).prompt, Sampling(8), HOW, (0.5, 0.5))  # of another number of clusters
    (failed,) = together(engine, [bad])
    assert isinstance(failed, EngineFailure) and str(failed) == "the engine failed"
    assert engine.alive
    assert text(together(engine, [job(twin)])[0])


def test_a_job_that_is_given_up_stops(make, twin) -> None:
    engine = make(wait=0.0)

    async def leave() -> int:
        async with aclosing(engine.generate(job(twin, max_tokens=800))) as pieces:
            await anext(pieces)
            (row,) = engine._running
        while engine._running:  # the loop is open: only being told stops it
            await asyncio.sleep(0.01)
        return row.n_tokens

    assert asyncio.run(leave()) < 800
    assert text(together(engine, [job(twin)])[0])


def test_a_full_queue_refuses(make, twin) -> None:
    engine = make(queue=2, rows=1, wait=0.0)
    answers = together(engine, [job(twin, max_tokens=60) for _ in range(6)])
    refused = [a for a in answers if isinstance(a, Overloaded)]
    assert 2 <= len(refused) <= 4
    assert all(text(a) for a in answers if not isinstance(a, Exception))


def test_closing_ends_what_runs_and_what_waits(make, twin) -> None:
    engine = make(rows=1, wait=0.0)
    threading.Timer(0.5, engine.close).start()
    answers = together(engine, [job(twin, max_tokens=900) for _ in range(3)])
    assert any(isinstance(a, EngineFailure) for a in answers)
    assert not engine.alive
    (late,) = together(engine, [job(twin)])
    assert isinstance(late, EngineFailure)
