"""Reading large files piece by piece, with errors that name the file and the place in it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from prefheads.errors import DataError
from prefheads.optional import require

WHOLE = 64 * 2**20  # bytes up to which a damaged file is read again to find the very place


def read_text(path: Path) -> str:
    """The text of a UTF-8 file without its byte order mark; a ``DataError`` if it cannot be read,
    or is not UTF-8."""
    with opened(path) as file:
        return _decoded(file.read(), path, file.tell())


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, behind its byte order mark; a ``DataError`` if it cannot be
    read."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        yield file


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1.

    Only ``\\n`` ends a line: ``str.splitlines`` would also split at U+2028, which JSON strings may
    hold.

    Raises:
        DataError: As for :func:`read_text`.
    """
    end = 0
    with opened(path) as file:
        end = file.tell()
        for number, line in enumerate(file, start=1):
            end += len(line)
            if line.strip():
                yield number, _decoded(line, path, end)


def _decoded(data: bytes, path: Path, end: int) -> str:
    """UTF-8 text of bytes that end at position ``end`` of the file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        place = end - len(data) + error.start
        raise DataError(f"{path}: not UTF-8 (byte {place}); convert the file") from None


def starts_with_list(path: Path) -> bool:
    """Whether the first thing in a JSON file is a list."""
    with opened(path) as file:
        while (byte := file.read(1)).isspace():
            pass
    return byte == b"["


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSONL file, each with its place.

    Raises:
        DataError: A line that is not JSON.
    """
    for number, line in read_lines(path):
        try:
            yield f"{path}:{number}", json.loads(line)
        except json.JSONDecodeError as error:
            where = f"{path}:{number}"
            raise DataError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None


def read_json_items(path: Path, prefix: str) -> Iterator[Any]:
    """The values in a JSON file at a prefix, one at a time, in memory for the largest of them.

    Args:
        prefix: Keys on the way, with ``item`` for the members of a list, as in ``"golds.item"``.

    Raises:
        DataError: Not JSON.
        PrefheadsError: The extra ``eval`` is not installed.
    """
    ijson = require("ijson", "eval")
    with opened(path) as file:
        try:
            yield from ijson.items(file, prefix, use_float=True)
        except ijson.JSONError as error:
            raise _damaged(path, file.tell(), error) from None


def _damaged(path: Path, position: int, error: Exception) -> DataError:
    """The error for a damaged file: the exact place if it is small, otherwise about where."""
    if path.stat().st_size <= WHOLE:
        try:
            json.loads(read_text(path))
        except json.JSONDecodeError as exact:
            where = f"{path}:{exact.lineno}"
            return DataError(f"{where}: not JSON ({exact.msg}, column {exact.colno})")
        except DataError as exact:
            return exact
    message = error.args[0] if error.args else ""
    text = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
    reason = text.partition("\n")[0].strip().rpartition("error: ")[2] or "damaged"
    return DataError(f"{path}: not JSON near byte {position} ({reason})")
