"""Counting what data holds: against counts by hand, from a file up to a folder of tasks."""

import json
from pathlib import Path

import pytest

from prefheads.cli.main import run
from prefheads.errors import DataError
from prefheads.models.bundled import people_path
from prefheads.tasks.statistics import Spread, task_statistics

INPUTS = {"LaMP_7": "Paraphrase: one two", "LaMP_3": "What score? review: fine"}


def split(folder, task, ids, name="dev", golds=True, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    questions = [
        {
            "id": key,
            "input": INPUTS[task],
            "profile": [{"text": "a b", "score": 1}] * int(key[-1]),
        }
        | fields
        for key in ids
    ]
    (folder / f"{name}_questions.json").write_text(json.dumps(questions))
    if golds:
        content = {"task": task, "golds": [{"id": key, "output": "x " * int(key)} for key in ids]}
        (folder / f"{name}_outputs.json").write_text(json.dumps(content))


def test_a_file_is_counted(tmp_path):
    split(tmp_path, "LaMP_7", ["1", "2", "6"])
    (row,) = task_statistics([tmp_path / "dev_questions.json"])
    assert (row.task, row.kind, row.setting, row.splits) == ("LaMP-7", "Gen.", "user", ("dev",))
    assert (row.users, row.instances) == (3, 3)
    assert row.profile_items == row.output_words == Spread(3.0, 2.0)
    assert row.input_words == Spread(3.0, 3.0)


def test_splits_of_a_folder_are_counted_together_and_users_once(tmp_path):
    folder = tmp_path / "time" / "LaMP_7"
    split(folder / "train", "LaMP_7", ["1", "2"], "train", user_id=5)
    split(folder / "dev", "LaMP_7", ["3"], "dev", user_id="5")
    split(folder / "test", "LaMP_7", ["4"], "test", golds=False)
    (row,) = task_statistics([folder])
    assert (row.users, row.instances, row.setting) == (2, 4, "time")
    assert set(row.splits) == {"train", "dev", "test"}
    assert row.output_words == Spread(2.0, 2.0) and row.profile_items == Spread(2.5, 2.5)


def test_tasks_and_settings_of_a_root_are_told_apart(tmp_path):
    split(tmp_path / "LaMP_7", "LaMP_7", ["1"])
    split(tmp_path / "LaMP_3", "LaMP_3", ["1", "2"], golds=False)
    split(tmp_path / "time" / "LaMP_7" / "dev", "LaMP_7", ["1"])
    reviews = tmp_path / "product_review_temporal"
    reviews.mkdir()
    review = {"reviewerId": "r", "input": "a b", "output": "c", "profile": [{}]}
    for name in ("val-00000-of-00002.json", "val-00001-of-00002.json", "test.json"):
        (reviews / name).write_text(json.dumps([review]))
    rows = task_statistics([tmp_path, tmp_path / "LaMP_7"])  # nothing counts twice
    assert [(r.task, r.setting, r.kind, r.instances) for r in rows] == [
        ("LaMP-3", "user", "Reg.", 2),
        ("LaMP-7", "time", "Gen.", 1),
        ("LaMP-7", "user", "Gen.", 1),
        ("LongLaMP-3", "time", "Gen.", 3),
    ]
    assert rows[0].output_words is None
    assert (rows[3].users, rows[3].splits) == (1, ("test", "val"))


def test_examples_of_no_task(tmp_path):
    path = tmp_path / "people.jsonl"
    row = {"id": "1", "user_id": "u", "profile": [{"text": "t"}], "input": "a b", "output": "c"}
    path.write_text("\n".join(json.dumps(row | {"id": str(i)}) for i in range(3)))
    (found,) = task_statistics([path])
    assert (found.task, found.users, found.instances) == (None, 1, 3)


def test_folder_without_data(tmp_path):
    with pytest.raises(DataError, match="holds no"):
        task_statistics([tmp_path])


def test_command(tmp_path, capsys):
    split(tmp_path / "LaMP_7", "LaMP_7", ["1", "2", "6"])
    split(tmp_path / "LaMP_3", "LaMP_3", ["2"], golds=False)
    assert run(["data", "stats", str(tmp_path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert second["profile_items"] == {"mean": 3.0, "median": 2.0}
    assert (first["task"], first["output_words"]) == ("LaMP-3", None)
    assert run(["data", "stats", str(tmp_path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "LaMP-7" in line)
    assert "Gen." in line and "3.0 / 2" in line
    assert run(["data", "stats", str(tmp_path / "none.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_bundled_people_by_name_and_as_a_file(cli, tmp_path: Path) -> None:
    out = tmp_path / "people.jsonl"
    assert cli("data", "people", "--out", out) == (0, f"{out}\n", "")
    assert out.read_bytes() == people_path().read_bytes()
    again = cli("data", "people", "--out", out)
    assert again.code == 2 and again.err == f"error: {out}: is there already; give another name\n"
    (named,), (written,) = (
        json.loads(cli("data", "stats", p, "--json").out) for p in ("bundled", out)
    )
    assert (named["users"], named["instances"]) == (24, 240)
    assert {k: v for k, v in named.items() if k != "splits"} == {
        k: v for k, v in written.items() if k != "splits"
    }


def test_samples_that_share_a_text_are_one_authors(tmp_path):
    """Five samples in two splits, of three people: long texts tell them, short ones do not."""
    article = "article: a story of the sea, of {} and of those who wait ashore for them"
    whose = {"dev": ["anna", "anna", "ben"], "train": ["ben", "cleo"]}
    for split_name, people in whose.items():
        (tmp_path / "LaMP_4").mkdir(exist_ok=True)
        questions = [
            {
                "id": f"{split_name} {i}",
                "input": f"Generate a headline for the following {article.format(f'{person} {i}')}",
                "profile": [
                    {"id": "1", "title": "Home", "text": article.format(person)},
                    {"id": "2", "title": "Home", "text": "too short to tell"},
                ],
            }
            for i, person in enumerate(people)
        ]
        (tmp_path / "LaMP_4" / f"{split_name}_questions.json").write_text(json.dumps(questions))
    (found,) = task_statistics([tmp_path])
    assert (found.users, found.instances, found.splits) == (3, 5, ("dev", "train"))
