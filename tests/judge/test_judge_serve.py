"""The pages on which people judge."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from support.judged import METHODS

from prefheads.judge.pairs import Study
from prefheads.judge.serve import annotator_name, make_app
from prefheads.judge.store import TIE, Votes


@pytest.fixture
def client(study: Study, tmp_path: Path) -> TestClient:
    return TestClient(make_app(study, Votes(tmp_path / "v.sqlite", study)))


def shown(page: str) -> list[str]:
    """The two texts of a page, in their order."""
    return [unescape(t) for t in re.findall(r'<p class="text" dir="auto">(.*?)</p>', page)]


def test_a_name_is_asked_for_once(client: TestClient) -> None:
    assert "Your name" in client.get("/").text
    assert client.post("/name", data={"name": "  Änn  B."}).url.path == "/"
    assert "0 of 8 done" in client.get("/").text and "änn b." in client.get("/").text
    refused = client.post("/name", data={"name": "<script>"})
    assert refused.status_code == 400 and "<script>" not in refused.text


@pytest.mark.parametrize("text", ["", "   ", "=1+1", "-x", "_x", "a\x00b", "x" * 41, "a;b", "@b"])
def test_no_names(text: str) -> None:
    assert annotator_name(text) is None


def test_one_person_has_one_name() -> None:
    assert annotator_name("Ann") == annotator_name(" ann ") == annotator_name("\uff21NN") == "ann"


def test_pages_are_blind_and_escaped(client: TestClient, study: Study) -> None:
    client.post("/name", data={"name": "ann"})
    page = client.get("/")
    assert not re.search(r"cad|dps|gamma|kept out|gold", page.text, re.I)
    assert "what &lt;b&gt;user 0&lt;/b&gt; &amp; co wrote" in page.text
    assert "Ask &lt;i&gt;0&lt;/i&gt;?" in page.text and "<b>" not in page.text
    texts = study.pairs[0].texts
    expected = texts[::-1] if study.swapped(study.pairs[0], "ann") else texts
    assert shown(page.text) == list(expected)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"https?://|<style|<script>| on\w+=", page.text)
    for path in ("judge.css", "judge.js"):
        assert client.get(f"/static/{path}").status_code == 200


def test_long_profiles_unfold(study: Study, tmp_path: Path) -> None:
    long = "a long text " * 60
    pairs = [replace(study.pairs[0], profile=({"title": "Short", "text": long},))]
    small = replace(study, pairs=tuple(pairs))
    client = TestClient(make_app(small, Votes(tmp_path / "v", small)))
    page = client.post("/name", data={"name": "ann"}).text
    assert re.search(r'<p><span class="label">title</span> Short</p>', page)
    assert "<details>" in page and long.strip() in page


def test_votes_go_to_the_method_behind_the_text(
    client: TestClient, study: Study, tmp_path: Path
) -> None:
    client.post("/name", data={"name": "ann"})
    choices = ["1", "2", "tie"] * 3
    expected = []
    for pair, choice in zip(study.differing, choices, strict=False):
        texts = shown(client.get("/").text)
        if choice == "tie":
            expected.append(TIE)
        else:
            expected.append(METHODS[pair.texts.index(texts[int(choice) - 1])])
        for _ in range(2):  # a double submit
            assert client.post("/vote", data={"pair": pair.id, "choice": choice}).url.path == "/"
    assert "Thank you" in client.get("/").text
    votes = Votes(tmp_path / "v.sqlite", study).all()
    assert [v.choice for v in votes] == expected
    for vote, pair in zip(votes, study.differing, strict=True):
        assert vote.first == METHODS[study.swapped(pair, "ann")]


def test_a_choice_can_be_taken_back(client: TestClient, study: Study) -> None:
    assert "Take back" not in client.post("/name", data={"name": "ann"}).text
    page = client.post("/vote", data={"pair": "s0", "choice": "1"}).text
    assert "Take back" in page and "1 of 8 done" in page
    for _ in range(2):
        page = client.post("/undo", data={"pair": "s0"}).text
        assert "0 of 8 done" in page and "user 0" in page


@pytest.mark.parametrize(
    "data", [{}, {"pair": "s0"}, {"pair": "s0", "choice": "3"}, {"pair": "s8", "choice": "1"}]
)
def test_votes_that_are_none(client: TestClient, study: Study, data: dict[str, str]) -> None:
    client.post("/name", data={"name": "ann"})
    assert client.post("/vote", data=data).status_code == 400
    assert "0 of 8 done" in client.get("/").text


def test_no_vote_without_a_name(client: TestClient) -> None:
    assert "Your name" in client.post("/vote", data={"pair": "s0", "choice": "1"}).text
    client.cookies.set("annotator", "%3Dx")
    assert "Your name" in client.post("/vote", data={"pair": "s0", "choice": "1"}).text


def test_a_vote_that_cannot_be_kept_is_told(study: Study, tmp_path: Path) -> None:
    votes = Votes(tmp_path / "v", study)
    client = TestClient(make_app(study, votes), raise_server_exceptions=False)
    client.post("/name", data={"name": "ann"})
    votes._db.close()
    answer = client.post("/vote", data={"pair": "s0", "choice": "1"})
    assert answer.status_code == 503 and "Not kept" in answer.text
