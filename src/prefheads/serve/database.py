"""The database of the service: tables, and how SQLite and PostgreSQL are opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from prefheads.errors import ArtifactError, DataError
from prefheads.optional import needs
from prefheads.storage import reason

# SQLite numbers rows by itself only where the column is plainly an INTEGER.
Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


class Base(DeclarativeBase):
    """All tables of the service."""


class KeyRow(Base):
    """A client's key: of its secret, the hash alone."""

    __tablename__ = "prefheads_keys"

    id: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(128))
    digest: Mapped[str] = mapped_column(sa.String(64))
    created: Mapped[int] = mapped_column(sa.BigInteger)
    revoked: Mapped[int | None] = mapped_column(sa.BigInteger)


class ProfileRow(Base):
    """A user of a key.

    ``vectors`` is the sum of the unit embeddings of the items up to ``embedded``, made by
    ``encoder``; ``version`` changes when items are taken away, which makes the sum wrong.
    """

    __tablename__ = "prefheads_profiles"
    __table_args__ = (sa.UniqueConstraint("key_id", "user_name"),)

    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    key_id: Mapped[str] = mapped_column(sa.ForeignKey(KeyRow.id, ondelete="CASCADE"))
    user_name: Mapped[str] = mapped_column(sa.String(128))
    created: Mapped[int] = mapped_column(sa.BigInteger)
    version: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    encoder: Mapped[str | None] = mapped_column(sa.String(256))
    vectors: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    embedded: Mapped[int] = mapped_column(sa.BigInteger, default=0)


class ItemRow(Base):
    """A text of a user, as JSON; ``id`` grows in the order in which a profile got them."""

    __tablename__ = "prefheads_items"
    __table_args__ = (sa.UniqueConstraint("profile_id", "name"),)

    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=True)
    profile_id: Mapped[int] = mapped_column(sa.ForeignKey(ProfileRow.id, ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(sa.String(128))
    fields: Mapped[dict[str, str]] = mapped_column(sa.JSON)


def open_database(where: str) -> sa.Engine:
    """Open a database, and make its tables where they are missing.

    Args:
        where: Path of an SQLite file, or a URL such as ``postgresql://user@host/name``.
    """
    url = _url(where)
    shown = url.database if url.drivername == "sqlite" else url.render_as_string()
    try:
        # Parameters of statements are texts of users; errors must not show them.
        if url.drivername == "sqlite":
            engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": 30})
            _set_up_sqlite(engine)
        else:
            with needs("postgres"):
                engine = sa.create_engine(
                    url, hide_parameters=True, pool_pre_ping=True, pool_size=20
                )
        tables = set(sa.inspect(engine).get_table_names())
        if url.drivername == "sqlite" and tables - Base.metadata.tables.keys():
            raise ArtifactError(f"{shown}: holds something else; give another --db")
        Base.metadata.create_all(engine)
    except SQLAlchemyError as error:
        why = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        raise ArtifactError(f"{shown}: cannot be used ({why})") from None
    return engine


@contextmanager
def writing(engine: sa.Engine) -> Iterator[Session]:
    """A session whose changes are on disk when the block has ended, all of them or none."""
    with Session(engine.execution_options(write=True)) as session, session.begin():
        yield session


def forget(engine: sa.Engine) -> None:
    """Take what was deleted out of the files of SQLite, too."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _url(where: str) -> sa.URL:
    if "://" not in where:
        return sa.URL.create("sqlite", database=str(Path(where).expanduser()))
    try:
        url = sa.make_url(where)
    except ArgumentError:
        raise DataError("--db: not a URL of a database") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise DataError(f"--db: {url.drivername} is not supported; use SQLite or postgresql://")
    return url


def _set_up_sqlite(engine: sa.Engine) -> None:
    path = Path(engine.url.database or "")
    if not path.exists():  # texts of people are nobody else's to read
        try:
            path.touch(0o600)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be made ({reason(error)})") from None

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin as told below
        # With synchronous=FULL, what was answered for survives a loss of power.
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "secure_delete=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A writer that began as a reader would fail instead of waiting for its turn.
        writes = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
