"""A service on a tiny model, listening on loopback, and what it should answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2 as httpx
import openai
import torch
from support.models import SHAPE, tiny
from support.saved import CONTEXT, byte_tokenizer

import prefheads as ph
from prefheads.calibration.calibrate import Calibration
from prefheads.cli.listening import listen
from prefheads.data.chat import Turn
from prefheads.data.encoding import Encoded, encode
from prefheads.data.example import Example
from prefheads.heads.weights import HeadWeights
from prefheads.serve.app import make_server, make_service
from prefheads.serve.limits import Limits
from prefheads.serve.service import Service
from prefheads.steering.setting import PLAIN, Setting
from prefheads.users import Clusters, ProfileEncoder

MODEL = "tiny"
TOPICS = ["A stew of beans, onions and garlic.", "The wind at sea, a reef.", "Chess and its rules."]
HOW = Setting("test", "contrast", "head", 1.5)
N_NEW = 10
ASKED = "Write a line."
WORDS = ("tea", "oil", "ink", "rye", "fig", "bay", "cod", "elm")
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": N_NEW}
LIMITS = Limits(
    body_bytes=20_000, item_chars=500, items=8, profiles=20, prompt_chars=2000, max_tokens=64,
    default_tokens=12, rate=1000, burst=1000,
)  # fmt: skip


@cache
def _centroids() -> Any:
    return ProfileEncoder().embed([[{"text": topic}] for topic in TOPICS])


def make_steerer(how: Setting = HOW, task: str | None = None, **sizes: int) -> ph.PreferenceSteerer:
    """A steerer with a random map for each of three topics; always the same."""
    draw = torch.Generator().manual_seed(1)
    maps = [HeadWeights(torch.rand(SHAPE, generator=draw)) for _ in TOPICS]
    chosen = Calibration(
        (PLAIN, how), (0.0, -0.1), (0.0, 0.01), None, (0.0, 0.1), int(not how.plain), 1.0, 1.0,
        3.0, 10, 5,
    )  # fmt: skip
    return ph.PreferenceSteerer(
        model=tiny(vocab_size=259, max_position_embeddings=CONTEXT, **sizes),
        tokenizer=byte_tokenizer(),
        clusters=Clusters(_centroids(), {f"u{i}": i for i in range(len(TOPICS))}),
        maps=maps,
        shared=maps[0],
        calibration=chosen,
        users={"discovery": [], "calibration": [], "test": []},
        task=task,
    )


def encode_for(
    steerer: ph.PreferenceSteerer,
    items: Sequence[dict[str, str]],
    asked: str,
    before: Sequence[Turn] = (),
    templated: bool = True,
) -> Encoded:
    example = Example("x", "x", tuple(items), asked, None, steerer.task)
    return encode(steerer.tokenizer, example, before=before, templated=templated)


def expected(
    steerer: ph.PreferenceSteerer,
    profile: Sequence[dict[str, str]],
    asked: str,
    *,
    items: Sequence[dict[str, str]] | None = None,
    map_of: Sequence[dict[str, str]] | None = None,
    how: Setting = HOW,
    n_new: int = N_NEW,
    **prompt: Any,
) -> str:
    """What stock generation under :func:`prefheads.steer` writes for this user alone.

    ``items`` are those in the prompt, if not all in their order; ``map_of`` is a profile whose map
    to use instead of the user's own.
    """
    encoded = encode_for(steerer, profile if items is None else items, asked, **prompt)
    ids = encoded.prompt_ids[None]
    heads = steerer.heads_for([map_of or profile])[0] if profile else steerer.maps[0]
    gamma = how.gamma if profile else 0.0
    with ph.steer(
        steerer.model, heads, gamma, mode=how.mode, target=how.target,
        suppression=how.suppression, profile_mask=encoded.profile_mask,
    ):  # fmt: skip
        out = steerer.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n_new,
            do_sample=False,
        )
    return steerer.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@dataclass
class Running:
    """A service that listens.

    Attributes:
        url: Up to its ``/v1``.
        key: An API key.
    """

    service: Service
    server: Any
    thread: threading.Thread
    url: str
    key: str

    def openai(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """The official client."""
        options = {"max_retries": 0, "timeout": 60} | options
        return openai.OpenAI(base_url=self.url, api_key=key or self.key, **options)

    def http(self, key: str | None = None) -> httpx.Client:
        """A plain client, with the key."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def put(self, user: str, *texts: str, key: str | None = None) -> list[dict[str, str]]:
        """Keep a profile of these texts; returns its items."""
        items = [{"id": f"{user}-{i}", "text": text} for i, text in enumerate(texts)]
        with self.http(key) as client:
            client.put(f"/profiles/{user}", json={"items": items}).raise_for_status()
        return [{"text": text} for text in texts]


@contextmanager
def running(steerer: ph.PreferenceSteerer, database: str, **options: Any) -> Iterator[Running]:
    """The service in a thread of this process."""
    service = make_service(steerer, database, MODEL, **options)
    server = make_server(service, grace=20)
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        key = service.keys.create("test")[1]
        try:
            yield Running(service, server, thread, url, key)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def until(condition: Any, seconds: float = 20) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not come about"
        time.sleep(0.02)


def ask(client: openai.OpenAI, text: str = ASKED, **options: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(messages=messages, **GREEDY | options)


def text_of(answer: Any) -> str:
    return answer.choices[0].message.content
