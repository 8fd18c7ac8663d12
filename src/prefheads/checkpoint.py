"""Long work over examples that survives being killed: finished rows are kept in one file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.data.encoding import Encoded
from prefheads.errors import ArtifactError
from prefheads.heads.provenance import fingerprint
from prefheads.storage import PathLike, load_tensors, save_tensors

SAVE_AFTER = 15.0  # seconds of work that a kill -9 may cost
KIND = "unfinished work"


class Checkpoint:
    """Rows of tensors, one per finished example, in the order of the examples.

    Used as a context manager: what is done is saved when the block is left, also by Ctrl-C.

    Args:
        path: File to keep the rows in; None keeps nothing.
        run: Says what is computed (:func:`digest`); a file of another run is refused.

    Raises:
        ArtifactError: The file is damaged, or of another run.
    """

    def __init__(self, path: PathLike | None, run: str) -> None:
        self.path = None if path is None else Path(path)
        self.run = run
        self.rows: list[Mapping[str, Tensor]] = []
        self._saved = 0
        self._last = time.monotonic()
        if self.path is not None and self.path.exists():
            tensors, meta = load_tensors(self.path, KIND)
            if meta.get("run") != run:
                raise ArtifactError(
                    f"{self.path}: belongs to a run with other data, model or options; "
                    "give another folder, or delete it"
                )
            n = len(next(iter(tensors.values()), ()))
            self.rows = [{name: t[i] for name, t in tensors.items()} for i in range(n)]
            self._saved = n

    def add(self, **row: Tensor) -> None:
        """Add the next example's row; the file is written every few seconds."""
        self.rows.append(row)
        if time.monotonic() - self._last > SAVE_AFTER:
            self._save()

    def stacked(self) -> dict[str, Tensor]:
        """All rows, each tensor with a first dimension of examples."""
        names = self.rows[0] if self.rows else ()
        return {name: torch.stack([row[name] for row in self.rows]) for name in names}

    def _save(self) -> None:
        if self.path is not None and len(self.rows) > self._saved:
            save_tensors(self.path, self.stacked(), KIND, {"run": self.run})
            self._saved = len(self.rows)
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._save()


def digest(options: Any, encoded: Iterable[Encoded] = (), tensors: Sequence[Tensor] = ()) -> str:
    """A hash of what a run computes: JSON-serialisable options, tokens, and tensors.

    Tensors count to three decimals: the last bits depend on the number of threads.
    """
    result = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for e in encoded:
        parts = (e.prompt_ids, e.response_ids, e.profile_mask)
        result.update(repr([part.tolist() for part in parts]).encode())
    for tensor in tensors:
        result.update((1000 * tensor.cpu().double()).round().long().numpy().tobytes())
    return result.hexdigest()


def model_marks(model: PreTrainedModel) -> list[Any]:
    """What tells a model from others for :func:`digest`: name, kind, and a few of its weights."""
    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        some = parameter.detach().flatten()[:8] if parameter.device.type != "meta" else ()
        weights.update(repr((name, [float(x) for x in some])).encode())
    kind = [str(model.dtype), fingerprint(model.config)]
    return [model.config.name_or_path, *kind, weights.hexdigest()]
