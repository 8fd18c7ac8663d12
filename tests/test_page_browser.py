"""The page of a run in a real browser: no network, no errors, fits the screen, tells of tokens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import results

from prefheads.analysis import chapters, index
from prefheads.analysis.chapter import Part
from prefheads.analysis.page import Texts, write_page
from prefheads.analysis.traces import Readings, Token, Trace

playwright = pytest.importorskip("playwright.sync_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
EVIL = '"><script>alert(1)</script>'
WORDS = ("The", " quick", " brown", EVIL, "\n", " unbelievablylongwordwithoutanybreakinit" * 3, "s")


def tokens(changed: int) -> tuple[Token, ...]:
    """A text in which one token is another than plain decoding's."""
    return tuple(
        Token(word, 0.25, 0.5, 3, 1, " other" if i == changed else word, word)
        for i, word in enumerate(WORDS)
    )


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    part = Part("", {"head": results.scores()}, None, "prefheads fit " + 30 * "long-option=x ")
    entries = [*chapters.entries(part), index.Entry("none", "Not there", missing=f"`{EVIL}`")]
    written = index.write(folder, [replace(e, section="Heads") for e in entries], "about")
    trace = Trace("ann", "Write " + EVIL, {name: tokens(2) for name in ("plain", "steered")})
    readings = Readings("dps", "contrast", 1, 2, (trace,))
    texts = [Texts("LaMP-7", readings), Texts("LaMP-3", None, "`prefheads analyze RUN`")]
    return write_page(folder, "Analysis", written, texts, {"run": EVIL})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_page_opens_alone_and_fits_the_screen(
    browser: Any, page_file: Path, viewport: dict[str, int], scheme: str
) -> None:
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: problems.append(m.text))
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("dialog", lambda d: problems.append(d.message) or d.dismiss())
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert [u for u in asked if not u.startswith("data:")] == [page_file.as_uri()]
    assert not problems
    for svg in page.query_selector_all("figure svg"):
        box = svg.bounding_box()
        assert box["width"] > 200 and box["x"] + box["width"] <= viewport["width"]
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]


def tip(page: Any, token: Any) -> str:
    """What a token shows of itself; empty if nothing is shown."""
    return str(
        token.evaluate(
            "e => { const s = getComputedStyle(e, '::after');"
            " return s.content === 'none' || s.display === 'none' ? '' : s.content }"
        )
    )


def test_tokens_tell_their_probabilities(browser: Any, page_file: Path) -> None:
    """To a mouse, a finger and a keyboard."""
    expected = "plain 25.0 % (rank 3), steered 50.0 % (rank 1)"
    page = browser.new_context(viewport=DESKTOP).new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".t.c").all_inner_texts() == [" brown", " brown"]
    first, marked = page.locator(".steered .t").nth(0), page.locator(".steered .t.c")
    assert tip(page, first) == ""
    first.hover()
    assert expected in tip(page, first) and "Likeliest" not in tip(page, first)
    marked.hover()
    assert tip(page, first) == "" and "Likeliest: plain “ other”" in tip(page, marked)
    page.mouse.move(0, 0)
    page.keyboard.press("Tab")
    while page.evaluate("!document.activeElement.matches('.t')"):
        page.keyboard.press("Tab")  # links and tables come before
    assert expected in tip(page, page.locator(".t:focus"))

    phone = browser.new_context(viewport=PHONE, has_touch=True).new_page()
    phone.goto(page_file.as_uri())
    first, marked = phone.locator(".steered .t").nth(0), phone.locator(".steered .t.c")
    marked.tap()
    assert expected in tip(phone, marked)
    first.tap()
    assert expected in tip(phone, first) and tip(phone, marked) == ""
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_links_to_folded_sections_unfold_them(browser: Any, page_file: Path) -> None:
    page = browser.new_context(viewport=DESKTOP).new_page()
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    page.locator("a[href='#a-pcs-head']").click()
    page.wait_for_selector("#a-pcs-head", state="visible")
