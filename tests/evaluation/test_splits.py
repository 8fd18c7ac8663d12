"""Whose samples are evaluated: finding files, who is the same person, folds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.lamp_files import write_task

from prefheads.data.example import load_examples
from prefheads.errors import DataError
from prefheads.evaluation.prepare import find_samples, find_sibling, find_tasks


def test_samples_are_found_wherever_they_lie(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        write_task(tmp_path / "flat", "LaMP_7", 2, split)
    write_task(tmp_path / "flat" / "time", "LaMP_7", 2)
    flat = find_samples(tmp_path / "flat", "LaMP-7", None)
    assert flat == tmp_path / "flat" / "LaMP_7" / "dev_questions.json"
    assert find_samples(flat.parent, "lamp_7", "train").name == "train_questions.json"
    nested = tmp_path / "nested" / "LaMP_2" / "new" / "dev"
    write_task(tmp_path / "made", "LaMP_2", 2)
    nested.parent.mkdir(parents=True)
    (tmp_path / "made" / "LaMP_2").rename(nested)
    assert find_samples(tmp_path / "nested", "LaMP-2", "dev").parent == nested
    long = tmp_path / "long" / "topic_writing_user"
    long.mkdir(parents=True)
    for split in ("train", "val"):
        (long / f"{split}.jsonl").write_text("")
    assert find_samples(tmp_path / "long", "LongLaMP-4", None) == long / "val"
    assert find_tasks(tmp_path / "long") == ["LongLaMP-4"]
    assert find_sibling(long / "val", "train") == long / "train"
    assert find_sibling(long / "val", "test") is None
    assert find_sibling(flat, "train") == flat.with_name("train_questions.json")
    assert find_sibling(flat.parents[1] / "time/LaMP_7/dev_questions.json", "train") is None
    (tmp_path / "long" / "topic_writing_temporal").mkdir()
    (tmp_path / "long" / "topic_writing_temporal" / "val.jsonl").write_text("")
    with pytest.raises(DataError, match="name the one"):
        find_samples(tmp_path / "long", "LongLaMP-4", "val")


def test_links_are_followed_once(tmp_path: Path) -> None:
    write_task(tmp_path / "far", "LaMP_7", 2)
    near = tmp_path / "near"
    near.mkdir()
    (near / "LaMP_7").symlink_to(tmp_path / "far" / "LaMP_7")
    (tmp_path / "far" / "LaMP_7" / "back").symlink_to(near)
    assert find_tasks(near) == ["LaMP-7"]
    assert find_samples(near, "LaMP-7", None) == near / "LaMP_7" / "dev_questions.json"


def test_tasks_without_golds_are_not_found(tmp_path: Path) -> None:
    write_task(tmp_path, "LaMP_7", 2)
    (write_task(tmp_path, "LaMP_2", 2) / "dev_outputs.json").unlink()
    assert find_tasks(tmp_path) == ["LaMP-7"]
    (tmp_path / "LaMP_7" / "dev_outputs.json").unlink()
    with pytest.raises(DataError, match="no task's folder"):
        find_tasks(tmp_path)


def test_samples_of_one_author_are_one_user(tmp_path: Path) -> None:
    """Files of LaMP name nobody; who shares an article is the same person."""
    text = "An article that is long enough to be one author's alone, number {}."
    profiles = {"a": (1, 2), "b": (2, 3), "c": (4,), "d": (5,)}
    questions = [
        {
            "id": key,
            "input": f"Generate a headline for the following article: {text.format(asked)}",
            "profile": [{"id": str(n), "text": text.format(n), "title": "Same"} for n in articles],
        }
        for (key, articles), asked in zip(profiles.items(), (7, 8, 3, 9), strict=True)
    ]
    golds = [{"id": key, "output": "A headline"} for key in profiles]
    (tmp_path / "dev_questions.json").write_text(json.dumps(questions))
    for task in ("LaMP_4", "LaMP_7"):
        told = json.dumps({"task": task, "golds": golds})
        (tmp_path / "dev_outputs.json").write_text(told)
        users = [e.user_id for e in load_examples(tmp_path / "dev_questions.json")]
        assert users == ["a", "a", "a", "d"]
    short = [
        question | {"profile": [question["profile"][0] | {"text": "Thanks!"}]}
        for question in questions
    ]
    (tmp_path / "dev_questions.json").write_text(json.dumps(short))
    unlike = [e.user_id for e in load_examples(tmp_path / "dev_questions.json")]
    assert unlike == ["a", "b", "c", "d"]  # many people write that
    for question in questions:
        question["user_id"] = f"user-{question['id']}"
    (tmp_path / "dev_questions.json").write_text(json.dumps(questions))
    named = load_examples(tmp_path / "dev_questions.json")
    assert [e.user_id for e in named] == ["user-a", "user-b", "user-c", "user-d"]


def test_movies_are_shared_by_people(tmp_path: Path) -> None:
    """What several have in their profiles without having written it makes nobody the same."""
    item = {
        "id": "m",
        "description": "A long film about the sea, told twice over.",
        "tag": "classic",
    }
    questions = [
        {"id": key, "input": f"Which tag? description: {key}", "profile": [item]} for key in "ab"
    ]
    golds = [{"id": key, "output": "classic"} for key in "ab"]
    (tmp_path / "dev_questions.json").write_text(json.dumps(questions))
    (tmp_path / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_2", "golds": golds}))
    assert [e.user_id for e in load_examples(tmp_path / "dev_questions.json")] == ["a", "b"]


# --- folds
