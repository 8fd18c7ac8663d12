"""A language model as judge: requests, ratings, and the command."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import Chat, Response, completion
from support.judged import METHODS, scored, verdict
from support.saved import Cli

from prefheads.judge.endpoint import Endpoint, EndpointError
from prefheads.judge.llm import ORDERS, parse_verdict, rate, request_body
from prefheads.judge.pairs import Study
from prefheads.judge.results import WINS
from prefheads.judge.store import Answers

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def chat() -> Iterator[Chat]:
    with Chat(scored).listening() as server:
        yield server


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
