"""What a command says where a library is missing that one of the extras brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefheads.errors import ModelError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports in the block need the extra of that name.

    Raises:
        ModelError: One of its libraries is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModelError(
            f'{error.name} is not installed; install the extra: pip install "prefheads[{name}]"'
        ) from None
