"""Loading, checking and splitting examples."""

import json
import re

import pytest

from prefheads.data.example import (
    Example,
    load_examples,
    other_profiles,
    split_users,
    without_profile,
)
from prefheads.errors import DataError

NAN = float("nan")


def row(**changes):
    base = {"id": "1", "user_id": "u", "profile": [{"text": "p"}], "input": "in", "output": "out"}
    return base | changes


def jsonl(tmp_path, *lines):
    path = tmp_path / "people.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text), encoding="utf-8")
    return path


def lamp(folder, task="LaMP_7", golds=("g1", "g2"), split="dev"):
    """A folder with two official questions, three tweets each."""
    tweets = [{"id": str(i), "text": text} for i, text in enumerate(["rain", "sun", "tea"])]
    questions = [
        {"id": "10", "input": "Paraphrase: sun", "profile": tweets},
        {"id": "20", "input": "Paraphrase: tea", "profile": tweets},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}_questions.json"
    path.write_text(json.dumps(questions))
    if golds is not None:
        ids = ["10", "20"][: len(golds)]
        content = {
            "task": task,
            "golds": [{"id": i, "output": g} for i, g in zip(ids, golds, strict=True)],
        }
        (folder / f"{split}_outputs.json").write_text(json.dumps(content))
    return path


def test_jsonl_rows_become_examples(tmp_path):
    path = jsonl(tmp_path, row(), "", row(id="2", user_id="v", output="O\u2028K", note="more"))
    first, second = load_examples(path)
    assert first == Example("1", "u", ({"text": "p"},), "in", "out", None)
    assert (second.id, second.user_id, second.output) == ("2", "v", "O\u2028K")


def test_line_separators_inside_strings_do_not_end_a_line(tmp_path):
    path = jsonl(tmp_path, json.dumps(row(output="a\u2028b"), ensure_ascii=False))
    assert load_examples(str(path))[0].output == "a\u2028b"


def test_byte_order_mark_is_dropped(tmp_path):
    path = jsonl(tmp_path, "\ufeff" + json.dumps(row()))
    assert load_examples(path)[0].id == "1"


def test_list_of_dicts_and_examples():
    ready = Example("2", "v", ({"text": "p"},), "in", None, "LaMP-7")
    loaded = load_examples([row(), ready], require_output=False)
    assert loaded[1] is ready and loaded[0].id == "1"


def test_generic_profiles_are_kept_whole_and_lamp_rows_are_reduced():
    profile = [{"text": f"word{i}"} for i in range(9)]
    plain, tagged = load_examples(
        [row(profile=profile), row(id="2", profile=profile, task="lamp_7", input="x: word4")],
        items=3,
    )
    assert len(plain.profile) == 9
    assert tagged.task == "LaMP-7"
    assert len(tagged.profile) == 3 and tagged.profile[0] == {"text": "word4"}


def test_unknown_names_of_other_tasks_are_generic():
    assert load_examples([row(task="mine")])[0].task == "mine"


def test_numbers_in_items_are_printed():
    item = {"text": "t", "score": 5}
    assert load_examples([row(profile=[item])])[0].profile == ({"text": "t", "score": "5"},)


@pytest.mark.parametrize("how", ["file", "folder"])
def test_lamp_pair(tmp_path, how):
    path = lamp(tmp_path)
    examples = load_examples(path if how == "file" else tmp_path, items=2)
    assert [e.output for e in examples] == ["g1", "g2"]
    assert [(e.id, e.user_id, e.task) for e in examples] == [
        ("10", "10", "LaMP-7"),
        ("20", "20", "LaMP-7"),
    ]
    assert [len(e.profile) for e in examples] == [2, 2]
    assert [e.profile[0]["text"] for e in examples] == ["sun", "tea"]


def test_lamp_golds_from_elsewhere(tmp_path):
    path = lamp(tmp_path / "q", golds=None)
    lamp(tmp_path / "o", golds=("a", "b"))
    examples = load_examples(path, outputs=tmp_path / "o" / "dev_outputs.json")
    assert [e.output for e in examples] == ["a", "b"]


def test_lamp_without_golds_takes_its_task_from_the_folder(tmp_path):
    path = lamp(tmp_path / "LaMP_7", golds=None, split="test")
    examples = load_examples(path, require_output=False)
    assert [(e.task, e.output) for e in examples] == [("LaMP-7", None)] * 2


def test_retrieval_reaches_the_examples(tmp_path):
    lamp(tmp_path)
    whole = load_examples(tmp_path, retrieval="all")[0].profile
    drawn = [load_examples(tmp_path, retrieval="random", items=2, seed=s)[0] for s in range(9)]
    assert all(len(e.profile) == 2 and all(i in whole for i in e.profile) for e in drawn)
    assert len({str(e.profile) for e in drawn}) > 1
    assert drawn[4] == load_examples(tmp_path, retrieval="random", items=2, seed=4)[0]


def test_limit_takes_the_first(tmp_path):
    path = lamp(tmp_path, golds=("only the first",))
    assert [e.id for e in load_examples(path, limit=1)] == ["10"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "people.jsonl:2: not JSON"),
        ("[1]", "people.jsonl:2: must be an object"),
        ({k: v for k, v in row(id="2").items() if k != "input"}, ':2: "input" is missing'),
        ({k: v for k, v in row(id="2").items() if k != "profile"}, ':2: "profile" is missing'),
        (row(id=2), ':2: "id" must be a string, not int'),
        (row(id="2", output=["x"]), ':2: "output" must be a string, not list'),
        (row(id="2", profile="text"), ':2: "profile" must be a list'),
        (row(id="2", profile=["text"]), ":2: profile[0] must be an object"),
        (row(id="2", profile=[{"text": None}]), ':2: profile[0]: "text" must be a string'),
        (row(id="2", profile=[{"title": "t"}]), 'profile[0] lacks the field "text"'),
        (row(id="2", profile=[]), ":2: example '2' has an empty profile"),
        (row(id="2", output=" "), ":2: example '2' has no response"),
        (row(id="2", output=None), ":2: example '2' has no response"),
        (row(id="1"), ":2: id '1' is there twice"),
        (row(id="2", input="\ud800"), ':2: "input" holds half a character'),
        (row(id="2", task="LaMP-9"), "unknown task 'LaMP-9'"),
        (row(id="2", task="LaMP-7"), ':2: the input has no ":"'),
    ],
)
def test_bad_row_is_named_by_line(tmp_path, line, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        load_examples(jsonl(tmp_path, row(), line))
    assert "\n" not in str(error.value)


def test_bad_row_of_a_list_is_named_by_index():
    with pytest.raises(DataError, match=re.escape('example [1]: "input" must be a string')):
        load_examples([row(), row(id="2", input=3)])


def test_bad_files(tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*nowhere\.jsonl"):
        load_examples(tmp_path / "nowhere.jsonl")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(DataError, match=r"latin\.jsonl: not UTF-8 \(byte 8\)"):
        load_examples(latin)
    with pytest.raises(DataError, match="holds no examples"):
        load_examples(jsonl(tmp_path, ""))
    with pytest.raises(DataError, match="exactly one"):
        load_examples(tmp_path)
    with pytest.raises(DataError, match="outputs belong to"):
        load_examples([row()], outputs="golds.json")
    with pytest.raises(DataError, match="at least 1"):
        load_examples([row()], limit=0)


def test_bad_lamp_files(tmp_path):
    with pytest.raises(DataError, match=r"dev_outputs\.json: no gold for id '20'"):
        load_examples(lamp(tmp_path / "a", golds=("one",)))
    with pytest.raises(DataError, match=r"no such file: .*dev_outputs\.json"):
        load_examples(lamp(tmp_path / "b", golds=None))
    with pytest.raises(DataError, match="call the folder LaMP_<n>"):
        load_examples(lamp(tmp_path / "c", golds=None), require_output=False)
    with pytest.raises(
        DataError, match=r"questions\.json\[0\]: profile\[0\]: .*title|lacks.*title"
    ):
        load_examples(lamp(tmp_path / "d", task="LaMP_4"))
    broken = lamp(tmp_path / "e")
    broken.write_text('[\n{"id": }]')
    with pytest.raises(DataError, match=r"dev_questions\.json:2: not JSON"):
        load_examples(broken)


def people(n_users: int, each: int = 2) -> list[Example]:
    return [
        Example(f"{u}-{i}", f"user{u}", ({"text": f"of {u} in {i}"},), "in", "out")
        for u in range(n_users)
        for i in range(each)
    ]


def test_split_keeps_users_together_and_loses_nobody():
    examples = people(20)
    parts = split_users(examples)
    users = [{e.user_id for e in part} for part in parts]
    assert [len(u) for u in users] == [10, 5, 5]
    assert not (users[0] & users[1] or users[0] & users[2] or users[1] & users[2])
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in examples)


def test_split_depends_on_seed_and_not_on_order():
    examples = people(20)
    ids = [{e.id for e in part} for part in split_users(examples, seed=3)]
    assert ids == [{e.id for e in part} for part in split_users(examples[::-1], seed=3)]
    assert ids != [{e.id for e in part} for part in split_users(examples, seed=4)]


def test_every_part_gets_a_user():
    assert [len(part) for part in split_users(people(3, each=1))] == [1, 1, 1]
    assert [len(p) for p in split_users(people(4, each=1), (0.01, 0.98, 0.01))] == [1, 2, 1]
    with pytest.raises(DataError, match="2 users cannot be split into 3 parts"):
        split_users(people(2))


@pytest.mark.parametrize(
    "fractions", [(), (0.5, 0.4), (0.7, 0.7), (1.5, -0.5), (1.0, 0.0), (0.5, NAN), (NAN, 0.5)]
)
def test_fractions_must_be_shares(fractions):
    with pytest.raises(DataError, match="sum to 1"):
        split_users(people(9), fractions)


@pytest.mark.parametrize("n_users", [2, 3, 10])
def test_other_profiles_are_never_ones_own(n_users):
    examples = people(n_users)
    others = other_profiles(examples, seed=1)
    assert [e.id for e in others] == [e.id for e in examples]
    for own, other in zip(examples, others, strict=True):
        assert f"of {own.user_id.removeprefix('user')} " not in other.profile[0]["text"]
        assert other == own.with_profile(other.profile)
    assert len({other.profile[0]["text"] for other in others}) == n_users
    assert others == other_profiles(examples, seed=1)
    shuffled = {e.id: e for e in other_profiles(examples[::-1], seed=1)}
    assert others == [shuffled[e.id] for e in examples]


def test_other_profiles_stay_within_the_task():
    tweets = [Example(str(i), str(i), ({"text": "t"},), "in", "o", "LaMP-7") for i in range(2)]
    news = [Example(f"n{i}", f"n{i}", ({"title": "t"},), "in", "o", "LaMP-4") for i in range(2)]
    for example in other_profiles(tweets + news):
        assert list(example.profile[0]) == (["text"] if example.task == "LaMP-7" else ["title"])


def test_other_profiles_needs_two_users():
    with pytest.raises(DataError, match="at least two users"):
        other_profiles(people(1))


def test_without_profile():
    example = people(1)[0]
    assert without_profile(example) == Example("0-0", "user0", (), "in", "out")
