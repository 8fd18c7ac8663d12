"""Nobody whom heads were found with is tested on, whatever is loaded of whom, in which order.

The files name no users, as LaMP's do; who wrote what is known here by the ids alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from prefheads.data.example import Example, load_examples, split_users, spread
from prefheads.data.people import People, Seen, mark
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.prepare import Choice, choose_samples, make_folds
from prefheads.steerer.files import load_seen

PEOPLE = 14
TEXT = "An article of some length that person {} once wrote about subject number {}."


def persons(examples: Iterable[Example]) -> set[str]:
    """Who they really are."""
    return {e.id.split("-")[0] for e in examples}


def write(folder: Path, split: str, rng: random.Random) -> Path:
    """One to four samples a person, shuffled; each shares one text with the next one's profile, so
    that the first and the last are joined by those between them alone."""
    questions = []
    for person in range(PEOPLE):
        # The files share text 1 of a person, and maybe others.
        first, n = (0, 1 + person % 4) if split == "dev" else (1, 4)
        for k in range(n):
            texts = [TEXT.format(person, first + k + i) for i in range(2)]
            profile = [{"id": str(i), "title": "T", "text": text} for i, text in enumerate(texts)]
            profile += [{"id": "x", "title": "T", "text": "Thanks!"}]
            asked = f"Generate a headline for the following article: {rng.random()}"
            questions.append({"id": f"p{person:02}-{split}{k}", "input": asked, "profile": profile})
    rng.shuffle(questions)
    folder.mkdir(parents=True, exist_ok=True)
    golds = [{"id": q["id"], "output": "A headline"} for q in questions]
    (folder / f"{split}_questions.json").write_text(json.dumps(questions))
    (folder / f"{split}_outputs.json").write_text(json.dumps({"task": "LaMP_4", "golds": golds}))
    return folder / f"{split}_questions.json"


def loading(rng: random.Random) -> dict[str, object]:
    return {
        "items": rng.randint(1, 3),
        "retrieval": rng.choice(["recent", "random", "all", "random", "bm25"]),
        "seed": rng.randint(0, 9),
    }


@pytest.mark.parametrize("draw", range(200))
def test_no_leak(draw: int, tmp_path: Path) -> None:
    rng = random.Random(draw)
    dev, train = (write(tmp_path / "LaMP_4", split, rng) for split in ("dev", "train"))
    fitted_on = rng.choice([dev, train])
    limit = rng.choice([None, rng.randint(9, 20)])
    how = loading(rng)
    if how["retrieval"] == "recent":
        how["retrieval"] = "all"  # nothing here has a date
    examples = load_examples(fitted_on, limit=limit, **how)
    cuts = sorted(rng.sample(range(1, 10), 2))
    shares = [cuts[0] / 10, (cuts[1] - cuts[0]) / 10, (10 - cuts[1]) / 10]
    discovery, calibration, _ = split_users(examples, shares, seed=rng.randint(0, 9))
    used = [*spread(discovery, rng.randint(1, 5)), *spread(calibration, rng.randint(2, 5))]
    seen = Seen.from_dict(json.loads(json.dumps(Seen.of(used).to_dict())))

    write(tmp_path / "again" / "LaMP_4", "dev", rng)  # in another order
    again = tmp_path / "again" / "LaMP_4" / "dev_questions.json"
    for path in (dev, again):
        those = load_examples(path, limit=rng.choice([None, rng.randint(1, 20)]), **how)
        left = seen.unseen(those)
        assert not persons(left) & persons(used)
        # Nobody is left out without a reason, either.
        assert persons(left) == persons(those) - persons(used)
        chosen = load_examples(path, select=seen.unseen, **how)
        assert not persons(chosen) & persons(used) and all(e.profile for e in chosen)

    choice = Choice(
        limit=rng.choice([None, rng.randint(2, 12)]),
        discovery=rng.randint(2, 5),
        calibration=rng.randint(2, 5),
        seed=rng.randint(0, 9),
        loading=how,
    )
    if rng.random() < 0.3:
        train.unlink()
    prepared = choose_samples(dev, "LaMP-4", choice, needs_heads=True)
    assert 1 <= len(prepared.folds) <= 2
    for fold in prepared.folds:
        assert fold.test and fold.pool
        assert not persons(fold.test) & persons(fold.pool)
        assert len(persons(fold.pool)) <= choice.discovery + choice.calibration + PEOPLE
        assert all(e.profile for e in (*fold.test, *fold.pool))
    tested = [e.id for fold in prepared.folds for e in fold.test]
    assert len(set(tested)) == len(tested)
    with_heads = choose_samples(dev, "LaMP-4", choice, needs_heads=True, seen=seen)
    assert not persons(with_heads.folds[0].test) & persons(used)


def test_people_of_two_files_are_matched(tmp_path: Path) -> None:
    """As in a time-based split: later texts of the same people, under other ids."""
    rng = random.Random(0)
    dev, train = (write(tmp_path / "LaMP_4", split, rng) for split in ("dev", "train"))
    early, late = load_examples(train), load_examples(dev)
    assert not {e.user_id for e in early} & {e.user_id for e in late}
    some = [e for e in early if e.id.startswith(("p01-", "p02-", "p03-"))]
    left = Seen.of(some).unseen(late)
    assert persons(late) - persons(left) == {"p01", "p02", "p03"}


def test_names_do_not_depend_on_what_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "LaMP_4", "dev", random.Random(3))
    everybody = {e.id: (e.user_id, e.marks) for e in load_examples(path)}
    for limit in (1, 5, 11):
        for e in load_examples(path, limit=limit, items=1):
            assert (e.user_id, e.marks) == everybody[e.id]
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(rows[::-1]))
    assert {e.id: (e.user_id, e.marks) for e in load_examples(path)} == everybody


def test_a_sample_is_known_by_its_id_and_a_person_by_others(tmp_path: Path) -> None:
    rows = [Example("a", "u", (), "", None), Example("b", "u", (), "", None)]
    rows += [Example("c", "v", (), "", None), Example("d", "w", (), "", None, marks="0a 0b")]
    assert [e.id for e in Seen.of(rows[:1]).unseen(rows)] == ["c", "d"]
    renamed = [replace(e, user_id="other") for e in rows]
    assert Seen.of(rows[:1]).unseen(renamed) == []  # whose sample it is, is another's too
    bridge = Example("e", "x", (), "", None, marks="0b 0c")
    far = Example("f", "y", (), "", None, marks="0c")
    assert Seen.of(rows[3:]).unseen([rows[2], far]) == [rows[2], far]
    assert Seen.of(rows[3:]).unseen([rows[2], far, bridge]) == [rows[2]]
    assert Seen().unseen(rows) == rows


def test_marks_are_the_same_in_every_run() -> None:
    text = "The same text in every process, long enough to be one's own."
    assert mark(f"  {text}\n") == mark(text) == 7725499639369615022
    assert mark("Too short to tell.") is None
    people = People()
    people.add("b", [1, 2])
    people.add("c", [3])
    people.add("a", [2, 3])
    assert {people.of(x) for x in "abc"} == {"a"}
    assert people.marks(["b"]) == {"a": "0000000000000001 0000000000000002 0000000000000003"}


def test_a_split_that_all_people_are_in_is_evaluated_crosswise(tmp_path: Path) -> None:
    rng = random.Random(1)
    dev = write(tmp_path / "LaMP_4", "dev", rng)
    write(tmp_path / "LaMP_4", "train", rng)
    choice = Choice(discovery=3, calibration=3, loading={"retrieval": "all"})
    prepared = choose_samples(dev, "LaMP-4", choice, needs_heads=True)
    assert len(prepared.folds) == 2 and prepared.heads_from == "train"
    few = replace(choice, limit=4)
    assert len(choose_samples(dev, "LaMP-4", few, needs_heads=True).folds) == 1
    forced = replace(choice, force=True)
    assert len(choose_samples(dev, "LaMP-4", forced, needs_heads=True).folds) == 1
    for path in (dev, dev.with_name("train_questions.json")):
        rows = [r for r in json.loads(path.read_text()) if r["id"] < "p02"]
        path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="too few"):
        choose_samples(dev, "LaMP-4", choice, needs_heads=True)


@pytest.mark.parametrize("where", ["fit", "test"])
def test_retrieval_looks_for_what_is_used_alone(where, tmp_path: Path, monkeypatch) -> None:
    from prefheads.cli import fit
    from prefheads.data import example as module

    path, asked, stock = write(tmp_path / "LaMP_4", "dev", random.Random(2)), [], module.retrieve

    def counted(*arguments, key: str, **options):
        asked.append(key)
        return stock(*arguments, key=key, **options)

    monkeypatch.setattr(module, "retrieve", counted)
    if where == "fit":

        def use(known: list[Example]) -> fit.Parts:
            return fit._used(known, (0.5, 0.3, 0.2), None, (3, 2), 0)

        everything, found, held = fit._load(path, use, {"retrieval": "bm25"})
        clustered, *_ = use(everything)
        assert sorted(asked) == sorted({e.id for e in (*clustered, *found, *held)})
        assert (len(found), len(held)) == (3, 2) and len(asked) < len(everything)
        assert len(everything) == len(json.loads(path.read_text()))
        assert {e.id for e in everything if e.profile} == set(asked)
    else:
        choice = Choice(limit=3, discovery=2, calibration=2, loading={"retrieval": "bm25"})
        (fold,) = choose_samples(path, "LaMP-4", choice, needs_heads=True).folds
        assert sorted(asked) == sorted(e.id for e in (*fold.test, *fold.pool))
        assert len(fold.test) == 3


def test_fields_of_a_users_own_name_nobody(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "user_id": "alice", "profile": [{"text": "t"}], "input": "i", "output": "o"}
        | {"marks": "good", "anonymous": True}
        for i in range(3)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = load_examples(path)
    assert {(e.user_id, e.marks) for e in examples} == {("alice", "")}
    assert Seen.of(examples[:1]).unseen(examples) == []


@pytest.mark.parametrize(
    "damaged",
    [
        {"samples": [], "users": []},
        {"samples": [], "users": [], "marks": "0a"},
        {"samples": [], "users": [1], "marks": []},
        {"samples": [], "users": [], "marks": ["no number"]},
    ],
)
def test_a_damaged_record_of_the_seen_is_refused(damaged, tmp_path: Path) -> None:
    (tmp_path / "seen.json").write_text(json.dumps(damaged))
    with pytest.raises(ArtifactError, match=r"seen\.json: damaged"):
        load_seen(tmp_path)


def test_strangers_in_the_other_file_may_join_two_of_one() -> None:
    """a with ab, b with bc: somebody who is neither evaluated nor used is what joins them."""
    marks = {"t": "0a", "d": "0b 0c", "p": "0a 0b", "q": "0c"}
    texts = {
        key: " ".join(f"{int(m, 16):016x}" for m in told.split()) for key, told in marks.items()
    }
    made = {k: Example(k, k, (), "", "o", "LaMP-4", marks=m) for k, m in texts.items()}
    others = [Example(f"n{i}", f"n{i}", (), "", "o", "LaMP-4") for i in range(9)]
    (fold,) = make_folds(
        [made["t"], made["d"]],
        [made["p"], made["q"], *others],
        Choice(discovery=2, calibration=2, limit=1),
    )
    assert [e.id for e in fold.test] in (["t"], ["d"])
    assert not {"p", "q"} & {e.id for e in fold.pool}


def test_few_strangers_are_not_what_heads_are_found_on() -> None:
    """Where nearly all people are in both splits, they are halved."""
    dev = [Example(f"d{i}", f"u{i}", (), "", "o", "LaMP-4") for i in range(40)]
    train = [Example(f"t{i}", f"u{i}", (), "", "o", "LaMP-4") for i in range(45)]
    folds = make_folds(dev, train, Choice(discovery=8, calibration=10))
    assert [len({e.user_id for e in fold.pool}) for fold in folds] == [18, 18]
