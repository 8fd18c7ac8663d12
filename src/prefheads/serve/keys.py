"""API keys: made once, shown once, kept as hashes."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from prefheads.errors import DataError
from prefheads.serve.database import KeyRow, ProfileRow, forget, writing

PREFIX = "phk"


@dataclass(frozen=True)
class Key:
    """A key without its secret; times in seconds since 1970."""

    id: str
    name: str
    created: int
    revoked: int | None


class Keys:
    """The keys in a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, name: str) -> tuple[Key, str]:
        """Make a key; returns it and its secret text, which is kept nowhere."""
        if not 1 <= len(name.strip()) <= 128:
            raise DataError("a key needs a name of 1 to 128 characters")
        key = Key(secrets.token_hex(4), name.strip(), int(time.time()), None)
        secret = secrets.token_urlsafe(32)
        with writing(self._engine) as session:
            session.add(KeyRow(**vars(key), digest=_digest(secret)))
        return key, f"{PREFIX}-{key.id}-{secret}"

    def rotate(self, id: str) -> str:
        """Give a key another secret; its profiles stay. Returns the new text."""
        secret = secrets.token_urlsafe(32)
        with writing(self._engine) as session:
            _row(session, id, valid=True).digest = _digest(secret)
        return f"{PREFIX}-{id}-{secret}"

    def revoke(self, id: str, purge: bool = False) -> None:
        """Make a key useless; with ``purge``, delete its profiles too."""
        with writing(self._engine) as session:
            row = _row(session, id)
            row.revoked = row.revoked or int(time.time())
            if purge:
                session.execute(delete(ProfileRow).where(ProfileRow.key_id == id))
        if purge:
            forget(self._engine)

    def all(self) -> list[Key]:
        """All keys, the oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(KeyRow).order_by(KeyRow.created, KeyRow.id))
            return [Key(row.id, row.name, row.created, row.revoked) for row in rows]

    def check(self, text: str) -> str | None:
        """The id of the key with this text, if it is valid."""
        prefix, _, rest = text.partition("-")
        id, _, secret = rest.partition("-")
        if prefix != PREFIX or not (id.isascii() and id.isalnum() and secret.isascii()):
            return None
        with Session(self._engine) as session:
            row = session.get(KeyRow, id)
        expected = "" if row is None or row.revoked is not None else row.digest
        return id if hmac.compare_digest(_digest(secret), expected) else None


def _row(session: Session, id: str, valid: bool = False) -> KeyRow:
    row = session.get(KeyRow, id)
    if row is None or (valid and row.revoked is not None):
        raise DataError(f"no key {id!r}; `prefheads keys list` shows them")
    return row


def _digest(secret: str) -> str:
    # Plain SHA-256 is enough: there are 256 random bits to guess, not a password.
    return hashlib.sha256(secret.encode()).hexdigest()
