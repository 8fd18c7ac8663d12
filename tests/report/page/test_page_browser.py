"""The page of a run in a real browser: no network, no errors, fits the screen, tells of tokens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import results

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.headsets import grid
from prefheads.report.measure.tokens import PromptTexts, Readings, Token
from prefheads.report.page import heads, steering
from prefheads.report.page.demo import write_report
from prefheads.report.page.discovery import Discovery
from prefheads.report.page.entry import Entry, write
from prefheads.report.page.page import write_page
from prefheads.steering.setting import Setting

playwright = pytest.importorskip("playwright.sync_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
EVIL = '"><script>alert(1)</script>'
SIZES = (1, 2, 4, 8, 16)
WORDS = ("The", " quick", " brown", EVIL, "\n", " unbelievablylongwordwithoutanybreakinit" * 3, "s")


def tokens(changed: int) -> tuple[Token, ...]:
    """A text in which one token is another than plain decoding's."""
    return tuple(
        Token(word, 0.25, 0.5, 3, 1, " other" if i == changed else word, word)
        for i, word in enumerate(WORDS)
    )


def calibration() -> Calibration:
    """Many sizes and strengths, some of them of tens of nats."""
    settings = list(grid([f"top {k}% by {by} PCS" for by in ("head", "profile") for k in SIZES]))
    settings += [
        Setting(f"top {k}% by head PCS", "contrast", "head", g, 1.0, schedule)
        for schedule in ("constant", "entropy")
        for k in SIZES
        for g in (0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0)
    ]
    settings = list(dict.fromkeys(settings))
    change = [s.gamma * (12.5 if s.schedule == "entropy" else -0.01) for s in settings]
    n = len(settings)
    return replace(
        results.calibration(),
        settings=tuple(settings),
        change=tuple(change),
        stderr=(0.0,) + (0.02,) * (n - 1),
        divergence=(0.0,) * n,
        chosen=1,
    )


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    found = results.scores()
    named = replace(found, user_ids=tuple(f"{u}-who-has-a-long-name" for u in found.user_ids))
    discovery = Discovery("", {"head": named}, None, "prefheads fit " + 30 * "long-option=x ")
    entries = [
        *steering.validation_entries(results.validation(), "", "validate"),
        *steering.calibration_entries(calibration(), "", "fit"),
        *heads.entries(discovery),
        Entry("none", "Not there", "Fig. 8", missing=f"`{EVIL}`"),
        Entry("texts-LaMP-3", "Texts side by side (LaMP-3)", missing="`prefheads analyze RUN`"),
    ]
    written = write(folder, [replace(e, section="Heads") for e in entries], "about")
    trace = PromptTexts("ann", "Write " + EVIL, {name: tokens(2) for name in ("plain", "steered")})
    readings = Readings("dps", "contrast", 1, 2, (trace,))
    return write_page(folder, "Analysis", written, {"LaMP-7": readings}, {"run": EVIL}, lead=EVIL)


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


TOUCHING = """() => [...document.querySelectorAll('figure svg')].flatMap(svg => {
  const name = svg.getAttribute('aria-label'), view = svg.getBoundingClientRect(), found = [];
  const texts = [...svg.querySelectorAll('text')];
  const boxes = texts.map(t => t.getBoundingClientRect());
  for (let i = 0; i < texts.length; i++) {
    const a = boxes[i];
    if (a.left < view.left - 1 || a.right > view.right + 1)
      found.push(`${name}: ${texts[i].textContent} is cut off`);
    for (let j = 0; j < i; j++) {
      const b = boxes[j];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 0.5 && high > 0.2 * Math.min(a.height, b.height))
        found.push(`${name}: ${texts[j].textContent} on ${texts[i].textContent}`);
    }
  }
  return found;
})"""


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steerer = results.steerer()
    steerer.calibration = calibration()
    return write_report(tmp_path_factory.mktemp("report"), steerer, results.validation())


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("which", ["page_file", "report_file"])
def test_no_text_of_a_figure_lies_on_another(
    browser: Any, which: str, viewport: dict[str, int], request: pytest.FixtureRequest
) -> None:
    page = browser.new_context(viewport=viewport).new_page()
    page.goto(request.getfixturevalue(which).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.locator("figure svg").count() >= 5
    assert page.evaluate(TOUCHING) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_wide_tables_scroll_inside_themselves(browser: Any, page_file: Path) -> None:
    page = browser.new_context(viewport=PHONE).new_page()
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    frames = page.locator(".wide")
    boxes = frames.evaluate_all(
        "all => all.map(e => [e.getBoundingClientRect().right, e.scrollWidth - e.clientWidth])"
    )
    assert page.locator("table").count() == len(boxes)
    assert all(right <= PHONE["width"] for right, _ in boxes)
    hidden = max(more for _, more in boxes)
    assert hidden > 50  # there are wide ones
    wide = frames.nth([more for _, more in boxes].index(hidden))
    wide.focus()
    wide.evaluate("e => e.scrollLeft = 1e6")
    assert wide.evaluate("e => e.scrollLeft") == pytest.approx(hidden, abs=1)


def test_the_page_uses_the_width_and_begins_with_what_there_is(
    browser: Any, page_file: Path
) -> None:
    page = browser.new_context(viewport=DESKTOP).new_page()
    page.goto(page_file.as_uri())
    titles = page.locator("h2:visible, details.section > summary").all_inner_texts()
    assert titles[0] == "What came out" and titles[1].startswith("Heads")
    assert "Not in this run" in titles[-2] and "How it was made" in titles[-1]
    cards = page.locator(".findings li")
    boxes = cards.evaluate_all("all => all.map(e => e.getBoundingClientRect().toJSON())")
    assert len(boxes) == 6 and boxes[0]["y"] == boxes[1]["y"] == boxes[2]["y"]
    assert boxes[2]["right"] > 0.95 * DESKTOP["width"]
    figure = page.locator("#a-validation figure").bounding_box()
    words = page.locator("#a-validation .beside > div").bounding_box()
    assert words["x"] > figure["x"] + figure["width"] and abs(words["y"] - figure["y"]) < 40

    phone = browser.new_context(viewport=PHONE).new_page()
    phone.goto(page_file.as_uri())
    figure = phone.locator("#a-validation figure").bounding_box()
    words = phone.locator("#a-validation .beside > div").bounding_box()
    assert words["y"] >= figure["y"] + figure["height"]  # one under the other


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
    page.locator("#paper a[href='#a-pcs-head']").click()
    page.wait_for_selector("#a-pcs-head", state="visible")
