"""`prefheads keys`: who may ask `prefheads serve` for text."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from rich.table import Table
from typer import Argument, Option, Typer

from prefheads.cli import options
from prefheads.cli.output import emit
from prefheads.errors import DataError
from prefheads.optional import needs

if TYPE_CHECKING:  # needs the extra `serve`
    from prefheads.serve.keys import Keys

Db = Annotated[
    str,
    Option(
        envvar="PREFHEADS_DB",
        help="SQLite file, or postgresql://USER@HOST/NAME; made where needed.",
    ),
]
DB = "prefheads.sqlite"
KeyId = Annotated[str, Argument(help="Id of the key, as `prefheads keys list` shows it.")]

app = Typer(
    name="keys", no_args_is_help=True, help="API keys of `prefheads serve`; each has its own users."
)


@app.command()
def create(
    name: Annotated[str, Argument(help="Whose key it is, for the list.")], db: Db = DB
) -> None:
    """Make a key and print it; it is shown this once."""
    print(_keys(db).create(name)[1])


@app.command()
def rotate(id: KeyId, db: Db = DB) -> None:
    """Give a key another secret and print it; its profiles stay, the old secret ends."""
    print(_keys(db).rotate(id))


@app.command()
def revoke(
    id: KeyId,
    db: Db = DB,
    purge: Annotated[bool, Option("--purge", help="Delete its profiles, too.")] = False,
) -> None:
    """Make a key useless for good."""
    _keys(db).revoke(id, purge)


@app.command("list")
def list_keys(db: Db = DB, as_json: options.Json = False) -> None:
    """Show all keys, without their secrets."""
    found = _keys(db).all()
    table = Table("id", "name", "created", "revoked")
    for key in found:
        table.add_row(key.id, key.name, _day(key.created), _day(key.revoked))
    emit(as_json, [vars(key) for key in found], [table])


def _keys(db: str) -> Keys:
    with needs("serve"):
        from prefheads.serve.database import open_database
        from prefheads.serve.keys import Keys
    if not db.strip():
        raise DataError("--db is empty; name a file or a URL")
    return Keys(open_database(db))


def _day(seconds: int | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
