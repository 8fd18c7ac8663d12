"""The head maps that requests may name.

An id comes from where a map lies below a listed path:

=================================  =====================================================
``heads.safetensors`` in ``run/``  ``run``
a fitted steerer in ``run/``       ``run/0``, ``run/1``, ... (clusters) and ``run/shared``
another file ``name.safetensors``  ``name``
a folder of any of these           the ids of what is in it
=================================  =====================================================

Ids that are not known yet are looked for again, so a map can be added while the server runs: put
it into a listed folder (under another name first, then rename it; ``save`` does that).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from prefheads.errors import ArtifactError, SteeringError
from prefheads.heads.files import maps_in
from prefheads.heads.weights import HeadWeights, require_model

_SHOWN = 8  # ids named in an error message


class Library:
    """Maps below some paths, read when first asked for and kept.

    ``fork`` is the lowest layer that contrast may suppress; that of the maps present now if None.
    """

    def __init__(self, paths: tuple[Path, ...], fork: int | None = None) -> None:
        self._paths = paths
        self._maps: dict[str, HeadWeights] = {}
        self._lock = Lock()
        self._files = self._scan()
        if not self._files:
            raise ArtifactError(f"{', '.join(map(str, paths))}: no head maps here")
        first, *rest = self._files
        self._reference = self._files[first]()
        maps = [self._reference, *map(self.get, rest)]
        layers = [layer for m in maps for layer, _ in m.heads]
        n_layers = self._reference.shape[0]
        if fork is not None and not 0 <= fork < n_layers:
            raise SteeringError(f"PREFHEADS_FORK={fork}: the model has layers 0 to {n_layers - 1}")
        self.fork = fork if fork is not None else min(layers, default=n_layers - 1)

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_layers, n_heads)`` of all maps."""
        return self._reference.shape

    @property
    def ids(self) -> list[str]:
        """What has been found so far."""
        return list(self._files)

    def get(self, name: str) -> HeadWeights:
        """The map with an id; an error if there is none, or it is for another model."""
        with self._lock:
            if name not in self._files:
                self._files = self._scan()
            if name not in self._files:
                known = ", ".join(self.ids[:_SHOWN]) + (", ..." if len(self.ids) > _SHOWN else "")
                raise SteeringError(f"no head map {name!r}; there are {known}")
            if name not in self._maps:
                found = self._files[name]()
                models = {found.info.fingerprint, self._reference.info.fingerprint} - {""}
                if found.shape != self.shape or len(models) > 1:
                    raise ArtifactError(
                        f"head map {name!r} is for another model than {next(iter(self._files))!r}"
                    )
                self._maps[name] = found
            return self._maps[name]

    def require_model(self, config: Any) -> None:
        """Refuse maps that were made for another model than the one of a transformers config."""
        require_model(self._paths[0], self._reference.values, self._reference.info, config)

    def _scan(self) -> dict[str, Callable[[], HeadWeights]]:
        files: dict[str, Callable[[], HeadWeights]] = {}
        for path in self._paths:
            if not path.exists():
                raise ArtifactError(f"{path}: no such file or folder")
            several = path.is_dir() and not any(maps_in(path))
            for entry in sorted(path.iterdir()) if several else [path]:
                for name, load in maps_in(entry):
                    if name in files:
                        raise ArtifactError(f"{entry}: a second head map {name!r}; rename one")
                    files[name] = load
        return files


def contrast_enabled() -> bool:
    """Whether the server has the second branch (``PREFHEADS_CONTRAST``, on unless 0)."""
    return os.environ.get("PREFHEADS_CONTRAST", "1") != "0"


def library() -> Library | None:
    """The maps that ``PREFHEADS_MAPS`` lists, one library a process; None if it is not set."""
    paths = os.environ.get("PREFHEADS_MAPS", "")
    return _library(paths, os.environ.get("PREFHEADS_FORK", "")) if paths else None


@lru_cache(maxsize=1)
def _library(paths: str, fork: str) -> Library:
    if fork and not fork.isdecimal():
        raise SteeringError(f"PREFHEADS_FORK={fork!r}: give the number of a layer")
    listed = tuple(Path(p).expanduser() for p in paths.split(os.pathsep) if p)
    return Library(listed, int(fork) if fork else None)
