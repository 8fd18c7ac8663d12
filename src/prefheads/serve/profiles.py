"""Profiles of users in the database; a key sees its own users only."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, Select, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from prefheads.serve.database import ItemRow, ProfileRow, forget, reading, writing


class ItemClash(ValueError):
    """An item comes with an id that another one has."""


class ProfileFull(ValueError):
    """More items or profiles than allowed."""


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
    """A profile as it is needed to write for its user.

    Attributes:
        id, version: Which state of which row of the database.
        items: All of them, the oldest first.
        encoder, vectors, embedded: Sum of the items' embeddings, as far as it was made.
    """

    id: int
    version: int
    items: tuple[StoredItem, ...]
    encoder: str | None
    vectors: bytes | None
    embedded: int


NewItem = tuple[str | None, Mapping[str, str]]


class Profiles:
    """All profiles in a database.

    Args:
        max_items: Items of a profile, at most.
        max_profiles: Profiles of a key, at most.
    """

    def __init__(self, engine: Engine, max_items: int, max_profiles: int) -> None:
        self._engine, self._max_items, self._max_profiles = engine, max_items, max_profiles

    def put(self, key: str, user: str, items: Sequence[NewItem]) -> bool:
        """Make a profile of these items, or replace what it holds; returns whether it is new.

        Raises:
            ItemClash: An id comes twice with different fields.
            ProfileFull: Too many items, or profiles.
        """
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
                    raise ProfileFull(f"a key has at most {self._max_profiles} profiles")
                row = ProfileRow(key_id=key, user_name=user, created=int(time.time()))
                session.add(row)
                session.flush()
            else:
                session.execute(delete(ItemRow).where(ItemRow.profile_id == row.id))
                _begin_anew(row)
            self._add(session, row, items)
        return new

    def append(self, key: str, user: str, items: Sequence[NewItem]) -> int | None:
        """Add items to a profile; returns how many were new, or None if there is no profile.

        Raises:
            ItemClash: An id is there with different fields.
            ProfileFull: Too many items.
        """
        with writing(self._engine) as session:
            row = session.scalar(_of(key, user).with_for_update())
            return None if row is None else self._add(session, row, items)

    def _add(self, session: Session, profile: ProfileRow, items: Sequence[NewItem]) -> int:
        mine = ItemRow.profile_id == profile.id
        names = {name for name, _ in items if name is not None}
        known: dict[str, Mapping[str, str]] = {
            name: fields
            for name, fields in session.execute(select(ItemRow.name, ItemRow.fields).where(mine))
            if name in names
        }
        rows = []
        for name, fields in items:
            if name is not None and name in known:
                if known[name] != fields:
                    raise ItemClash(f"there is another item with the id {name}")
                continue
            name = name or secrets.token_hex(8)
            known[name] = fields
            rows.append(ItemRow(profile_id=profile.id, name=name, fields=dict(fields)))
        count = session.scalar(select(func.count()).select_from(ItemRow).where(mine)) or 0
        if count + len(rows) > self._max_items:
            raise ProfileFull(f"a profile has at most {self._max_items} items")
        session.add_all(rows)
        return len(rows)

    def delete(self, key: str, user: str) -> bool:
        """Delete a profile with all that was made of it; returns whether there was one."""
        with writing(self._engine) as session:
            mine = (ProfileRow.key_id == key, ProfileRow.user_name == user)
            gone = session.scalar(delete(ProfileRow).where(*mine).returning(ProfileRow.id))
        forget(self._engine)
        return gone is not None

    def delete_item(self, key: str, user: str, item: str) -> bool:
        """Delete one item; returns whether there was one."""
        with writing(self._engine) as session:
            row = session.scalar(_of(key, user).with_for_update())
            if row is None:
                return False
            mine = (ItemRow.profile_id == row.id, ItemRow.name == item)
            gone = session.scalar(delete(ItemRow).where(*mine).returning(ItemRow.id))
            _begin_anew(row)
        forget(self._engine)
        return gone is not None

    def page(self, key: str, after: str, limit: int) -> list[Summary]:
        """The next profiles by name after one."""
        query = (
            select(ProfileRow.user_name, ProfileRow.created, func.count(ItemRow.id))
            .outerjoin(ItemRow, ItemRow.profile_id == ProfileRow.id)
            .where(ProfileRow.key_id == key, ProfileRow.user_name > after)
            .group_by(ProfileRow.id, ProfileRow.user_name, ProfileRow.created)
            .order_by(ProfileRow.user_name)
            .limit(limit)
        )
        with reading(self._engine) as session:
            return [Summary(*row) for row in session.execute(query)]

    def summary(self, key: str, user: str) -> Summary | None:
        """One profile, if there is one."""
        with reading(self._engine) as session:
            row = session.scalar(_of(key, user))
            if row is None:
                return None
            mine = ItemRow.profile_id == row.id
            count = session.scalar(select(func.count()).select_from(ItemRow).where(mine)) or 0
            return Summary(user, row.created, count)

    def get(self, key: str, user: str) -> StoredProfile | None:
        """A profile with its items, if there is one."""
        with reading(self._engine) as session:
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
        same = (
            ProfileRow.id == profile.id,
            ProfileRow.version == profile.version,
            ProfileRow.embedded == profile.embedded,
        )
        values = {"encoder": encoder, "vectors": vectors, "embedded": embedded}
        with writing(self._engine) as session:
            session.execute(update(ProfileRow).where(*same).values(values))


def _of(key: str, user: str) -> Select[ProfileRow]:
    return select(ProfileRow).where(ProfileRow.key_id == key, ProfileRow.user_name == user)


def _begin_anew(row: ProfileRow) -> None:
    row.version += 1
    row.encoder = row.vectors = None
    row.embedded = 0
