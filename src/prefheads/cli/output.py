"""What commands print: results, notes beside them, and figures with their intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table

from prefheads.report.wording import interval
from prefheads.storage import plain

if TYPE_CHECKING:
    from prefheads.stats import Estimate

_WIDTH = 160  # of tables that go into a file or a pipe


def tell(message: str) -> None:
    """One line to the user, beside the result."""
    print(f"note: {' '.join(message.split())}", file=sys.stderr)


def emit(as_json: bool, data: Any, shown: Sequence[RenderableType]) -> None:
    """Print a result: for programs as JSON, for people as tables and sentences."""
    if as_json:
        print(json.dumps(plain(data), ensure_ascii=False, allow_nan=False))
        return
    width = None if sys.stdout.isatty() else _WIDTH
    # Texts of users and models may hold what rich would take for markup.
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    for item in shown:
        console.print(item, soft_wrap=isinstance(item, str))  # a piped text keeps its lines


def table(title: str, *columns: str, left: int = 1) -> Table:
    """A table to fill, all but its first columns aligned to the right."""
    made = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i >= left else "left", overflow="fold")
    return made


def percent(e: Estimate, sign: str = "", digits: int = 1) -> str:
    """A share or a difference of shares, in per cent."""
    return interval(e, f"{sign}z.{digits}f", 100)
