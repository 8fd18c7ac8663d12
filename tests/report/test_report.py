"""The report: one well-formed page that needs no network, and says what the numbers say."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from support import results

from prefheads.errors import ArtifactError
from prefheads.report.findings import agreement, findings
from prefheads.report.report import write_report
from prefheads.report.texts import Comparison
from prefheads.steering.setting import PLAIN
from prefheads.users import Clusters

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


TEXTS = [
    Comparison("ann", EVIL, "plain " + EVIL, "steered " + EVIL, "written " + EVIL),
    Comparison("ben", "write", "the same", "the same", None),
]


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
    assert "1 of 2 outputs differ" in page.text
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


def verdicts(validation):
    return [found.verdict for found in findings(validation)]


def test_findings_follow_the_intervals():
    # The made-up gains: real, beyond temperature and random heads, the same for any map or
    # profile; the paper's form does harm.
    assert verdicts(results.validation()) == [
        "shown",
        "shown",
        "shown",
        "not shown",
        "not shown",
        "contradicted",
    ]
    assert findings(results.validation(PLAIN)) == []


def test_findings_are_corrected_for_their_number():
    given = results.validation()
    nll = given.nll.copy()
    nll[:, :, 1:] = nll[:, :, :1] + np.random.default_rng(1).normal(0, 1, (8, 1, 1))
    steered = given.methods.index("steered")
    nll[:, 0, steered] = nll[:, 0, 0] - [0.1, 0.2, 0.3, 0.2, 0.1, 0.2, -0.2, 0.2]
    found = findings(replace(given, nll=nll))
    alone = found[0].estimate
    known = ttest_1samp(nll[:, 0, steered] - nll[:, 0, 0], 0).pvalue
    assert alone.excludes_zero and alone.p == pytest.approx(known) and 0.01 < known < 0.05
    assert found[0].verdict == "not shown"  # as one of six
    assert found[0].p == pytest.approx(min(1, alone.p * 6)) and f"{found[0].p:.2g}" in str(found[0])
    assert [f.estimate.excludes_zero for f in found] == [f.estimate.p < 0.05 for f in found]


def test_few_people_give_no_verdict():
    given = results.validation()
    users = tuple("abcdefga")  # seven of them
    found = findings(replace(given, user_ids=users))
    assert {f.verdict for f in found} == {"too few to tell"}
    assert np.isfinite([f.estimate.low for f in found]).all()
    assert "TOO FEW TO TELL" in str(found[0])


def test_findings_turn_with_the_measurements():
    given = results.validation()
    nll = given.nll.copy()
    steered = given.methods.index("steered")
    nll[:, 0, steered] = nll[:, 0, 0] + 1  # worse with the own profile,
    nll[:, 1, steered] = nll[:, 1, 0] + 3  # and far worse with another's
    found = findings(replace(given, nll=nll))
    assert found[0].verdict == "contradicted" and found[0].estimate.mean == pytest.approx(1)
    assert found[4].verdict == "shown" and found[4].estimate.mean == pytest.approx(2)


def test_agreement_is_one_for_equal_groups_whatever_their_numbers():
    clusters = Clusters(np.eye(2, dtype=np.float32), {"a": 1, "b": 1, "c": 0})
    match = agreement(clusters, {"a": "x", "b": "x", "c": "y"})
    assert match.rand == 1
    assert match.counts == [{"y": 1}, {"x": 2}]
    assert agreement(clusters, {"a": "x", "b": "y", "c": "y"}).rand < 0.5


def test_a_cluster_may_hold_people_without_a_scored_sample(tmp_path):
    steerer = results.steerer()
    steerer.clusters.assignment["eva"] = 1  # routed by her profile, but no sample was scored
    assert write_report(tmp_path, steerer, results.validation()).is_file()


def test_what_was_not_measured_is_said_to_be_so(tmp_path):
    validation = results.validation()
    validation.nll[:, 1:, 4:6] = float("nan")  # random controls, with other profiles
    text = Page(write_report(tmp_path, results.steerer(), validation).read_text()).text
    assert "n/a" in text and "nan" not in text
