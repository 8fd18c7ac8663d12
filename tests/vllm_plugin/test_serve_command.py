"""`prefheads serve` on vLLM: what it cannot serve, and answers over HTTP."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from support.processes import make_key, process
from support.served import HOW, TOPICS, expected, make_steerer, until
from support.served_by_vllm import MEMORY, WIDE, children

from prefheads.errors import ModelError
from prefheads.serve.vllm_engine import VllmEngine, obstacle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"how": replace(HOW, target="profile")}, "vLLM cannot steer target profile"),
        ({"how": replace(HOW, schedule="entropy")}, "vLLM cannot steer by entropy"),
        ({"scope": "all"}, "vLLM cannot steer scope all"),
        ({"architecture": "Olmo2ForCausalLM"}, "vLLM cannot steer Olmo2ForCausalLM"),
    ],
)
def test_runs_that_vllm_cannot_serve(change, message, tmp_path) -> None:
    steerer = make_steerer(change.get("how", HOW))
    steerer.model.config.architectures = [change.get("architecture", "LlamaForCausalLM")]
    assert (obstacle(steerer) is None) == (not {"how", "architecture"} & set(change))
    steerer.scope = change.get("scope", "response")
    with pytest.raises(ModelError, match=message) as refusal:
        VllmEngine(steerer, tmp_path)
    assert "use --engine transformers" in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_command_says_what_vllm_cannot_serve(cli, fitted, tmp_path, monkeypatch) -> None:
    steerer = make_steerer(replace(HOW, target="profile"), **WIDE)
    steerer.save(tmp_path / "run")
    where = ("--model", fitted[0], "--run", tmp_path / "run", "--db", tmp_path / "db", "--port", 0)
    asked = cli("serve", *where, "--engine", "vllm")
    assert (asked.code, asked.out) == (2, "")
    (line,) = asked.err.splitlines()
    assert "vLLM cannot steer target profile" in line and "use --engine transformers" in line
    monkeypatch.setattr("prefheads.serve.app.run", lambda service, *_: service.engine.close())
    monkeypatch.setattr("prefheads.serve.observe.log_json", lambda: None)
    auto = cli("serve", *where)
    assert auto.code == 0
    assert "engine: transformers (vLLM cannot steer target profile" in auto.out


# --- over HTTP


def test_two_users_over_http_and_a_server_told_to_stop(cli, fitted, twin, tmp_path) -> None:
    db = tmp_path / "db.sqlite"
    key = make_key(cli, db)
    users = {"ann": TOPICS[0], "bob": TOPICS[1]}
    with process(fitted, db, 0, "--vllm-memory", str(MEMORY)) as (server, url):
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            for user, text in users.items():
                items = {"items": [{"text": text}]}
                http.put(f"/profiles/{user}", json=items).raise_for_status()

        def ask(user: str, n_new: int) -> Any:
            client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)
            return client.chat.completions.create(
                model="tiny", user=user, messages=[{"role": "user", "content": "Say"}],
                temperature=0, max_tokens=n_new, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip

        found: dict[str, str] = {}

        def keep(user: str) -> None:
            chunks = [c.choices[0].delta.content or "" for c in ask(user, 20) if c.choices]
            found[user] = "".join(chunks)

        threads = [threading.Thread(target=keep, args=(user,)) for user in users]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        for user, text in users.items():
            assert found[user] == expected(twin, [{"text": text}], "Say", n_new=20)
        assert found["ann"] != found["bob"]

        stream = ask("ann", 800)
        next(iter(stream))
        for process_id in [server.pid, *children(server.pid)]:  # as a terminal's Ctrl-C does
            os.kill(process_id, signal.SIGINT)
        rest = list(stream)
        assert rest[-2].choices[0].finish_reason in ("stop", "length")
        assert server.wait(60) == 0
    log = Path(f"{db}.log").read_text()
    assert "Traceback" not in log and TOPICS[0] not in log


def test_a_killed_server_leaves_no_process(cli, fitted, tmp_path) -> None:
    db = tmp_path / "db.sqlite"
    make_key(cli, db)
    options = ("--engine", "vllm", "--vllm-memory", str(MEMORY))
    with process(fitted, db, 0, *options) as (server, _):
        left = children(server.pid)
        assert left
        server.kill()
        server.wait()
        until(lambda: not any(Path(f"/proc/{p}").exists() for p in left), 60)
