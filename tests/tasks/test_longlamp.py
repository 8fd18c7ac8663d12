"""Reading LongLaMP: its fields, splits and shards, in each of the forms it is passed around in."""

import json
import re
import sys

import pytest

from prefheads.data.example import load_examples
from prefheads.data.prompts import build_prompt
from prefheads.data.retrieve import retrieve
from prefheads.data.task import task_name
from prefheads.errors import DataError, PrefheadsError

ROWS = {
    "abstract_generation_user": {
        "name": "Ada Jones",
        "input": 'Generate an abstract for the title "T" using the following items: 1. heads',
        "output": "An abstract.",
        "profile": [
            {"id": "0", "title": "other", "abstract": "thing", "year": 1990},
            {"id": "1", "title": "old", "abstract": "of\n sails", "year": 1999},
            {"id": "2", "title": "new", "abstract": "of heads", "year": 2003},
        ],
    },
    "product_review_temporal": {
        "reviewerId": "A1",
        "input": "Generate the review text: a lamp",
        "output": "It shines.",
        "profile": [
            {"description": "book", "overall": "1.0", "reviewText": "dull", "summary": "s0"},
            {"description": "a lamp", "overall": "5.0", "reviewText": "good", "summary": "s1"},
            {"description": None, "overall": "2.0", "reviewText": "bad", "summary": "s2"},
        ],
    },
    "topic_writing_user": {
        "author": "writer",
        "input": "Generate the content for a reddit post tea",
        "output": "Tea is good.",
        "profile": [
            {"author": "writer", "id": "p0", "summary": "wind", "content": "cold"},
            {"author": "writer", "id": "p1", "summary": "rain", "content": "wet"},
            {"author": "writer", "id": "p2", "summary": "tea", "content": "hot"},
        ],
    },
}
EXPECTED = {
    "abstract_generation_user": (
        "LongLaMP-2",
        "Ada Jones",
        '"of heads" is the abstract for the title "new", and "of sails" is the abstract for the '
        'title "old". Use the above abstracts as context to understand the style and language of '
        'the user and, Generate an abstract for the title "T" using the following items: 1. heads',
    ),
    "product_review_temporal": (
        "LongLaMP-3",
        "A1",
        '"5.0" is a rating for the product with description "a lamp". "s1" is summary for "good" '
        ', and "2.0" is a rating for the product with description "". "s2" is summary for "bad" . '
        "Following the given patterns Generate the review text: a lamp",
    ),
    "topic_writing_user": (
        "LongLaMP-4",
        "writer",
        '"tea" is a summary for "hot" , and "rain" is a summary for "wet" . Following the given '
        "patterns, Generate the content for a reddit post tea",
    ),
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(arrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("folder", ROWS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_every_task_and_form(tmp_path, folder, suffix):
    task, user, prompt = EXPECTED[folder]
    write(tmp_path / folder / f"test{suffix}", [ROWS[folder]])
    (example,) = load_examples(tmp_path / folder, items=2)
    assert (example.id, example.user_id, example.task) == ("test-0", user, task)
    assert example.output == ROWS[folder]["output"]
    assert build_prompt(example).text == prompt


def test_json_may_hold_lines_and_a_file_may_name_the_task(tmp_path):
    row = ROWS["topic_writing_user"]
    path = tmp_path / "topic_writing_user.json"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row))
    assert [e.id for e in load_examples(path)] == ["topic_writing_user-0", "topic_writing_user-1"]


@pytest.mark.parametrize("folder", ["LongLaMP_4", "longlamp-4", "Topic_writing_user/test"])
def test_names_of_folders(tmp_path, folder):
    path = write(tmp_path / "longlamp_data" / folder / "x.json", [ROWS["topic_writing_user"]])
    assert load_examples(path)[0].task == "LongLaMP-4"


def test_other_folders_are_no_task(tmp_path):
    row = {"id": "1", "user_id": "u", "profile": [{"text": "t"}], "input": "a", "output": "b"}
    path = write(tmp_path / "longlamp_data" / "lampshades" / "x.jsonl", [row])
    assert load_examples(path)[0].task is None


def test_shards_of_a_split_are_one_source(tmp_path):
    row, folder = ROWS["topic_writing_user"], tmp_path / "LongLaMP_4"
    write(folder / "val.json", [row])
    write(folder / "test-00001-of-00002.json", [row | {"input": "b"}])
    write(folder / "test-00000-of-00002.json", [row | {"input": "a"}] * 2)
    examples = load_examples(folder / "test", retrieval="all")
    assert [(e.id, e.input) for e in examples] == [
        ("test-0", "a"),
        ("test-1", "a"),
        ("test-2", "b"),
    ]
    assert len(load_examples(folder / "test", retrieval="all", limit=1)) == 1
    with pytest.raises(DataError, match=r"one split \(test, val found\); name it"):
        load_examples(folder)
    with pytest.raises(DataError, match="no such file, folder or split"):
        load_examples(folder / "train")


def test_abstracts_are_shown_as_far_as_the_benchmark_shows_them(tmp_path):
    row = json.loads(json.dumps(ROWS["abstract_generation_user"]))
    row["profile"][2]["abstract"] = " ".join(["heads"] + [f"w{i}" for i in range(900)])
    path = write(tmp_path / "abstract_generation_user" / "val.json", [row])
    best = load_examples(path)[0].profile[0]["abstract"]
    assert len(best.split()) == 750 and best.endswith(" w748")


def test_recent_is_last_in_the_profile():
    profile = [{"summary": str(i), "content": "x"} for i in range(4)]
    found = retrieve("LongLaMP-4", "any", profile, 2, "recent")
    assert [item["summary"] for item in found] == ["3", "2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"author": None}, "[0]: has none of the fields user_id, reviewerId, author, name"),
        ({"profile": None}, '[0]: "profile" must be a list'),
        ({"profile": [{"summary": "s"}]}, 'profile[0] lacks the field "content"'),
        ({"input": None}, '[0]: "input" must be a string'),
        ({"output": None}, "[0]: example 'test-0' has no response"),
    ],
)
def test_bad_rows_are_named(tmp_path, changes, message):
    row = ROWS["topic_writing_user"] | changes
    path = write(tmp_path / "topic_writing_user" / "test.json", [row])
    with pytest.raises(DataError, match=re.escape(message)):
        load_examples(path)


def test_parquet_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = tmp_path / "topic_writing_user" / "test.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1")
    with pytest.raises(PrefheadsError, match=r"pip install \"prefheads\[parquet\]\""):
        load_examples(path)


def test_damaged_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "topic_writing_user" / "test.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"test\.parquet: cannot be read as Parquet"):
        load_examples(path)


def test_names():
    for name in ("LongLaMP-4", "longlamp_4", "topic_writing", "topic_writing_temporal"):
        assert task_name(name) == "LongLaMP-4"
    with pytest.raises(DataError, match="unknown task 'LongLaMP-5'"):
        task_name("LongLaMP-5")
