"""Annotation in a real browser, through a server that is killed in between."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from support.judged import BAD, GOOD, METHODS, write_run

from prefheads.cli.listening import listen
from prefheads.judge.pairs import Study, load_study
from prefheads.judge.results import human_results
from prefheads.judge.serve import make_app
from prefheads.judge.store import TIE, Votes

playwright = pytest.importorskip("playwright.sync_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

CAD, DPS = METHODS
REST = 320  # milliseconds: nothing is taken for a vote while a page is this new
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


def start(run: Path, db: Path, port: int) -> subprocess.Popen[str]:
    """The server as a user starts it, listening when this returns."""
    options = ["--methods", ",".join(METHODS), "--db", str(db), "--port", str(port)]
    command = [sys.executable, "-m", "prefheads", "judge", "serve", "--run", str(run), *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert "20 pairs to judge, 2 more have the same text twice" in server.stdout.readline()
    assert server.stdout.readline() == f"http://127.0.0.1:{port}/\n"
    return server


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wanted(name: str, pair: str, texts: list[str]) -> str:
    """The key that an annotator presses; what it looks at is on the page only."""
    number = int(pair.removeprefix("s"))
    good = "1" if GOOD in texts[0] else "2"
    if name == "ann":
        return good
    if name == "ben":  # dislikes every fifth good text
        return good if number % 5 else {"1": "2", "2": "1"}[good]
    return "t" if number % 4 == 0 else good


def annotate(page: Any, name: str, until: int = 20) -> None:
    """Vote on what the page shows until so many pairs are done."""
    for done in range(int(page.inner_text(".top span").split()[0]), until):
        pair = page.get_attribute("#vote input[name=pair]", "value")
        texts = page.locator(".text").all_inner_texts()
        assert sorted(t.split()[0] for t in texts) == sorted((BAD, GOOD))
        key = wanted(name, pair, texts)
        page.wait_for_timeout(REST)
        if name == "ben":
            page.keyboard.press(key)
            page.keyboard.press(key)
        else:
            clicks = 2 if name == "ann" else 1  # cid has no scripts, which refuse the second
            page.click(f"#vote [data-key='{key}']", click_count=clicks)
        page.wait_for_selector(f".top :text('{done + 1} of 20 done')")
        page.wait_for_load_state()


def test_no_vote_is_lost_or_doubled_when_the_server_is_killed(browser: Any, tmp_path: Path) -> None:
    run, db, port = write_run(tmp_path / "run", 20, same=2), tmp_path / "votes.sqlite", free_port()
    server = start(run, db, port)
    problems: list[str] = []
    try:
        pages = {}
        for name in ("ann", "ben", "cid"):  # cid votes without JavaScript
            context = browser.new_context(
                java_script_enabled=name != "cid", viewport=PHONE if name == "ben" else DESKTOP
            )
            page = pages[name] = context.new_page()
            page.on("console", lambda m: m.type == "error" and problems.append(m.text))
            page.goto(f"http://127.0.0.1:{port}/")
            page.fill("#name", name.capitalize())
            page.click("button")
            page.wait_for_selector("#vote")
        annotate(pages["ann"], "ann", until=13)
        annotate(pages["ben"], "ben", until=7)
        assert not problems
        pages["ann"].wait_for_timeout(REST)
        form = pages["ann"].locator("#vote")
        pair, texts = form.locator("[name=pair]").input_value(), pages["ann"].locator(".text")
        key = wanted("ann", pair, texts.all_inner_texts())
        form.locator(f"[data-key='{key}']").click(no_wait_after=True)
        server.kill()
        assert server.wait() == -signal.SIGKILL
        before = Votes(db).all()
        assert len(before) in (20, 21)  # the last may have come too late
        server = start(run, db, port)
        for name, page in pages.items():
            page.goto(f"http://127.0.0.1:{port}/")
            annotate(page, name)
            assert page.inner_text("h1") == "Thank you"
            assert "20 of 20 done" in page.inner_text("body")
    finally:
        server.kill()
        server.wait()
    votes = Votes(db).all()
    assert votes[: len(before)] == before
    assert len({(v.pair, v.annotator) for v in votes}) == len(votes) == 60
    check(Votes(db))


def check(votes: Votes) -> None:
    """Every vote and rate is what the annotators' rules give: s0..s14 are won by the second."""
    choices = {(v.pair, v.annotator): v.choice for v in votes.all()}
    winners = []
    for i in range(20):
        good, bad = (DPS, CAD) if i < 15 else (CAD, DPS)
        ballot = [good, good if i % 5 else bad, good if i % 4 else TIE]
        assert [choices[f"s{i}", n] for n in ("ann", "ben", "cid")] == ballot
        winners.append(next((c for c in ballot if ballot.count(c) > 1), TIE))
    winners += [TIE, TIE]
    found = human_results(votes)
    for name in (CAD, DPS, TIE):
        share = np.mean([w == name for w in winners])
        assert found.wins[name].mean == pytest.approx(share)
        assert found.wins[name].low <= share <= found.wins[name].high
    assert (found.open, found.same) == (0, 2)
    assert 0 < found.alpha < 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_pages_fit_the_screen(
    browser: Any, tmp_path: Path, viewport: dict[str, int], scheme: str
) -> None:
    """Nothing is wider than the screen, and the buttons are on it, big enough for a thumb."""
    study = load_study(write_run(tmp_path / "run", 2), METHODS)
    with serving(study, Votes(tmp_path / "v", study)) as address:
        page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
        begin(page, address)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        for box in (b.bounding_box() for b in page.query_selector_all(".choices button")):
            assert box["height"] >= 44 and box["y"] + box["height"] <= viewport["height"]
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]


def test_a_slow_double_click_is_one_vote(browser: Any, tmp_path: Path) -> None:
    """Its second half, and keys held down, meet the next pair when nobody has read it yet."""
    study = load_study(write_run(tmp_path / "run", 3), METHODS)
    votes = Votes(tmp_path / "v", study)
    with serving(study, votes) as address:
        page = browser.new_context().new_page()
        page.clock.install()
        begin(page, address)
        page.clock.pause_at(datetime.now() + timedelta(hours=1))  # a page is new until told other
        again = {1: lambda: page.keyboard.press("t"), 2: lambda: page.click("[value=tie]")}
        for done, second in again.items():
            page.clock.run_for(REST)
            page.click("[value=tie]")
            page.wait_for_selector(f"text={done} of 3 done")
            page.wait_for_load_state()
            second()
            page.wait_for_timeout(REST)  # for a vote to come that should not
            assert len(votes.all()) == done
        page.clock.run_for(REST)
        page.keyboard.press("T")
        page.wait_for_selector("text=Thank you")


def begin(page: Any, address: str) -> None:
    page.goto(address)
    page.fill("#name", "ann")
    page.keyboard.press("Enter")
    page.wait_for_selector("#vote")


@contextmanager
def serving(study: Study, votes: Votes) -> Iterator[str]:
    """The page, served by a thread of this process."""
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(study, votes), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
