"""Many users at once, a server that is killed, and one that is told to stop."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from support.processes import make_key, process
from support.served import HOW, MODEL, TOPICS, expected, make_steerer, running, until

from prefheads.serve.limits import Limits
from prefheads.serve.transformers_engine import BatchLimits, TransformersEngine
from prefheads.steering.setting import Setting

N_USERS, ROUNDS, N_NEW = 100, 3, 6
WAYS: list[dict[str, Any]] = [
    {},
    {"gamma": 0.8},
    {"mode": "amplify", "gamma": 3.0},
    {"mode": "off"},
]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a run as folders."""
    folder, steerer = tmp_path_factory.mktemp("fitted"), make_steerer()
    steerer.model.save_pretrained(folder / MODEL)
    steerer.tokenizer.save_pretrained(folder / MODEL)
    steerer.save(folder / "run")
    return folder / MODEL, folder / "run"


def setting_of(way: dict[str, Any]) -> Setting:
    if way.get("mode") == "off":
        return Setting()
    return Setting("t", way.get("mode", HOW.mode), HOW.target, way.get("gamma", HOW.gamma))


def people() -> dict[str, str]:
    """A text of each user; of two things in different shares, so that no two maps are alike."""
    words = [topic.strip(".").split() for topic in TOPICS]
    found = {}
    for i in range(N_USERS):
        draw = random.Random(i)
        mixed = [draw.choice(words[draw.choice([i % 3, i // 3 % 3])]) for _ in range(6)]
        found[f"user-{i}"] = f"{' '.join(mixed)} {i}."
    return found


def asked(user: str) -> str:
    return f"Hi from {user}"


async def answer(
    client: openai.AsyncOpenAI, user: str, way: dict[str, Any], stream: bool, n_new: int = N_NEW
) -> str:
    options: dict[str, Any] = {
        "model": MODEL, "messages": [{"role": "user", "content": asked(user)}], "user": user,
        "temperature": 0, "max_tokens": n_new, "extra_body": way,
    }  # fmt: skip
    if not stream:
        whole = await client.chat.completions.create(**options)
        return whole.choices[0].message.content or ""
    pieces = await client.chat.completions.create(**options, stream=True)
    return "".join([p.choices[0].delta.content or "" async for p in pieces])


def test_a_hundred_users_get_their_own_answers(tmp_path: Path) -> None:
    twin, texts = make_steerer(), people()
    ways = {
        (user, turn): (number + turn) % len(WAYS)
        for number, user in enumerate(texts)
        for turn in range(ROUNDS)
    }
    wanted = {
        (user, way): expected(
            twin, [{"text": texts[user]}], asked(user), how=setting_of(WAYS[way]), n_new=N_NEW
        )
        for (user, _), way in ways.items()
    }
    names = list(texts)
    of_others = [
        expected(
            twin, [{"text": texts[user]}], asked(user), map_of=[{"text": texts[other]}], n_new=N_NEW
        )
        for user, other in pairwise(names[:31])
    ]  # what a mixed-up map would make of the very same prompt
    own = [wanted.get((user, 0)) for user in names[:30]]
    known = [pair for pair in zip(own, of_others, strict=True) if pair[0] is not None]
    assert len(known) > 20 and sum(a == b for a, b in known) < len(known) / 3

    found: dict[tuple[str, int], str] = {}
    seconds: list[float] = []

    async def everybody(url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            openai.AsyncOpenAI(base_url=url, api_key=key, timeout=300, max_retries=0) as client,
            httpx.AsyncClient(base_url=url, headers=headers, timeout=300) as http,
        ):

            async def one(number: int, user: str) -> None:
                items = {"items": [{"id": "1", "text": texts[user]}]}
                (await http.put(f"/profiles/{user}", json=items)).raise_for_status()
                for turn in range(ROUNDS):
                    way, stream = WAYS[ways[user, turn]], (number + turn) % 3 == 0
                    began = time.monotonic()
                    found[user, turn] = await answer(client, user, way, stream)
                    seconds.append(time.monotonic() - began)

            await asyncio.gather(*(one(i, user) for i, user in enumerate(texts)))

    limits, batches = Limits(rate=1e6, burst=10**6), BatchLimits(queue=10**4)
    with running(make_steerer(), str(tmp_path / "db"), limits=limits, batches=batches) as run:
        asyncio.run(everybody(run.url, run.key))
        told = httpx.get(run.url.removesuffix("/v1") + "/metrics").text
    assert len(found) == N_USERS * ROUNDS
    assert not {k: v for k, v in found.items() if v != wanted[k[0], ways[k]]}
    rows, count = (
        float(re.search(rf"^prefheads_batch_rows_{name} (\S+)", told, re.M)[1])
        for name in ("sum", "count")
    )
    assert rows == N_USERS * ROUNDS and rows / count > 3  # they did share batches
    seconds.sort()
    p50, p99 = (seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99))
    print(f"{len(seconds)} answers: p50 {p50:.2f} s, p99 {p99:.2f} s, {rows / count:.1f} a batch")


# --- a process of its own


def test_a_killed_server_loses_no_profile_and_clients_get_their_answers(
    cli, fitted, tmp_path: Path
) -> None:
    twin, db = make_steerer(), tmp_path / "db.sqlite"
    texts = dict(list(people().items())[:12])
    key = make_key(cli, db)
    kept: list[str] = []
    found: dict[tuple[str, int], str] = {}
    first_done = threading.Event()

    async def clients(url: str) -> None:
        options = {"base_url": url, "api_key": key, "timeout": 120, "max_retries": 60}
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            openai.AsyncOpenAI(**options) as client,
            httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as http,
        ):

            async def one(number: int, user: str) -> None:
                await asyncio.sleep(0.15 * number)
                items = {"items": [{"id": "1", "text": texts[user]}]}
                while True:  # as a client does that wants its profile kept
                    try:
                        (await http.put(f"/profiles/{user}", json=items)).raise_for_status()
                        break
                    except httpx.TransportError:
                        await asyncio.sleep(0.3)
                kept.append(user)
                for turn in range(6):
                    found[user, turn] = await answer(client, user, {}, False, 40)
                    first_done.set()

            await asyncio.gather(*(one(i, user) for i, user in enumerate(texts)))

    with process(fitted, db) as (server, url):
        port = int(url.split(":")[2].split("/")[0])
        thread = threading.Thread(target=lambda: asyncio.run(clients(url)), daemon=True)
        thread.start()
        assert first_done.wait(60)
        server.send_signal(signal.SIGKILL)
        server.wait()
        kept_before, found_before = list(kept), len(found)
    assert 0 < found_before < 6 * len(texts)
    with process(fitted, db, port) as (_, url):
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as http:
            there = {p["user"] for p in http.get("/profiles").json()["data"]}
            assert set(kept_before) <= there
            for user in kept_before:
                (item,) = http.get(f"/profiles/{user}/items").json()["data"]
                assert item["text"] == texts[user]
        thread.join(240)
        assert not thread.is_alive()
    assert set(kept) == set(texts) and len(found) == 6 * len(texts)
    for user, text in texts.items():
        wanted = expected(twin, [{"text": text}], asked(user), n_new=40)
        assert {found[user, turn] for turn in range(6)} == {wanted}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_told_to_stop_finishes_its_streams(cli, fitted, tmp_path: Path, number) -> None:
    db = tmp_path / "db.sqlite"
    key = make_key(cli, db)
    with process(fitted, db) as (server, url):
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=900,
            stream=True, stream_options={"include_usage": True},
        )  # fmt: skip
        next(iter(stream))
        server.send_signal(number)

        def refused() -> bool:
            try:
                httpx.get(url + "/models")
            except httpx.TransportError:
                return True
            return False

        until(refused)
        assert server.poll() is None
        rest = list(stream)
        assert rest[-1].usage.completion_tokens == 900
        assert rest[-2].choices[0].finish_reason == "length"
        assert server.wait(30) == 0
    log = Path(f"{db}.log").read_text().splitlines()
    assert [line for line in log if "Traceback" in line] == []
    assert '"event": "request"' in log[-1] and '"completion_tokens": 900' in log[-1]


# --- the command line


def test_keys_on_the_command_line(cli, tmp_path: Path) -> None:
    db = tmp_path / "db.sqlite"
    text = make_key(cli, db)
    id = text.split("-")[1]
    shown = cli("keys", "list", "--db", db)
    assert shown.code == 0 and id in shown.out and text.split("-", 2)[2] not in shown.out
    renewed = cli("keys", "rotate", id, "--db", db).out.strip()
    assert renewed.split("-")[1] == id and renewed != text
    assert cli("keys", "revoke", id, "--db", db, "--purge").code == 0
    assert cli("keys", "list", "--db", db, "--json").out.count('"revoked": null') == 0
    again = cli("keys", "rotate", id, "--db", db)
    assert (again.code, again.out) == (2, "") and "no key" in again.err


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--run", "nowhere"), "holds no fitted steerer"),
        (("--db", "mysql://x/y"), "mysql is not supported"),
        (("--db", "no/such/folder"), "cannot be made"),
        (("--port", "1", "--host", "203.0.113.1"), "203.0.113.1:1: "),
        (("--model", "nowhere/at/all"), "no such model folder"),
        (("--engine", "vllm"), "vLLM is not installed here; use --engine transformers"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(cli, fitted, tmp_path, options, part) -> None:
    where = {
        "--model": fitted[0], "--run": fitted[1], "--db": tmp_path / "db", "--port": 0,
    } | dict(zip(options[::2], options[1::2], strict=True))  # fmt: skip
    result = cli("serve", *(word for pair in where.items() for word in pair))
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert line.startswith("error: ") and part in line


@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_without_vllm_transformers_writes(cli, fitted, tmp_path, monkeypatch, engine) -> None:
    kinds = []

    def run(service: Any, *_: Any) -> None:
        kinds.append(type(service.engine))
        service.engine.close()

    monkeypatch.setattr("prefheads.serve.app.run", run)
    monkeypatch.setattr("prefheads.serve.observe.log_json", lambda: None)
    model, folder = fitted
    where = ("--model", model, "--run", folder, "--db", tmp_path / "db", "--port", 0)
    result = cli("serve", *where, "--engine", engine)
    why = {"auto": "vLLM is not installed", "transformers": "as asked"}[engine]
    assert result.code == 0 and kinds == [TransformersEngine]
    assert result.out.splitlines()[0] == f"{MODEL}: {HOW}; engine: transformers ({why})"
