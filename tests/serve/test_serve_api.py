"""Answers of the service as the official client gets them from a server that listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from support.served import (
    ASKED,
    GREEDY,
    LIMITS,
    MODEL,
    N_NEW,
    TOPICS,
    ask,
    encode_for,
    expected,
    make_steerer,
    running,
    text_of,
    until,
)

from prefheads.data.chat import Turn
from prefheads.steering.setting import Setting

# --- answers


def test_an_answer_is_steered_with_the_users_own_map(run, client, twin) -> None:
    texts = {}
    for i, topic in enumerate(TOPICS):
        profile = run.put(f"own{i}", topic)
        answer = ask(client, user=f"own{i}")
        texts[i] = text_of(answer)
        assert texts[i] == expected(twin, profile, ASKED)
        assert texts[i] != expected(twin, profile, ASKED, how=Setting())
        how = answer.model_extra["prefheads"]
        assert (how["mode"], how["gamma"], how["items"]) == ("contrast", 1.5, [f"own{i}-0"])
        weights = twin.cluster_weights([profile])[0]
        assert how["clusters"] == pytest.approx(weights.tolist(), abs=1e-6)
        assert int(weights.argmax()) == i
    assert len(set(texts.values())) == 3


def test_the_form_is_openais(run, client) -> None:
    run.put("form", "hello")
    answer = ask(client, user="form")
    assert answer.object == "chat.completion" and answer.model == MODEL
    assert answer.id.startswith("chatcmpl-") and answer._request_id in answer.id
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
    usage = answer.usage
    assert (usage.completion_tokens, usage.total_tokens) == (N_NEW, usage.prompt_tokens + N_NEW)
    assert usage.prompt_tokens == len(
        encode_for(make_steerer(), [{"text": "hello"}], ASKED).prompt_ids
    )


def test_strength_and_mode_of_a_request(run, client, twin) -> None:
    profile = run.put("wish", *TOPICS[:1])
    plain = expected(twin, profile, ASKED, how=Setting())
    for extra in ({"mode": "off"}, {"gamma": 0}, {"mode": "off", "gamma": 0}):
        answer = ask(client, user="wish", extra_body=extra)
        assert text_of(answer) == plain
        assert answer.model_extra["prefheads"]["mode"] == "off"
    how = Setting("test", "amplify", "head", 4.0)
    answer = ask(client, user="wish", extra_body={"mode": "amplify", "gamma": 4})
    assert text_of(answer) == expected(twin, profile, ASKED, how=how) != plain
    how = Setting("test", "contrast", "head", 0.7)
    assert text_of(ask(client, user="wish", extra_body={"gamma": 0.7})) == expected(
        twin, profile, ASKED, how=how
    )


@pytest.mark.parametrize(
    "how",
    [Setting("t", "amplify", "profile", 2.0), Setting("t", "contrast", "profile", 2.0, 0.5)],
    ids=["amplify", "contrast"],
)
def test_the_profile_target(tmp_path: Path, how: Setting) -> None:
    twin = make_steerer(how)
    with running(make_steerer(how), str(tmp_path / "db")) as run:
        profile = run.put("ann", *TOPICS)
        answer = ask(run.openai(), user="ann")
        ordered = [profile[int(name[-1])] for name in answer.model_extra["prefheads"]["items"]]
        assert text_of(answer) == expected(twin, profile, ASKED, items=ordered, how=how)


def test_a_run_whose_calibration_found_nothing_writes_plain_text(tmp_path: Path) -> None:
    twin = make_steerer(Setting())
    with running(make_steerer(Setting()), str(tmp_path / "db")) as run:
        profile, client = run.put("ann", "tea"), run.openai()
        assert text_of(ask(client, user="ann")) == expected(twin, profile, ASKED, how=Setting())
        with pytest.raises(openai.BadRequestError, match="give gamma"):
            ask(client, user="ann", extra_body={"mode": "amplify"})
        by_hand = twin.form.__class__("", "amplify", twin.form.target, 2.0)
        answer = ask(client, user="ann", extra_body={"mode": "amplify", "gamma": 2})
        assert text_of(answer) == expected(twin, profile, ASKED, how=by_hand)


def test_without_a_user_or_items_nothing_is_steered(run, client, twin) -> None:
    assert text_of(ask(client)) == expected(twin, [], ASKED)
    run.put("nothing")
    assert text_of(ask(client, user="nothing")) == expected(twin, [], ASKED)


def test_a_chat_keeps_its_turns(run, client, twin) -> None:
    profile = run.put("chat", TOPICS[1])
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello.", "refusal": None, "tool_calls": None},
        {"role": "user", "content": ASKED},
    ]
    answer = client.chat.completions.create(messages=messages, user="chat", **GREEDY)
    before = [Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello.")]
    assert text_of(answer) == expected(twin, profile, ASKED, before=before)
    encoded = encode_for(twin, profile, ASKED, before)
    start = "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\n"
    assert encoded.text.startswith(start + f'"{TOPICS[1]}"')
    assert twin.tokenizer.decode(encoded.prompt_ids[encoded.profile_mask]) == f'"{TOPICS[1]}"'


def test_a_completion_has_no_template(run, client, twin) -> None:
    profile = run.put("text", TOPICS[0])
    answer = client.completions.create(prompt="Once upon", user="text", **GREEDY)
    assert answer.object == "text_completion" and answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text == expected(twin, profile, "Once upon", templated=False)
    assert "<|user|>" not in encode_for(twin, profile, "Once upon", templated=False).text
    assert client.completions.create(model=MODEL, prompt="x").usage.completion_tokens == 16


def test_the_fitting_items_are_in_the_prompt(run, client, twin) -> None:
    texts = [
        f"note {i} on {w}"
        for i, w in enumerate(["tea", "oil", "ink", "rye", "fig", "bay", "cod", "elm"])
    ]
    profile = run.put("items", *texts)
    answer = ask(client, "fig and rye", user="items")
    names = answer.model_extra["prefheads"]["items"]
    assert set(names[:2]) == {"items-3", "items-4"}
    assert names[2:] == ["items-7", "items-6", "items-5"]  # nothing fits: the latest
    chosen = [profile[int(name[-1])] for name in names]
    assert text_of(answer) == expected(twin, profile, "fig and rye", items=chosen)


# --- streams


def test_a_stream_says_the_same(run, client, twin) -> None:
    profile = run.put("stream", TOPICS[2])
    chunks = list(ask(client, user="stream", stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].model_extra["prefheads"]["mode"] == "contrast"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == expected(twin, profile, ASKED)
    assert len(chunks) > 3
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "length"
    ]
    assert chunks[-1].usage.completion_tokens == N_NEW and chunks[-1].choices == []
    assert len({c.id for c in chunks}) == 1
    pieces = client.completions.create(prompt="Once", user="stream", stream=True, **GREEDY)
    told = "".join(p.choices[0].text for p in pieces)
    assert told == expected(twin, profile, "Once", templated=False)


def test_stop_strings_end_an_answer_and_are_not_part_of_it(run, client) -> None:
    whole = text_of(ask(client, max_tokens=40))
    at = len(whole) // 2
    stop = whole[at : at + 3]
    cut = whole[: whole.find(stop)]
    answer = ask(client, max_tokens=40, stop=stop)
    assert (text_of(answer), answer.choices[0].finish_reason) == (cut, "stop")
    assert answer.usage.completion_tokens < 40
    chunks = list(ask(client, max_tokens=40, stop=["never there", stop], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == cut
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_sampling_is_repeatable_with_a_seed(run, client) -> None:
    def drawn(**options: Any) -> str:
        return text_of(ask(client, **{"temperature": 1.2, "max_tokens": 20} | options))

    assert drawn(seed=5) == drawn(seed=5) != drawn(seed=6)
    assert len({drawn() for _ in range(3)}) == 3
    assert drawn(seed=1, top_p=1e-6) == text_of(ask(client, max_tokens=20))
    assert drawn(seed=1, temperature=1e-4) == text_of(ask(client, max_tokens=20))


def test_who_goes_away_is_not_written_for(tmp_path: Path) -> None:
    with running(make_steerer(), str(tmp_path / "db")) as run:
        engine: Any = run.service.engine
        stream = ask(run.openai(), max_tokens=900, stream=True)
        next(iter(stream))
        (row,) = engine._running
        stream.close()
        until(lambda: not engine._running)
        assert row.given_up and not row.done and row.n_tokens < 900
        with pytest.raises(openai.APITimeoutError):
            ask(run.openai(timeout=httpx.Timeout(60, read=0.4)), max_tokens=900)
        until(lambda: not engine._running)
        told = httpx.get(run.url.removesuffix("/v1") + "/metrics").text
        assert 'route="/v1/chat/completions",status="499"} 1.0' in told
        assert text_of(ask(run.openai()))


def test_an_answer_that_fails_in_the_middle_of_a_stream_says_so(tmp_path: Path) -> None:
    with running(make_steerer(), str(tmp_path / "db")) as run:
        stream = ask(run.openai(), max_tokens=900, stream=True)
        next(iter(stream))
        run.service.engine.close()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        root = run.url.removesuffix("/v1")
        assert httpx.get(f"{root}/health").status_code == 503
        assert httpx.get(f"{root}/ready").status_code == 503


def test_an_answer_of_unsaid_length(run, client) -> None:
    messages = [{"role": "user", "content": ASKED}]
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    assert answer.usage.completion_tokens == LIMITS.default_tokens
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_completion_tokens=3, max_tokens=9
    )
    assert answer.usage.completion_tokens == 3
