"""Judgements on disk: what has been answered once survives whatever comes later.

Votes can be taken back and come from several people at once, so they are in a database; answers of
a language model are partial results of long work like others.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefheads.checkpoint import Checkpoint
from prefheads.errors import ArtifactError
from prefheads.judge.pairs import Pair, Study
from prefheads.storage import writable_dir

TIE = "tie"
_VOTES, _ANSWERS = 0x50485631, 0x50484131  # application ids: other files are not ours
# Each statement is on disk when it returns.
_DURABLE = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
_SCHEMA = f"""{_DURABLE}
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS study
    (only INTEGER PRIMARY KEY CHECK (only = 1), description TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS votes
    (pair TEXT NOT NULL, annotator TEXT NOT NULL, choice TEXT NOT NULL, first TEXT NOT NULL,
    at TEXT NOT NULL, UNIQUE (pair, annotator));
PRAGMA application_id={_VOTES};
COMMIT;
"""
_OTHER = "pairs (another --seed, --n or texts)"
_PARTS = {
    "task": "tasks",
    "methods": "methods (or in another order)",
    "seed": _OTHER,
    "pairs": _OTHER,
}


@dataclass(frozen=True)
class Vote:
    """One choice of one annotator."""

    pair: str
    annotator: str
    choice: str  # a method, or "tie"
    first: str  # the method whose text stood first
    at: str  # in UTC


@dataclass(frozen=True)
class Answer:
    """A text that could be used, with the tokens of all tries that it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class Votes:
    """The votes on a study, one a pair and annotator: the first counts.

    Args:
        path: An SQLite file.
        study: What is voted on; a new file is made for it. None opens a file to read results.

    Raises:
        ArtifactError: The file cannot be used, or holds votes on something else.
    """

    def __init__(self, path: Path, study: Study | None = None) -> None:
        if study is None and not path.is_file():
            raise ArtifactError(f"{path}: no such file; `prefheads judge serve` writes it")
        try:
            self._db = db = sqlite3.connect(
                path, timeout=30, isolation_level=None, check_same_thread=False
            )
            kind = db.execute("PRAGMA application_id").fetchone()[0]
            empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if kind != _VOTES and not (kind == 0 and empty):
                raise ArtifactError(f"{path}: holds something else; give another file")
            db.executescript(_SCHEMA if kind != _VOTES else _DURABLE)
        except sqlite3.Error as error:
            raise ArtifactError(f"{path}: cannot be used ({error})") from None
        new = None if study is None else study.describe()
        if new is not None:
            described = json.dumps(new, ensure_ascii=False)
            db.execute("INSERT OR IGNORE INTO study VALUES (1, ?)", (described,))
        row = db.execute("SELECT description FROM study").fetchone()
        if row is None:
            raise ArtifactError(f"{path}: holds no study; `prefheads judge serve` begins one")
        self.study: dict[str, Any] = json.loads(row[0])
        for name, what in _PARTS.items():
            if new is not None and self.study.get(name) != new[name]:
                raise ArtifactError(f"{path}: holds votes on other {what}; give another --db")

    def add(self, pair: Pair, annotator: str, choice: str, first: str) -> None:
        """Keep a vote; nothing happens if the annotator has voted on the pair already."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._db.execute(
            "INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?, ?)",
            (pair.id, annotator, choice, first, now),
        )

    def remove(self, pair: Pair, annotator: str) -> None:
        """Take a vote back, if there is one."""
        self._db.execute("DELETE FROM votes WHERE pair = ? AND annotator = ?", (pair.id, annotator))

    def voted(self, annotator: str) -> list[str]:
        """The pairs that an annotator has voted on, the latest last."""
        rows = self._db.execute(
            "SELECT pair FROM votes WHERE annotator = ? ORDER BY rowid", (annotator,)
        )
        return [pair for (pair,) in rows]

    def all(self) -> list[Vote]:
        """All votes in the order in which they came."""
        rows = self._db.execute(
            "SELECT pair, annotator, choice, first, at FROM votes ORDER BY rowid"
        )
        return [Vote(*row) for row in rows]


class Answers:
    """Answers of a language model by what was asked, with the tokens that they took.

    Args:
        path: File of a :class:`~prefheads.checkpoint.Checkpoint`; made where needed. Earlier
            versions wrote SQLite: answers in such a file, or in one beside ``path`` that ends in
            ``.sqlite``, are known, and new ones go to a file that ends in ``.jsonl``.

    Raises:
        ArtifactError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise ArtifactError(f"{path}: no such folder")
        writable_dir(path.parent)
        earlier = _earlier(path)
        if earlier is not None:
            path = path.with_suffix(".jsonl")
        self._kept = Checkpoint(path, "answers of a judge")
        self._earlier = earlier or _earlier(path.with_suffix(".sqlite")) or {}

    def get(self, key: str) -> Answer | None:
        """What was answered, or None."""
        found = self._kept.done.get(key)
        return self._earlier.get(key) if found is None else Answer(**found)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer."""
        self._kept.add(key, asdict(answer))


def _earlier(path: Path) -> dict[str, Answer] | None:
    """The answers that an earlier version kept in an SQLite file; None if it is none."""
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(path)) as db:
            if db.execute("PRAGMA application_id").fetchone()[0] != _ANSWERS:
                return None
            return {
                row[0]: Answer(*row[1:])
                for row in db.execute(
                    "SELECT key, answer, prompt_tokens, completion_tokens FROM answers"
                )
            }
    except sqlite3.Error:
        return None
