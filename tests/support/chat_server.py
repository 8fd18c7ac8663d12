"""A server that speaks the chat completions protocol, and misbehaves as told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Chat", dict[str, Any]], "Response"]


@dataclass
class Response:
    """What goes over the line; ``cut`` promises more bytes than come, ``delay`` is in seconds."""

    body: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    delay: float = 0


def completion(text: str | None, finish: str = "stop", sent: int = 100, written: int = 10) -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": sent, "completion_tokens": written}
    return json.dumps({"choices": [choice | {"finish_reason": finish}], "usage": usage})


@dataclass
class Chat:
    """The server's side: what it was asked, and what it does about it.

    Attributes:
        good: Its answer to a request when it behaves.
        mishaps: What it does first instead, one a request.
        requests: Bodies of all requests.
        headers: Their headers.
        times: When they came.
    """

    good: Callable[[dict[str, Any]], str]
    mishaps: list[Response] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def listening(self) -> Iterator[Chat]:
        """Serve until the block ends."""
        chat, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    chat.requests.append(body)
                    chat.headers.append({k.title(): v for k, v in self.headers.items()})
                    chat.times.append(time.monotonic())
                    response = chat.mishaps.pop(0) if chat.mishaps else None
                if self.path != "/v1/chat/completions":
                    response = Response("no such page", 404)
                response = response or Response(completion(chat.good(body)))
                time.sleep(response.delay)
                data = response.body.encode()
                try:
                    self.send_response(response.status)
                    for name, value in response.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data) + 50 * response.cut))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client did not wait

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
