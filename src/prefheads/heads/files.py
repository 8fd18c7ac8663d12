"""The files that runs keep maps of heads in.

``prefheads discover`` leaves one map, ``heads.safetensors``. ``prefheads fit`` leaves
``steerer.safetensors`` with a map for each cluster and a shared one, and ``steerer.json``, written
last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefheads.errors import ArtifactError, PrefheadsError
from prefheads.heads.weights import HeadWeights, Provenance
from prefheads.storage import load_tensors, save_tensors

HEADS = "heads.safetensors"
STEERER, STEERER_MAPS = "steerer.json", "steerer.safetensors"
SHARED = "shared"
_KIND = "steerer"


def is_fitted(folder: Path) -> bool:
    """Whether a folder holds a fitted steerer."""
    return (folder / STEERER).is_file()


def load_heads(folder: Path, config: Any) -> HeadWeights:
    """The heads that ``discover`` left in a folder, for the model of this config."""
    if not (folder / HEADS).is_file():
        raise ArtifactError(
            f"{folder}: holds no run; give a folder that `prefheads fit` or `discover` wrote"
        )
    return HeadWeights.load(folder / HEADS, model=config)


def save_steerer_maps(
    folder: Path,
    shared: HeadWeights,
    maps: Sequence[HeadWeights],
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
) -> None:
    """Write the maps of a steerer, with other tensors and metadata beside them."""
    values = {"maps": torch.stack([m.values for m in maps]), SHARED: shared.values}
    infos = [asdict(m.info) for m in (shared, *maps)]
    save_tensors(folder / STEERER_MAPS, {**tensors, **values}, _KIND, {**meta, "infos": infos})


def load_steerer_maps(
    folder: Path,
) -> tuple[dict[str, HeadWeights], dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_steerer_maps` wrote: the maps, named ``"shared"``, and ``"0"``, ``"1"``, ...
    by cluster; all tensors; and the metadata."""
    tensors, meta = load_tensors(folder / STEERER_MAPS, _KIND)
    try:
        values = [tensors[SHARED], *tensors["maps"]]
        names = [SHARED, *map(str, range(len(values) - 1))]
        maps = {
            name: HeadWeights(v, Provenance(**info))
            for name, v, info in zip(names, values, meta["infos"], strict=True)
        }
    except (KeyError, TypeError, ValueError, PrefheadsError) as error:
        raise ArtifactError(f"{folder}: damaged steerer ({error})") from error
    return maps, tensors, meta


def maps_in(path: Path) -> Iterator[tuple[str, Callable[[], HeadWeights]]]:
    """The maps in a file or in the folder of a run, by name: that of the file or folder, with
    ``/shared``, ``/0``, ``/1``, ... for those of a steerer. Each is read when it is called."""
    if path.is_file():
        if path.suffix == ".safetensors" and not path.name.startswith("."):
            yield path.stem, partial(HeadWeights.load, path)
        return
    run = path.resolve().name
    if (path / HEADS).is_file():
        yield run, partial(HeadWeights.load, path / HEADS)
    if is_fitted(path):
        for name in load_steerer_maps(path)[0]:
            yield f"{run}/{name}", partial(_steerer_map, path, name)


def _steerer_map(folder: Path, name: str) -> HeadWeights:
    return load_steerer_maps(folder)[0][name]
