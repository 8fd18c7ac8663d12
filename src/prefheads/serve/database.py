"""The database of the service: tables, and how SQLite and PostgreSQL are opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    make_url,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from prefheads.errors import ArtifactError, DataError
from prefheads.optional import needs

# SQLite numbers rows by itself only where the column is plainly an INTEGER.
Id = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """All tables of the service."""


class KeyRow(Base):
    """A client's key: of its secret, the hash alone."""

    __tablename__ = "prefheads_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    digest: Mapped[str] = mapped_column(String(64))
    created: Mapped[int] = mapped_column(BigInteger)
    revoked: Mapped[int | None] = mapped_column(BigInteger)


class ProfileRow(Base):
    """A user of a key.

    ``vectors`` is the sum of the unit embeddings of the items up to ``embedded``, made by
    ``encoder``; ``version`` changes when items are taken away, which makes the sum wrong.
    """

    __tablename__ = "prefheads_profiles"
    __table_args__ = (UniqueConstraint("key_id", "user_name"),)

    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    key_id: Mapped[str] = mapped_column(ForeignKey(KeyRow.id, ondelete="CASCADE"))
    user_name: Mapped[str] = mapped_column(String(128))
    created: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(BigInteger, default=0)
    encoder: Mapped[str | None] = mapped_column(String(256))
    vectors: Mapped[bytes | None] = mapped_column(LargeBinary)
    embedded: Mapped[int] = mapped_column(BigInteger, default=0)


class ItemRow(Base):
    """A text of a user, as JSON; ``id`` grows in the order in which a profile got them."""

    __tablename__ = "prefheads_items"
    __table_args__ = (UniqueConstraint("profile_id", "name"),)

    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    profile_id: Mapped[int] = mapped_column(ForeignKey(ProfileRow.id, ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(128))
    fields: Mapped[dict[str, str]] = mapped_column(JSON)


def open_database(where: str) -> Engine:
    """Open a database, and make its tables where they are missing.

    Args:
        where: Path of an SQLite file, or a URL such as ``postgresql://user@host/name``.

    Raises:
        DataError: A URL that cannot be used.
        ArtifactError: A file of something else, or a database that cannot be reached.
        PrefheadsError: The driver is not installed.
    """
    url = _url(where)
    shown = url.database if url.drivername == "sqlite" else url.render_as_string()
    try:
        # Parameters of statements are texts of users; errors must not show them.
        if url.drivername == "sqlite":
            engine = create_engine(url, hide_parameters=True, connect_args={"timeout": 30})
            _set_up_sqlite(engine)
        else:
            with needs("postgres"):
                engine = create_engine(url, hide_parameters=True, pool_pre_ping=True, pool_size=20)
        tables = set(inspect(engine).get_table_names())
        if url.drivername == "sqlite" and tables - Base.metadata.tables.keys():
            raise ArtifactError(f"{shown}: holds something else; give another --db")
        Base.metadata.create_all(engine)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        raise ArtifactError(f"{shown}: cannot be used ({reason})") from None
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session on one state of the database."""
    with Session(engine) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """A session whose changes are on disk when the block has ended, all of them or none."""
    with Session(engine.execution_options(write=True)) as session, session.begin():
        yield session


def forget(engine: Engine) -> None:
    """Take what was deleted out of the files of SQLite, too."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _url(where: str) -> URL:
    if "://" not in where:
        return URL.create("sqlite", database=str(Path(where).expanduser()))
    try:
        url = make_url(where)
    except ArgumentError:
        raise DataError("--db: not a URL of a database") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise DataError(f"--db: {url.drivername} is not supported; use SQLite or postgresql://")
    return url


def _set_up_sqlite(engine: Engine) -> None:
    path = Path(engine.url.database or "")
    if not path.exists():  # texts of people are nobody else's to read
        try:
            os.close(os.open(path, os.O_CREAT, 0o600))
        except OSError as error:
            reason = error.strerror or error
            raise ArtifactError(f"{path}: cannot be made ({reason})") from None

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin as told below
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",  # what was answered for survives a loss of power
            "foreign_keys=ON",
            "secure_delete=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer that began as a reader would fail instead of waiting for its turn.
        writes = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
