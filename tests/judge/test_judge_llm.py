"""A language model as judge, behind a server that misbehaves."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.chat_server import Chat, Response, completion
from support.judged import METHODS, scored, verdict
from support.saved import Cli

from prefheads.errors import DataError, PrefheadsError
from prefheads.judge.endpoint import Endpoint, EndpointError, UnusableError
from prefheads.judge.llm import DIMENSIONS, ORDERS, Ratings, parse_verdict, rate, request_body
from prefheads.judge.pairs import Study
from prefheads.judge.results import WINS, rating_rows
from prefheads.judge.store import Answer, Answers

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


def ask_once(endpoint: Endpoint, body: dict[str, Any] = BODY) -> tuple[str, Answer]:
    async def asked() -> tuple[str, Answer]:
        async with endpoint:
            return await endpoint.ask(body, check)

    return asyncio.run(asked())


def check(text: str) -> str:
    parse_verdict(text)
    return "checked"


# --- the endpoint


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
    found, answer = ask_once(endpoint)
    assert (found, answer.text) == ("checked", verdict(3, 2))
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
    _, answer = ask_once(endpoint)
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


# --- ratings


def test_requests_are_blind_and_ask_for_the_verdict(study: Study) -> None:
    pair = study.pairs[0]
    bodies = [request_body(pair, swapped, "m", "json_schema", 0.0) for swapped in ORDERS]
    for body, texts in zip(bodies, (pair.texts, pair.texts[::-1]), strict=True):
        material = json.loads(body["messages"][1]["content"])
        assert [material["first"], material["second"]] == list(texts)
        assert material["profile"] == [dict(item) for item in pair.profile]
        assert material["input"] == pair.input
        assert not any(word in json.dumps(body) for word in ("cad", "dps", "gold 0"))
        schema = body["response_format"]["json_schema"]["schema"]
        assert schema["additionalProperties"] is False and body["temperature"] == 0
    loose = request_body(pair, False, "m", "json_object", None)
    assert loose["response_format"] == {"type": "json_object"} and "temperature" not in loose
    assert "response_format" not in request_body(pair, False, "m", "text", None)


def test_fenced_verdicts_are_read() -> None:
    assert parse_verdict(f"```json\n{verdict(1, 5)}\n```").second.style == 5


def test_ratings_go_to_the_method_behind_the_text(chat: Chat, study: Study, tmp_path: Path) -> None:
    answers = Answers(tmp_path / "a")
    steps: list[int] = []
    found = rate(study, Endpoint(chat.url), answers, "m", advance=steps.append)
    assert found.pairs == study.differing and len(chat.requests) == 16
    assert steps == list(range(17))
    first = found.scores[0]  # the second method's text is the good one
    assert (first[0] == [[3] * 5, [4] * 5]).all() and (first[1] == [[2] * 5, [5] * 5]).all()
    assert (found.scores[7, 0] == [[5] * 5, [2] * 5]).all()  # and here the first one's
    assert (found.prompt_tokens, found.completion_tokens) == (1600, 160)


def test_a_rerun_asks_nothing_twice(chat: Chat, study: Study, tmp_path: Path) -> None:
    first = rate(study, Endpoint(chat.url), Answers(tmp_path / "a"), "m")
    again = rate(study, Endpoint(chat.url), Answers(tmp_path / "a"), "m")
    assert len(chat.requests) == 16 and (first.scores == again.scores).all()
    assert (again.prompt_tokens, again.completion_tokens) == (1600, 160)
    rate(study, Endpoint(chat.url), Answers(tmp_path / "a"), "other")
    assert len(chat.requests) == 32


def test_what_was_answered_before_a_failure_is_kept(
    chat: Chat, study: Study, tmp_path: Path
) -> None:
    answers = Answers(tmp_path / "a")

    def stops(body: dict[str, Any]) -> str:
        if len(chat.requests) > 5:
            chat.mishaps = [Response("no money", 402)] * 99
        return scored(body)

    chat.good = stops
    with pytest.raises(EndpointError, match="402 no money"):
        rate(study, Endpoint(chat.url), answers, "m", workers=1)
    before = len(chat.requests)
    assert before == 7
    chat.good, chat.mishaps = scored, []
    found = rate(study, Endpoint(chat.url), answers, "m")
    assert len(found.pairs) == 8 and len(chat.requests) == before + 10


def test_pairs_without_a_usable_answer_are_left_out(
    chat: Chat, study: Study, tmp_path: Path
) -> None:
    def refuses(body: dict[str, Any]) -> str:
        asked = json.loads(body["messages"][1]["content"])["input"]
        return "I cannot judge that." if asked == study.pairs[2].input else scored(body)

    chat.good = refuses
    found = rate(study, Endpoint(chat.url, retries=1), Answers(tmp_path / "a"), "m")
    assert [p.id for p in found.pairs] == ["s0", "s1", "s3", "s4", "s5", "s6", "s7"]
    assert list(found.problems) == ["s2"] and "not as asked" in found.problems["s2"]
    assert found.scores.shape == (7, 2, 2, 5)


def test_rows_of_the_table(study: Study) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(1, 6, (8, 2, 2, 5)).astype(float)
    rows = {r.name: r for r in rating_rows(Ratings(study, study.differing, scores, {}, 0, 0))}
    assert list(rows) == [WINS, *DIMENSIONS]
    wins = [0, 0]
    for pair in scores:
        a, b = (pair[:, m, DIMENSIONS.index("preference_alignment")].sum() for m in (0, 1))
        wins[0] += a > b
        wins[1] += b > a
    assert [e.mean for e in rows[WINS].means] == pytest.approx([w / 10 for w in wins])
    for i, name in enumerate(DIMENSIONS):
        a, b = scores[:, :, 0, i], scores[:, :, 1, i]  # (pairs, orders)
        row = rows[name]
        assert [e.mean for e in row.means] == pytest.approx([a.mean(), b.mean()])
        assert row.difference.mean == pytest.approx(b.mean() - a.mean())
        assert row.difference.low <= row.difference.mean <= row.difference.high
        shown_first = np.concatenate([a[:, 0], b[:, 1]]).mean()
        shown_second = np.concatenate([a[:, 1], b[:, 0]]).mean()
        assert row.bias is not None
        assert row.bias.mean == pytest.approx(shown_first - shown_second)


# --- the command


@pytest.fixture
def ask(chat: Chat, judged_run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    methods = ("--methods", ",".join(METHODS), "--key-env", "JUDGE_KEY")
    return (
        "judge",
        "llm",
        "--run",
        judged_run,
        "--base-url",
        chat.url,
        "--model",
        "the-judge",
        *methods,
    )


def test_the_command(cli: Cli, chat: Chat, ask: tuple[object, ...], judged_run: Path) -> None:
    chat.mishaps = [Response(completion("no")), Response(completion("no"))]
    out = (*ask, "--price", "2,10", "--csv", judged_run / "ratings.csv", "--quiet")
    told = cli(*out)
    assert (told.code, told.err) == (0, "") and len(chat.requests) == 18
    for part in ("3.00 [", "4.00 [", "+1.00 [+1.00, +1.00]", "2 pairs with the same text twice"):
        assert part in told.out  # 2.5 and 4.5 in 6 of 8 pairs, the other way round in 2
    assert "18 requests, 1,800 prompt and 180 completion tokens, cost 0.0054" in told.out
    found = json.loads(cli(*out, "--json").out)
    assert len(chat.requests) == 18 and found["this_run"]["requests"] == 0
    assert found["tokens"] == {"prompt": 1800, "completion": 180, "cost": pytest.approx(0.0054)}
    rows = {row["name"]: row for row in found["table"]}
    assert [e["mean"] for e in rows["style"]["means"]] == [3.0, 4.0]
    assert [e["mean"] for e in rows[WINS]["means"]] == pytest.approx([0.2, 0.6])
    lines = list(csv.DictReader((judged_run / "ratings.csv").open()))
    assert len(lines) == 8 * 2 * 2 * 5
    for file in judged_run.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
    assert KEY not in told.out


@pytest.mark.parametrize(
    "more, part",
    [
        (("--base-url", "nowhere"), "--base-url"),
        (("--price", "cheap"), "--price"),
        (("--methods", "cad,dsp"), "no texts of dsp"),
        (("--cache", "no/folder/a"), "no/folder/a"),
        (("--n", "0"), "--n"),
    ],
)
def test_bad_requests_are_told_in_a_line(
    cli: Cli, ask: tuple[object, ...], more: tuple[str, ...], part: str
) -> None:
    result = cli(*ask, *more)
    assert result.code == 2 and result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ") and part in line and KEY not in line


def test_refusals_are_told_in_a_line(cli: Cli, chat: Chat, ask: tuple[object, ...]) -> None:
    chat.mishaps = [Response(f"no key {KEY}", 401)] * 99
    result = cli(*ask, "--quiet")
    assert result.code == 2 and result.err.startswith("error: ") and KEY not in result.err
    assert len(result.err.splitlines()) == 1 and len(chat.requests) <= 8  # at most two a worker
    chat.mishaps, chat.good = [], lambda body: "no"
    result = cli(*ask, "--quiet")
    assert result.code == 2 and "no pair was rated" in result.err


def test_the_key_is_in_no_log(chat: Chat, judged_run: Path) -> None:
    """Even where every library logs everything."""
    code = (
        "import logging, sys; logging.basicConfig(level=1);"
        "from prefheads.cli.main import main; main(sys.argv[1:])"
    )
    options = ["--methods", ",".join(METHODS), "--base-url", chat.url, "--model", "m"]
    done = subprocess.run(
        [sys.executable, "-c", code, "judge", "llm", "--run", str(judged_run), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"OPENAI_API_KEY": KEY},
    )
    assert done.returncode == 0 and KEY not in done.stdout + done.stderr
    assert chat.headers[0]["Authorization"] == f"Bearer {KEY}"
