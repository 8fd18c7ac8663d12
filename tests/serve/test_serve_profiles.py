"""Profiles over REST, and what the operator sees."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from support.served import (
    ASKED,
    N_NEW,
    TOPICS,
    ask,
    expected,
    make_steerer,
    running,
    text_of,
)

# --- profiles


def test_profiles_over_rest(run) -> None:
    with run.http() as http:
        items = [{"id": "a", "text": "one"}, {"text": "two", "title": "T"}]
        made = http.put("/profiles/rest", json={"items": items})
        assert made.status_code == 201
        assert made.json() | {"created": 0} == {
            "object": "profile", "user": "rest", "created": 0, "items": 2,
        }  # fmt: skip
        more = {"items": [{"id": "a", "text": "one"}, {"id": "b", "text": "three"}]}
        added = http.post("/profiles/rest/items", json=more).json()
        assert (added["added"], added["items"]) == (1, 3)
        assert http.post("/profiles/rest/items", json=more).json()["added"] == 0
        clash = http.post("/profiles/rest/items", json={"items": [{"id": "a", "text": "else"}]})
        assert clash.status_code == 409 and clash.json()["error"]["code"] == "item_exists"
        page = http.get("/profiles/rest/items", params={"limit": 2}).json()
        assert [i["text"] for i in page["data"]] == ["one", "two"] and page["has_more"]
        assert page["data"][1]["title"] == "T"
        rest = http.get("/profiles/rest/items", params={"after": page["last"]}).json()
        assert [i["text"] for i in rest["data"]] == ["three"] and not rest["has_more"]
        assert http.delete("/profiles/rest/items/b").status_code == 200
        assert http.delete("/profiles/rest/items/b").status_code == 404
        assert http.get("/profiles/rest").json()["items"] == 2
        assert http.put("/profiles/rest", json={"items": [{"text": "new"}]}).status_code == 200
        left = http.get("/profiles/rest/items").json()["data"]
        assert [i["text"] for i in left] == ["new"]
        http.put("/profiles/another", json={"items": []})
        names = [p["user"] for p in http.get("/profiles").json()["data"]]
        assert "rest" in names and names == sorted(names)
        first = http.get("/profiles", params={"limit": 1}).json()
        assert first["has_more"] and len(first["data"]) == 1
        assert http.delete("/profiles/rest").json()["deleted"]
        for gone in (
            http.get("/profiles/rest"), http.delete("/profiles/rest"),
            http.get("/profiles/rest/items"), http.post("/profiles/rest/items", json=more),
        ):  # fmt: skip
            assert gone.status_code == 404 and gone.json()["error"]["code"] == "profile_not_found"


@pytest.mark.parametrize(
    ("user", "items", "status"),
    [
        ("u", [{"text": ""}], 400),
        ("u", [{"text": " \n"}], 400),
        ("u", [{"id": "x"}], 400),
        ("u", [{"text": 5}], 400),
        ("u", [{"text": "x", "more": ["y"]}], 400),
        ("u", [{"text": "x", "no good": "y"}], 400),
        ("u", [{"text": "x" * 501}], 400),
        ("u", [{"text": "a\x00"}], 400),
        ("u", [{"text": "\udfff"}], 400),
        ("u", [{"text": "x", "id": "a b"}], 400),
        ("u", ["x"], 400),
        ("u", "x", 400),
        ("u", [{"text": "x"}] * 9, 400),
        ("u", [{"text": "x", "id": "a"}, {"text": "y", "id": "a"}], 409),
        ("a b", [{"text": "x"}], 400),
        ("%2e%2e", [{"text": "x"}], 400),
        ("u%00", [{"text": "x"}], 400),
    ],
)
def test_profiles_that_are_refused(run, user, items, status) -> None:
    with run.http() as http:
        content = json.dumps({"items": items})
        headers = {"Content-Type": "application/json"}
        answer = http.put(f"/profiles/{user}", content=content, headers=headers)
        assert answer.status_code == status and set(answer.json()) == {"error"}
        assert "u" not in [p["user"] for p in http.get("/profiles").json()["data"]]


def test_items_of_a_task_have_its_fields(tmp_path: Path) -> None:
    with running(make_steerer(task="LaMP-4"), str(tmp_path / "db")) as run, run.http() as http:
        bare = http.put("/profiles/ann", json={"items": [{"text": "x"}]})
        assert bare.status_code == 400 and "needs title" in bare.json()["error"]["message"]
        texts = {"Sea": "the sea", "Tea": "tea leaves", "Ink": "blue ink", "Rye": "rye bread"}
        items = [{"text": text, "title": title} for title, text in texts.items()]
        http.put("/profiles/ann", json={"items": items}).raise_for_status()
        twin = make_steerer(task="LaMP-4")
        # in the benchmark's form, where the article alone is the query, and in another
        for asked, order in (
            ("The sea title for the article: tea leaves", (1, 3, 2, 0)),
            ("sea ink", (2, 0, 3, 1)),
        ):
            answer = ask(run.openai(), asked, user="ann")
            ordered = [items[i] for i in order]
            assert text_of(answer) == expected(twin, items, asked, items=ordered)


def test_a_key_sees_its_own_users_only(run, client, twin) -> None:
    other = run.service.keys.create("other")[1]
    mine = run.put("shared-name", TOPICS[0])
    theirs = run.put("shared-name", TOPICS[1], key=other)
    run.put("mine-alone", "secret")
    answers = [ask(run.openai(key=k), user="shared-name") for k in (run.key, other)]
    assert text_of(answers[0]) == expected(twin, mine, ASKED)
    assert text_of(answers[1]) == expected(twin, theirs, ASKED)
    with run.http(other) as http:
        assert [p["user"] for p in http.get("/profiles").json()["data"]] == ["shared-name"]
        for path in ("/profiles/mine-alone", "/profiles/mine-alone/items"):
            assert http.get(path).status_code == 404
        assert http.delete("/profiles/mine-alone").status_code == 404
        assert http.post("/profiles/mine-alone/items", json={"items": []}).status_code == 404
        http.delete("/profiles/shared-name").raise_for_status()
    assert text_of(ask(client, user="shared-name")) == text_of(answers[0])
    with pytest.raises(openai.NotFoundError):
        ask(run.openai(key=other), user="mine-alone")


# --- what the operator sees


def test_health_readiness_and_metrics(run, client) -> None:
    root = run.url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"alive": True}
    assert httpx.get(f"{root}/ready").json() == {"ready": True}
    run.put("metrics", "tea")
    before = httpx.get(f"{root}/metrics").text
    ask(client, user="metrics")
    after = httpx.get(f"{root}/metrics").text

    def value(text: str, line: str) -> float:
        found = [row for row in text.splitlines() if row.startswith(line + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    done = 'prefheads_requests_total{method="POST",route="/v1/chat/completions",status="200"}'
    assert value(after, done) == value(before, done) + 1
    tokens = 'prefheads_tokens_total{kind="completion"}'
    assert value(after, tokens) == value(before, tokens) + N_NEW
    assert value(after, "prefheads_batch_rows_count") > value(before, "prefheads_batch_rows_count")
    assert "metrics-0" not in after and 'user="' not in after


def test_request_ids(run) -> None:
    with run.http() as http:
        given = http.get("/models", headers={"X-Request-ID": "abc-123"})
        assert given.headers["x-request-id"] == "abc-123"
        for bad in ("a b", "x" * 65, "a\tb"):
            made = http.get("/models", headers={"X-Request-ID": bad}).headers["x-request-id"]
            assert made != bad and len(made) == 32
        assert http.get("/nothing").headers["x-request-id"]


def test_the_log_holds_no_text_of_anybody(run, client, caplog, capfd) -> None:
    from prefheads.serve.observe import JsonLines

    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("prefheads.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        run.put("secretname", "SECRETITEM")
        answer = text_of(ask(client, "SECRETPROMPT", user="secretname"))
        with pytest.raises(openai.BadRequestError):
            ask(client, "SECRETPROMPT" * 100, user="secretname")
        run.service.engine._steerer.maps.append(None)  # makes the engine fail
        with pytest.raises(openai.InternalServerError, match="the engine failed"):
            ask(client, "SECRETPROMPT", user="secretname")
    finally:
        del run.service.engine._steerer.maps[3:]
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    told = [json.loads(line) for line in lines]
    requests = [line for line in told if line["event"] == "request"]
    assert [(r["route"], r["status"]) for r in requests] == [
        ("/v1/profiles/{user}", 201),
        ("/v1/chat/completions", 200),
        ("/v1/chat/completions", 400),
        ("/v1/chat/completions", 503),
    ]
    assert requests[1]["completion_tokens"] == N_NEW and requests[1]["mode"] == "contrast"
    assert requests[1]["key"] == run.key.split("-")[1] and len(requests[1]["request_id"]) == 32
    failed = [line for line in told if line["event"] == "engine failed"]
    assert len(failed) == 1 and failed[0]["error"] and failed[0]["at"]
    out, err = capfd.readouterr()
    everything = "".join(lines) + out + err + caplog.text.replace("engine failed", "")
    for text in ("secretname", "SECRETITEM", run.key.rsplit("-")[-1]):
        assert text not in "".join(lines) + out + err
    assert "SECRETPROMPT" not in everything and answer not in "".join(lines)
