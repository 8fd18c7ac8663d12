"""Votes and answers on disk."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from support.judged import METHODS

from prefheads.errors import ArtifactError
from prefheads.judge.pairs import Study, load_study
from prefheads.judge.store import TIE, Answer, Answers, Votes

CAD, DPS = METHODS


def test_the_first_vote_counts_and_is_kept(study: Study, tmp_path: Path) -> None:
    votes, (pair, other, *_) = Votes(tmp_path / "v", study), study.pairs
    for choice in (DPS, CAD, TIE):
        votes.add(pair, "ann", choice, CAD)
    votes.add(pair, "ben", TIE, DPS)
    votes.add(other, "ann", CAD, DPS)
    again = Votes(tmp_path / "v", study)
    kept = [(v.pair, v.annotator, v.choice, v.first) for v in again.all()]
    assert kept == [("s0", "ann", DPS, CAD), ("s0", "ben", TIE, DPS), ("s1", "ann", CAD, DPS)]
    assert again.voted("ann") == ["s0", "s1"] and again.voted("cid") == []
    again.remove(pair, "ann")
    again.remove(pair, "ann")
    assert votes.voted("ann") == ["s1"]


def test_votes_on_something_else_are_not_mixed(
    judged_run: Path, study: Study, tmp_path: Path
) -> None:
    Votes(tmp_path / "v", study)
    others = [
        (load_study(judged_run, METHODS[::-1]), "methods"),
        (load_study(judged_run, METHODS, seed=1), "pairs"),
        (load_study(judged_run, METHODS, n=4), "pairs"),
        (replace(study, task="LaMP-4"), "tasks"),
        (replace(study, pairs=(replace(study.pairs[0], input="?"), *study.pairs[1:])), "pairs"),
    ]
    for other, part in others:
        with pytest.raises(ArtifactError, match=f"other {part}"):
            Votes(tmp_path / "v", other)


def test_files_of_another_kind_are_refused_and_stay(study: Study, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be one " * 9)
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t (x)")
    other.close()
    for name in ("text", "other", "", "no/folder"):
        path = tmp_path / name
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(ArtifactError):
            Votes(path, study)
        assert (path.read_bytes() if path.is_file() else None) == before
    with pytest.raises(ArtifactError, match="no such file"):
        Votes(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


# --- answers of a language model


ANSWER = Answer("{}", 7, 3)


def test_answers_are_kept(tmp_path: Path) -> None:
    assert Answers(tmp_path / "a").get("key") is None
    Answers(tmp_path / "a").add("key", ANSWER)
    assert Answers(tmp_path / "a").get("key") == ANSWER


@pytest.mark.parametrize("asked", ["a.jsonl", "a.sqlite", "a"])
def test_answers_of_earlier_versions_are_known(tmp_path: Path, asked: str) -> None:
    """They were in SQLite, in the file that is asked for or in one beside it."""
    old = tmp_path / ("a" if asked == "a" else "a.sqlite")
    with closing(sqlite3.connect(old)) as db:
        db.execute(f"PRAGMA application_id={0x50484131}")
        db.execute("CREATE TABLE answers (key, answer, prompt_tokens, completion_tokens)")
        db.execute("INSERT INTO answers VALUES ('key', '{}', 7, 3)")
        db.commit()
    content = old.read_bytes()
    answers = Answers(tmp_path / asked)
    assert answers.get("key") == ANSWER
    answers.add("more", ANSWER)
    assert [Answers(tmp_path / asked).get(key) for key in ("key", "more")] == [ANSWER] * 2
    assert old.read_bytes() == content and (tmp_path / "a.jsonl").is_file()


def test_answers_are_not_read_from_other_files(tmp_path: Path, study: Study) -> None:
    Votes(tmp_path / "v.sqlite", study)
    (tmp_path / "text").write_text("my notes\n")
    for name in ("v.sqlite", "text", "", "no/folder"):
        with pytest.raises(ArtifactError):
            Answers(tmp_path / name)
    assert Answers(tmp_path / "v.jsonl").get("key") is None
