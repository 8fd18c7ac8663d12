"""Whether a server can be reached is known within seconds."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from prefheads.models import network
from prefheads.models.network import no_hub, unreachable


@pytest.fixture
def refusing() -> Iterator[str]:
    """A server that refuses all requests."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_refuses_is_there(refusing: str) -> None:
    assert unreachable(refusing) == ""


def test_a_closed_port_is_told_at_once() -> None:
    began = time.monotonic()
    assert unreachable("http://127.0.0.1:9/") == "Connection refused"
    assert time.monotonic() - began < network.SECONDS


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        began = time.monotonic()
        assert unreachable(url) == "no answer within 0.3 seconds"
        assert time.monotonic() - began < 3


def test_what_is_no_address_and_no_web_server() -> None:
    assert "unknown url type" in unreachable("nowhere")
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(999)
                connection.sendall(b"SSH-2.0\r\n")

        threading.Thread(target=answer, daemon=True).start()
        assert "SSH-2.0" in unreachable(f"http://127.0.0.1:{other.getsockname()[1]}/")


def test_the_hub_is_asked_for_what_is_no_folder(
    tmp_path: Path, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert no_hub(str(tmp_path)) == ""
    assert no_hub("nobody/none") == "Connection refused"
    monkeypatch.setattr(constants, "ENDPOINT", refusing)
    assert no_hub("nobody/none") == ""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert no_hub("nobody/none") == "HF_HUB_OFFLINE is set"
