"""The official files of LaMP: read piece by piece, ids and users as they come, damage located."""

import json
import random
import re
import sys
import tracemalloc

import pytest

from prefheads.data import stream
from prefheads.data.example import load_examples
from prefheads.errors import DataError, PrefheadsError
from prefheads.tasks.lamp import read_golds, read_lamp

TWEETS = [{"id": str(i), "text": f"word{i}"} for i in range(3)]


def write(folder, questions, golds, task="LaMP_7", split="dev"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_outputs.json").write_text(json.dumps({"task": task, "golds": golds}))
    path = folder / f"{split}_questions.json"
    path.write_text(questions if isinstance(questions, str) else json.dumps(questions))
    return path


def question(key, **changes):
    return {"id": key, "input": "Paraphrase: word1", "profile": TWEETS} | changes


def test_numbers_are_ids(tmp_path):
    path = write(tmp_path, [question(7), question("8")], [
        {"id": "7", "output": "a"}, {"id": 8, "output": "b"},
    ])  # fmt: skip
    assert [(e.id, e.user_id, e.output) for e in load_examples(path)] == [
        ("7", "7", "a"),
        ("8", "8", "b"),
    ]


def test_users_of_the_split_by_time(tmp_path):
    questions = [question("1", user_id=12), question("2", user_id="12"), question("3")]
    golds = [{"id": key, "output": "x"} for key in "123"]
    users = [e.user_id for e in load_examples(write(tmp_path, questions, golds))]
    assert users == ["12", "12", "3"]


def test_scores_are_printed_as_they_are_written(tmp_path):
    item = '{"id": 1, "text": "good", "score": 4.0}'
    text = f'[{{"id": "1", "input": "review: good", "profile": [{item}]}}]'
    path = write(tmp_path, text, [{"id": "1", "output": "4"}], task="LaMP_3")
    assert load_examples(path)[0].profile[0]["score"] == "4.0"


def test_byte_order_mark(tmp_path):
    path = write(tmp_path, "\ufeff" + json.dumps([question("1")]), [{"id": "1", "output": "x"}])
    assert len(load_examples(path)) == 1


@pytest.mark.parametrize("place", ["LaMP_7/test/test_questions.json", "LaMP-7_test_questions.json"])
def test_task_of_a_split_without_golds(tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([question("1")]))
    assert load_examples(path, require_output=False)[0].task == "LaMP-7"


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ('{"id": "1"}', "dev_questions.json: must be a list of questions"),
        ("<html>not found</html>", "dev_questions.json: must be a list of questions"),
        ("", "dev_questions.json: must be a list of questions"),
        (f'[{json.dumps(question("1"))},\n {{"id": ]', "dev_questions.json:2: not JSON"),
        ('[{"id": "1", "input": "x: y", ', "dev_questions.json:1: not JSON"),
        ("[3]", 'dev_questions.json[0]: must be an object with an "id"'),
        ([{"id": None}], 'dev_questions.json[0]: must be an object with an "id"'),
        ([question("1"), question("1", input=3)], 'questions.json[1]: "input" must be a string'),
        ([question("1"), question("1", profile=3)], 'questions.json[1]: "profile" must be a list'),
        ([question("1"), question("2")], "dev_outputs.json: no gold for id '2'"),
        ([question("1"), question(1)], "dev_questions.json[1]: id '1' is there twice"),
    ],
)
def test_damaged_questions(tmp_path, questions, message):
    path = write(tmp_path, questions, [{"id": "1", "output": "x"}])
    with pytest.raises(DataError, match=re.escape(message)) as error:
        load_examples(path)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text(tmp_path):
    path = write(tmp_path, [question("1")], [{"id": "1", "output": "x"}])
    path.write_bytes(path.read_bytes().replace(b"word1", b"word\xe9", 1))
    with pytest.raises(DataError, match=r"dev_questions\.json: not UTF-8 \(byte \d+\)"):
        load_examples(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], 'must be an object with "task"'),
        ({"golds": []}, 'must be an object with "task"'),
        ({"task": "LaMP_7"}, '"golds" must be a list'),
        ({"task": "LaMP_7", "golds": {"1": "x"}}, '"golds" must be a list'),
        ({"task": "LaMP_7", "golds": [{"id": "1"}]}, "golds[0] must have"),
        ({"task": "LaMP_7", "golds": [{"id": True, "output": "x"}]}, "golds[0] must have"),
        ({"task": "LaMP_9", "golds": [{"id": "1", "output": "x"}]}, "unknown task 'LaMP_9'"),
    ],
)
def test_damaged_golds(tmp_path, content, message):
    path = tmp_path / "dev_outputs.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=re.escape(message)):
        read_golds(path)


def test_a_missing_parser_is_told(tmp_path, monkeypatch):
    path = write(tmp_path, [question("1")], [{"id": "1", "output": "x"}])
    monkeypatch.setitem(sys.modules, "ijson", None)
    with pytest.raises(PrefheadsError, match=r'ijson is not installed.*"prefheads\[eval\]"'):
        load_examples(path)


def test_damage_in_a_large_file_is_located_about(tmp_path, monkeypatch):
    questions = json.dumps([question(str(i)) for i in range(5000)])
    path = write(tmp_path, questions[:-50], [{"id": str(i), "output": "x"} for i in range(5000)])
    monkeypatch.setattr(stream, "WHOLE", 10)
    with pytest.raises(DataError, match=rf"not JSON near byte {len(questions) - 50} \(premature"):
        load_examples(path)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of 30 MB: a few hundred users with a hundred items each."""
    folder = tmp_path_factory.mktemp("large") / "LaMP_4"
    rng = random.Random(0)
    words = [f"w{i}" for i in range(500)]
    texts = [" ".join(rng.choices(words, k=150)) for _ in range(300)]
    golds, parts, size = [], [], 0
    while size < 30e6:
        profile = [{"id": str(i), "title": "t", "text": rng.choice(texts)} for i in range(100)]
        key = str(len(golds))
        row = {"id": key, "input": "Headline for the article: w1 w2", "profile": profile}
        parts.append(json.dumps(row))
        size += len(parts[-1])
        golds.append({"id": key, "output": "x"})
    return write(folder, "[" + ",\n".join(parts) + "]", golds, task="LaMP_4")


def test_memory_does_not_grow_with_the_file(large):
    size = large.stat().st_size
    load_examples(large, limit=1)  # what is imported on first use
    tracemalloc.start()
    count = sum(1 for _ in read_lamp(large, None, True))
    read_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    examples = load_examples(large, items=2, retrieval="random")
    kept_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(examples) == count > 200
    assert size > 30e6 and read_peak < size / 15
    assert kept_peak < size / 10  # 2 of 100 items, as Python objects


def test_limit_stops_reading_where_users_are_named(large, tmp_path):
    """Where they are not, any sample may tell that two others are of one person."""
    damaged = large.with_name("damaged_questions.json")
    damaged.write_bytes(large.read_bytes()[:-10_000_000])
    outputs = large.with_name("dev_outputs.json")
    for limit in (3, None):
        with pytest.raises(DataError, match="not JSON"):
            load_examples(damaged, outputs=outputs, retrieval="all", limit=limit)
    rows = [
        {
            "id": f"{i}",
            "user_id": f"u{i}",
            "input": "Headline for the article: it",
            "profile": [{"text": "x", "title": "y"}],
        }
        for i in range(50)
    ]
    named = tmp_path / "dev_questions.json"
    named.write_text(json.dumps(rows)[:-100])
    golds = [{"id": f"{i}", "output": "z"} for i in range(50)]
    (tmp_path / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_4", "golds": golds}))
    assert [e.user_id for e in load_examples(named, limit=3)] == ["u0", "u1", "u2"]
    with pytest.raises(DataError, match="not JSON"):
        load_examples(named)
