"""Profiles of users in the database; a key sees its own users only."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, Select, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from prefheads.serve.database import ItemRow, ProfileRow, forget, writing
from prefheads.serve.problems import Problem


class NoProfile(Problem):
    """A user without a profile."""

    def __init__(self, user: str) -> None:
        super().__init__(404, f"there is no profile {user}", "profile_not_found", "user")


class ItemClash(Problem):
    """An item comes with an id that another one has."""

    def __init__(self, id: str) -> None:
        super().__init__(409, f"there is another item with the id {id}", "item_exists", "items")


class ProfileFull(Problem):
    """More items or profiles than allowed."""

    def __init__(self, owner: str, most: int, what: str) -> None:
        super().__init__(400, f"{owner} has at most {most} {what}", "too_many", "items")


@dataclass(frozen=True)
class Summary:
    """A profile without its items; ``created`` in seconds since 1970."""

    user: str
    created: int
    items: int


@dataclass(frozen=True)
class StoredItem:
    """An item of a profile: its number in the database, the client's id, and its fields."""

    number: int
    id: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class StoredProfile:
    """A profile as it is needed to write for its user: a state of a row of the database."""

    id: int
    version: int
    items: tuple[StoredItem, ...]  # the oldest first
    encoder: str | None
    vectors: bytes | None  # sum of the items' embeddings, as far as it was made
    embedded: int


NewItem = tuple[str | None, Mapping[str, str]]


class Profiles:
    """All profiles in a database."""

    def __init__(self, engine: Engine, max_items: int, max_profiles: int) -> None:
        self._engine, self._max_items, self._max_profiles = engine, max_items, max_profiles

    def put(self, key: str, user: str, items: Sequence[NewItem]) -> bool:
        """Make a profile of these items, or replace what it holds; returns whether it is new."""
        try:
            new = self._put(key, user, items)
        except IntegrityError:  # somebody else made it at this moment; replace theirs
            new = self._put(key, user, items)
        if not new:
            forget(self._engine)
        return new

    def _put(self, key: str, user: str, items: Sequence[NewItem]) -> bool:
        with writing(self._engine) as session:
            row = session.scalar(_of(key, user).with_for_update())
            new = row is None
            if row is None:
                count = select(func.count()).where(ProfileRow.key_id == key)
                if (session.scalar(count) or 0) >= self._max_profiles:
                    raise ProfileFull("a key", self._max_profiles, "profiles")
                row = ProfileRow(key_id=key, user_name=user, created=int(time.time()))
                session.add(row)
                session.flush()
            else:
                session.execute(delete(ItemRow).where(ItemRow.profile_id == row.id))
                _begin_anew(row)
            self._add(session, row, items)
        return new

    def append(self, key: str, user: str, items: Sequence[NewItem]) -> int | None:
        """Add items to a profile; returns how many were new, or None if there is no profile."""
        with writing(self._engine) as session:
            row = session.scalar(_of(key, user).with_for_update())
            return None if row is None else self._add(session, row, items)

    def _add(self, session: Session, profile: ProfileRow, items: Sequence[NewItem]) -> int:
        mine = ItemRow.profile_id == profile.id
        names = {name for name, _ in items if name is not None}
        stored = session.execute(select(ItemRow.name, ItemRow.fields).where(mine))
        known: dict[str, Mapping[str, str]] = {n: fields for n, fields in stored if n in names}
        rows = []
        for name, fields in items:
            if name is not None and name in known:
                if known[name] != fields:
                    raise ItemClash(name)
                continue
            name = name or secrets.token_hex(8)
            known[name] = fields
            rows.append(ItemRow(profile_id=profile.id, name=name, fields=dict(fields)))
        count = session.scalar(select(func.count(ItemRow.id)).where(mine)) or 0
        if count + len(rows) > self._max_items:
            raise ProfileFull("a profile", self._max_items, "items")
        session.add_all(rows)
        return len(rows)

    def delete(self, key: str, user: str) -> bool:
        """Delete a profile with all that was made of it; returns whether there was one."""
        with writing(self._engine) as session:
            query = delete(ProfileRow).filter_by(key_id=key, user_name=user)
            gone = session.scalar(query.returning(ProfileRow.id))
        forget(self._engine)
        return gone is not None

    def delete_item(self, key: str, user: str, item: str) -> bool:
        """Delete one item; returns whether there was one."""
        with writing(self._engine) as session:
            row = session.scalar(_of(key, user).with_for_update())
            if row is None:
                return False
            query = delete(ItemRow).filter_by(profile_id=row.id, name=item)
            gone = session.scalar(query.returning(ItemRow.id))
            _begin_anew(row)
        forget(self._engine)
        return gone is not None

    def page(self, key: str, after: str, limit: int) -> list[Summary]:
        """The next profiles by name after one."""
        return self._summaries(key, ProfileRow.user_name > after, limit)

    def summary(self, key: str, user: str) -> Summary | None:
        """One profile, if there is one."""
        return next(iter(self._summaries(key, ProfileRow.user_name == user, 1)), None)

    def _summaries(self, key: str, which: ColumnElement[bool], limit: int) -> list[Summary]:
        query = (
            select(ProfileRow.user_name, ProfileRow.created, func.count(ItemRow.id))
            .outerjoin(ItemRow, ItemRow.profile_id == ProfileRow.id)
            .where(ProfileRow.key_id == key, which)
            .group_by(ProfileRow.id, ProfileRow.user_name, ProfileRow.created)
            .order_by(ProfileRow.user_name)
            .limit(limit)
        )
        with Session(self._engine) as session:
            return [Summary(*row) for row in session.execute(query)]

    def get(self, key: str, user: str) -> StoredProfile | None:
        """A profile with its items, if there is one."""
        with Session(self._engine) as session:
            row = session.scalar(_of(key, user))
            if row is None:
                return None
            query = select(ItemRow).where(ItemRow.profile_id == row.id).order_by(ItemRow.id)
            items = tuple(StoredItem(i.id, i.name, i.fields) for i in session.scalars(query))
            return StoredProfile(row.id, row.version, items, row.encoder, row.vectors, row.embedded)

    def keep_vectors(
        self, profile: StoredProfile, encoder: str, vectors: bytes, embedded: int
    ) -> None:
        """Keep the sum of embeddings, unless the profile is another by now, or gone."""
        query = update(ProfileRow).filter_by(
            id=profile.id, version=profile.version, embedded=profile.embedded
        )
        with writing(self._engine) as session:
            session.execute(query.values(encoder=encoder, vectors=vectors, embedded=embedded))


def _of(key: str, user: str) -> Select[ProfileRow]:
    return select(ProfileRow).filter_by(key_id=key, user_name=user)


def _begin_anew(row: ProfileRow) -> None:
    row.version += 1
    row.encoder = row.vectors = None
    row.embedded = 0
