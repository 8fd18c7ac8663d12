"""Downloads, from a server of this machine that also cuts, lies, stalls and refuses."""

import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.commands import assert_one_error

from prefheads.cli.main import run
from prefheads.data.example import load_examples
from prefheads.errors import DataError
from prefheads.tasks.download import download

ITEM = {"id": "p", "text": "sun", "title": "t", "description": "sun", "tag": "action"}
QUESTIONS = [
    {"id": str(i), "input": f"description: article: sun {i}", "profile": [ITEM] * 3}
    for i in range(400)
]
GOLDS = [{"id": str(i), "output": f"out {i}"} for i in range(400)]


class Handler(BaseHTTPRequestHandler):
    """Serves ``files``; ``tricks`` says what goes wrong with the next requests of a path."""

    files: dict[str, bytes]
    tricks: dict[str, list[str]]
    log: list[tuple[str, str | None]]

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.log.append((self.path, wanted))
        body = self.files.get(self.path)
        pending = self.tricks.get(self.path, [])
        trick = pending.pop(0) if pending else ""
        if body is None:
            self.send_error(404)
            return
        if trick == "busy":
            self.send_error(503)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if trick == "no ranges":
            start = 0
        total = len(body) + (1000 if trick == "wrong length" else 0)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if wanted and trick != "no ranges":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = start + (len(body) - start) // 2 if trick == "cut" else len(body)
        self.wfile.write(body[start:end])
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """An address, and the handler class that holds what is served under it."""
    handler = type("Served", (Handler,), {"files": {}, "tricks": {}, "log": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/lamp/", handler
    running.shutdown()
    thread.join()
    running.server_close()


def serve(handler, folder="LaMP_4", split="dev", task="LaMP_4", golds=GOLDS, questions=QUESTIONS):
    content = {"questions": questions, "outputs": {"task": task, "golds": golds}}
    for name, value in content.items():
        path = f"/lamp/{folder}/{split}/{split}_{name}.json"
        handler.files[path] = value if isinstance(value, bytes) else json.dumps(value).encode()


QUESTIONS_AT = "/lamp/LaMP_4/dev/dev_questions.json"


def fetch(url, out, tasks=("LaMP-4",), splits=("dev",), **options):
    options = {"retries": 2, "wait": 0.0, "progress": False} | options
    return download(tasks, splits, out, base_url=url, **options)


def ranges(handler, path=QUESTIONS_AT):
    return [wanted for requested, wanted in handler.log if requested == path]


def test_a_pair_is_fetched_and_loads(server, tmp_path):
    url, handler = server
    serve(handler)
    files = fetch(url, tmp_path)
    assert [str(f.relative_to(tmp_path)) for f in files] == [
        "LaMP_4/dev/dev_questions.json",
        "LaMP_4/dev/dev_outputs.json",
    ]
    assert len(load_examples(tmp_path / "LaMP_4" / "dev")) == 400
    assert fetch(url, tmp_path) == files and len(handler.log) == 2  # not fetched again
    assert not list(tmp_path.rglob("*.part"))


def test_places_on_the_server_and_here(server, tmp_path):
    url, handler = server
    for folder, task in (("LaMP_2/new", "LaMP_2"), ("time/LaMP_4", "LaMP_4")):
        serve(handler, folder, task=task)
    serve(handler, split="test")
    fetch(url, tmp_path, ["lamp_2"])
    fetch(url, tmp_path, ["LaMP-4"], setting="time")
    (test,) = fetch(url, tmp_path, ["LaMP-4"], ["test"])
    assert {str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("*.json")} == {
        "LaMP_2/dev",
        "time/LaMP_4/dev",
        "LaMP_4/test",
    }
    assert load_examples(test, require_output=False)[0].task == "LaMP-4"


def test_cut_connections_are_resumed(server, tmp_path):
    url, handler = server
    serve(handler)
    handler.tricks[QUESTIONS_AT] = ["cut", "busy", "cut"]
    fetch(url, tmp_path)
    whole = handler.files[QUESTIONS_AT]
    half = len(whole) // 2
    second = half + (len(whole) - half) // 2
    assert ranges(handler) == [None, f"bytes={half}-", f"bytes={half}-", f"bytes={second}-"]
    assert (tmp_path / "LaMP_4/dev/dev_questions.json").read_bytes() == whole


def test_an_earlier_run_is_resumed(server, tmp_path):
    url, handler = server
    serve(handler)
    handler.tricks[QUESTIONS_AT] = ["cut", "busy"]
    with pytest.raises(DataError, match=r"503.*run the same command again, which resumes"):
        fetch(url, tmp_path, retries=0)
    fetch(url, tmp_path)
    assert ranges(handler)[-1] == f"bytes={len(handler.files[QUESTIONS_AT]) // 2}-"
    assert len(load_examples(tmp_path / "LaMP_4" / "dev")) == 400


def part(tmp_path, content):
    path = tmp_path / "LaMP_4" / "dev" / "dev_questions.json.part"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    url, handler = server
    serve(handler)
    part(tmp_path, handler.files[QUESTIONS_AT][:100])
    handler.tricks[QUESTIONS_AT] = ["no ranges"]
    assert fetch(url, tmp_path)[0].read_bytes() == handler.files[QUESTIONS_AT]


@pytest.mark.parametrize("surplus", [b"", b"more than there is"])
def test_a_part_that_is_complete_or_longer(server, tmp_path, surplus):
    url, handler = server
    serve(handler)
    part(tmp_path, handler.files[QUESTIONS_AT] + surplus)
    assert fetch(url, tmp_path)[0].read_bytes() == handler.files[QUESTIONS_AT]
    assert len(ranges(handler)) == (2 if surplus else 1)


def test_less_than_announced_is_never_complete(server, tmp_path):
    url, handler = server
    serve(handler)
    handler.tricks[QUESTIONS_AT] = ["wrong length"] * 9
    with pytest.raises(DataError, match=r"\(the connection ended early; \d+ bytes so far\)"):
        fetch(url, tmp_path)
    assert len(ranges(handler)) == 1 + 3  # a failure without a byte more, and two retries
    assert not (tmp_path / "LaMP_4/dev/dev_questions.json").exists()


def test_missing_file(server, tmp_path):
    url, _ = server
    with pytest.raises(DataError, match=r"train_questions\.json: the server says 404 Not Found"):
        fetch(url, tmp_path, splits=["train"])


@pytest.mark.parametrize(
    ("served", "message"),
    [
        ({"questions": b"<html>Not here</html>"}, "must be a list of questions"),
        ({"questions": json.dumps(QUESTIONS).encode()[:-9]}, "not JSON"),
        ({"questions": QUESTIONS[:-1]}, "golds without a question: ['399']"),
        ({"golds": GOLDS[:-1]}, "no gold for id '399'"),
        ({"golds": []}, '"golds" must be a list'),
        ({"task": "LaMP_5"}, "holds LaMP-5, not LaMP-4"),
        ({"questions": [{"id": "0"}], "golds": GOLDS[:1]}, 'must have an "input"'),
    ],
)
def test_what_is_not_a_pair_of_questions_and_golds_is_not_kept(server, tmp_path, served, message):
    url, handler = server
    serve(handler, **served)
    with pytest.raises(DataError, match="what came is not what it should be") as error:
        fetch(url, tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    serve(handler)
    fetch(url, tmp_path)
    assert len(load_examples(tmp_path / "LaMP_4" / "dev")) == 400


def test_no_network(tmp_path):
    with pytest.raises(DataError, match=r"cannot be reached: .*refused; check the network"):
        fetch("http://127.0.0.1:1/", tmp_path)


@pytest.mark.parametrize(
    ("tasks", "splits", "options", "message"),
    [
        (["LaMP-6"], ["dev"], {}, "LaMP-6 is made of private e-mails"),
        (["LongLaMP-1"], ["dev"], {}, "LongLaMP-1 is made of private e-mails"),
        (["LaMP-4", "LaMP-8"], ["dev"], {}, "unknown task 'LaMP-8'"),
        (["news"], ["dev"], {}, "unknown task 'news'"),
        (["LaMP-4"], ["validation"], {}, "unknown split 'validation'"),
        (["LaMP-4"], [], {}, "at least one task and one split"),
        (["LaMP-4"], ["dev"], {"setting": "date"}, "unknown setting 'date'"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_fetched(
    server, tmp_path, tasks, splits, options, message
):
    url, handler = server
    with pytest.raises(DataError, match=re.escape(message)):
        fetch(url, tmp_path, tasks, splits, **options)
    assert handler.log == []
    with pytest.raises(DataError, match="not an address"):
        fetch("file:///lamp", tmp_path)


def offer(monkeypatch, snapshot):
    """A hub that offers one split."""
    monkeypatch.setattr("prefheads.tasks.download.unreachable", lambda url: "")
    files = ["topic_writing_temporal/val-00000-of-00001.json"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)


def test_longlamp_comes_from_the_hub(tmp_path, monkeypatch):
    asked = []

    def snapshot(repo, *, repo_type, allow_patterns, local_dir):
        asked.append((repo, repo_type, allow_patterns))
        folder = Path(local_dir) / "topic_writing_temporal"
        folder.mkdir(parents=True, exist_ok=True)
        row = {"author": "a", "input": "tea", "output": "x"}
        row["profile"] = [{"summary": "s", "content": "c"}]
        (folder / "val-00000-of-00001.json").write_text(json.dumps([row]))

    offer(monkeypatch, snapshot)
    (split,) = fetch("http://none", tmp_path, ["LongLaMP-4"], ["dev"], setting="time")
    assert asked[0][:2] == ("LongLaMP/LongLaMP", "dataset")
    assert all(p.startswith("topic_writing_temporal/val") for p in asked[0][2])
    assert load_examples(split)[0].task == "LongLaMP-4"
    with pytest.raises(DataError, match="the hub has no split test in topic_writing_temporal"):
        fetch("http://none", tmp_path, ["LongLaMP-4"], ["test"], setting="time")


def test_hub_out_of_reach(tmp_path, monkeypatch):
    def snapshot(*_, **__):
        raise ConnectionError("no route\nto host")

    offer(monkeypatch, snapshot)
    with pytest.raises(DataError, match=r"cannot be fetched from the hub: no route$"):
        fetch("http://none", tmp_path, ["LongLaMP-4"], ["dev"], setting="time")


def test_no_network_is_told_within_seconds(cli, tmp_path, monkeypatch):
    """By a server that refuses, and one that takes the call and says nothing."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        for reason in ("Connection refused", "no answer within 4 seconds"):
            address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
            where = ("data", "download", "--out", tmp_path)
            told = [
                (f"the hub ({address})", (*where, "LongLaMP-4")),
                (address, (*where, "LaMP-4", "--base-url", address)),
                ("the hub", ("check", "--model", "nobody/nothing")),
            ]
            for server, command in told:
                began = time.monotonic()
                assert_one_error(cli(*command), f"{server} cannot be reached", reason)
                assert time.monotonic() - began < 5
            deaf.listen()


def test_the_hubs_own_error_is_told(server, tmp_path, monkeypatch):
    """Also where a folder of that name is there already."""
    url, _ = server
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", url)
    with pytest.raises(DataError, match=r"cannot be fetched from the hub: .*404"):
        fetch("http://none", tmp_path, ["LongLaMP-4"])


def test_command(server, tmp_path, capsys):
    url, handler = server
    serve(handler)
    serve(handler, split="train")
    arguments = ["LaMP-4", "--split", "train, dev", "--out", str(tmp_path), "--base-url", url]
    assert run(["data", "download", *arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 4
    assert run(["data", "download", "LaMP-6", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: LaMP-6 is made of private e-mails")
