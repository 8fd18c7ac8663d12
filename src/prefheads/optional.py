"""Libraries that only an extra installs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefheads.errors import PrefheadsError


def require(package: str, extra: str) -> Any:
    """Import a package, or a module of one, that an extra installs.

    Raises:
        PrefheadsError: It is not installed; the message says how to install it.
    """
    with needs(extra):
        return importlib.import_module(package)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports in this block need an extra.

    Raises:
        PrefheadsError: As :func:`require`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise PrefheadsError(
            f'{error.name} is not installed; install the extra: pip install "prefheads[{extra}]"'
        ) from error
