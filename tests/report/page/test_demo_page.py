"""The report: one well-formed page that needs no network, and says what the numbers say."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from support import results

from prefheads.errors import ArtifactError
from prefheads.report.measure.tokens import PromptTexts, Readings
from prefheads.report.page.demo import write_report
from prefheads.steering.setting import PLAIN

VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = "<script>alert('x')</script> & <b>bold</b>"


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects text, tags and ids."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open, self.tags, self.ids, self.words, self.resources = [], [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.note(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.note(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def note(self, attrs):
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            if name in given:
                self.resources.append(given[name])
        assert not [name for name in given if name.startswith("on")]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


TEXTS = Readings(
    "calibrated",
    "amplify",
    1,
    2,
    (
        PromptTexts("ann", EVIL, {n: f"{n} {EVIL}" for n in ("plain", "steered", "written")}),
        PromptTexts("ben", "write", dict.fromkeys(("plain", "steered"), "the same")),
    ),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    steerer = results.steerer()
    kinds = {"ann": "a " + EVIL, "ben": "b", "cem": "b", "dua": "b"}
    path = write_report(
        tmp_path_factory.mktemp("report"),
        steerer,
        results.validation(),
        TEXTS,
        kinds=kinds,
        notes={"command": "prefheads demo " + EVIL},
    )
    assert path.name == "report.html"
    return path.read_text()


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_page_is_well_formed_with_unique_ids(page):
    assert len(page.ids) == len(set(page.ids)) > 10
    assert page.tags.count("svg") == 5  # two heat maps, calibration, the paper's form, validation
    assert page.tags.count("section") == 8


def test_page_needs_nothing_from_elsewhere(source, page):
    assert all(r.startswith(("#", "data:")) for r in page.resources)
    assert not re.search(r"@import|url\((?!#)", source)
    assert "script" not in page.tags


def test_texts_of_users_are_escaped_and_shown(source, page):
    assert "<script" not in source and "<b>" not in source
    for part in ("plain", "steered", "written"):
        assert f"{part} {EVIL}" in page.text
    assert f"prefheads demo {EVIL}" in page.text
    assert "1 of 2 texts differ" in page.text
    assert "(no difference)" in page.text


def test_both_colour_schemes_and_phones_are_provided_for(source):
    assert "prefers-color-scheme: dark" in source
    assert 'name="viewport"' in source
    assert "currentColor" in source


def test_page_gives_the_figures(page):
    validation = results.validation()
    row = next(r for r in validation.rows() if r.method == "steered")
    assert f"{row.nll:.3f}" in page.text
    assert f"{row.change.mean:+.3f}".replace("-", "\u2212") in page.text
    layer, head, mean, stderr = results.scores().ranked()[0]
    assert f"{layer}.{head} {mean:+.4f} ± {stderr:.4f}" in page.text
    assert str(results.STEERED) in page.text
    assert "llama" not in page.text and "unnamed, 6 layers x 4 heads" in page.text
    assert "8 texts of 4 people" in page.text


def test_page_says_that_steering_did_not_help(tmp_path):
    steerer = results.steerer(PLAIN)
    path = write_report(tmp_path, steerer, results.validation(PLAIN), TEXTS)
    text = Page(path.read_text()).text
    assert "Steering did not help." in text
    assert "For illustration only" in text
    assert "Shown." not in text


def test_page_says_that_validation_is_missing(tmp_path):
    text = Page(write_report(tmp_path, results.steerer()).read_text()).text
    assert "Not validated" in text


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="not a folder"):
        write_report(tmp_path / "file", results.steerer())


def test_a_cluster_may_hold_people_without_a_scored_sample(tmp_path):
    steerer = results.steerer()
    steerer.clusters.assignment["eva"] = 1  # routed by her profile, but no sample was scored
    assert write_report(tmp_path, steerer, results.validation()).is_file()


def test_what_was_not_measured_is_said_to_be_so(tmp_path):
    validation = results.validation()
    validation.nll[:, 1:, 4:6] = float("nan")  # random controls, with other profiles
    text = Page(write_report(tmp_path, results.steerer(), validation).read_text()).text
    assert "n/a" in text and "nan" not in text
