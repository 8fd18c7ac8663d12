"""Objects found by name: built in, offered by installed packages, or registered by a call."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from typing import Any, Generic, Protocol, TypeVar

from prefheads.errors import DataError


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str:
        """What users type to get it."""


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Named objects of one type. Nothing is imported before the first name is asked for.

    Args:
        group: Entry points of this group offer objects from other packages; each names an object or
            a sequence of objects.
        kind: The type of the objects.
        builtin: Where the built-in objects are, as ``"module:attribute"``.
    """

    def __init__(self, group: str, kind: type[T], builtin: Sequence[str]) -> None:
        self.group = group
        self._kind, self._builtin = kind, builtin
        self._offered: dict[str, T] | None = None
        self._registered: dict[str, T] = {}

    def register(self, *objects: T) -> None:
        """Add objects for this process; one replaces what was registered by its name before.

        Raises:
            DataError: A name that is built in or that an installed package offers.
        """
        for one in self._checked(objects, "register"):
            if one.name in self._find():
                raise DataError(f"{self.group}: {one.name!r} exists already; choose another name")
            self._registered[one.name] = one

    def all(self) -> dict[str, T]:
        """Every object by its name, the built-in ones first.

        Raises:
            DataError: An installed package offers what cannot be used.
        """
        return {**self._find(), **self._registered}

    def _find(self) -> dict[str, T]:
        if self._offered is None:
            found: dict[str, T] = {}
            for place in self._builtin:
                found |= {
                    one.name: one for one in self._checked(pkgutil.resolve_name(place), place)
                }
            for point in entry_points(group=self.group):
                where = f"entry point {point.name} = {point.value}"
                try:
                    offered = point.load()
                except Exception as error:  # code of another package may raise anything
                    raise DataError(f"{self.group}: {where} cannot be loaded ({error})") from error
                for one in self._checked(offered, where):
                    if found.setdefault(one.name, one) is not one:
                        raise DataError(f"{self.group}: {where}: {one.name!r} exists already")
            self._offered = found
        return self._offered

    def _checked(self, offered: Any, where: str) -> list[T]:
        objects = list(offered) if isinstance(offered, Iterable) else [offered]
        for one in objects:
            if not isinstance(one, self._kind) or not one.name:
                raise DataError(f"{self.group}: {where}: {one!r} is no {self._kind.__name__}")
        return objects
