"""Partial results of long work, kept so that a killed run goes on where it stopped.

All of them are files of JSON lines. Each line is on the disk before the work goes on, so a power
cut costs at most what was being computed. A line that was cut off is dropped, and computed again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.data.encoding import Encoded
from prefheads.errors import ArtifactError
from prefheads.heads.weights import fingerprint
from prefheads.progress import track
from prefheads.storage import PathLike, load_tensors, reason, write_atomic

_BEGINS = b'{"run": '  # a checkpoint's first line
_TENSOR = "safetensors"


class Journal:
    """A file of JSON lines that grows by whole lines only. Lines may hold tensors.

    Reading leaves the file as it is, so that others may look at a run that goes on.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self._end: int | None = None  # of the whole lines, where a torn one follows

    def read(self) -> Iterator[tuple[str, Any]]:
        """Yield each line with its place, none if there is no file."""
        if not self.path.exists():
            return
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be used ({reason(error)})") from None
        end = content.rfind(b"\n") + 1
        self._end = end if end < len(content) else None
        for number, line in enumerate(content[:end].split(b"\n")[:-1], start=1):
            place = f"{self.path}:{number}"
            try:
                yield place, json.loads(line, object_hook=_unpack)
            except (ValueError, safetensors.SafetensorError):
                raise ArtifactError(f"{place}: damaged, or of something else") from None

    def append(self, rows: Iterable[Any]) -> None:
        """Add lines, all of them or none; they are on the disk when this returns."""
        data = _lines(rows)
        try:
            with self.path.open("ab", buffering=0) as file:
                if self._end is not None:
                    file.truncate(self._end)
                    self._end = None
                end = os.fstat(file.fileno()).st_size
                try:
                    while data:
                        data = data[file.write(data) :]
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be written ({reason(error)})") from error


class Checkpoint:
    """Finished parts of long work, by their keys, in the order in which they came.

    Args:
        path: A :class:`Journal` to keep them in; None keeps nothing.
        run: What is computed, in words or as a :func:`digest`. A file of another run is refused.
    """

    def __init__(self, path: PathLike | None, run: str) -> None:
        self.run = run
        self.done: dict[str, Any] = {}
        self._journal = None if path is None else Journal(path)
        self._begun = False
        if self._journal is not None:
            self._take_over(self._journal.path)
            self._load(self._journal)

    def add(self, key: str, part: Any) -> None:
        """Keep a part: JSON data, which may hold tensors. A later part replaces an earlier one."""
        if self._journal is not None:
            start = [] if self._begun else [{"run": self.run}]
            self._journal.append([*start, {"key": key, "part": part}])
            self._begun = True
        self.done[key] = part

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The part of this key; made and kept if there is none."""
        if key not in self.done:
            self.add(key, make())
        return self.done[key]

    def fill(
        self,
        rows: range,
        make: Callable[[int], Mapping[str, Tensor]],
        label: str,
        progress: bool = True,
    ) -> dict[str, Tensor]:
        """The tensors of all rows of these keys, one an example, stacked; those that are missing
        are made, of the number of the example, counted from 0."""
        todo = [i for i in rows if str(i) not in self.done]
        n, done = len(rows), len(rows) - len(todo)
        for i in track(todo, label, n, unit="example", initial=done, disable=not progress):
            self.add(str(i), make(i - rows.start))
        made = [self.done[str(i)] for i in rows]
        return {name: torch.stack([row[name] for row in made]) for name in made[0]}

    def _load(self, journal: Journal) -> None:
        lines = journal.read()
        for place, first in lines:
            if not isinstance(first, dict) or first.keys() != {"run"}:
                raise ArtifactError(f"{place}: damaged, or of something else; delete the file")
            self._require_same(first["run"], journal.path)
            self._begun = True
            break
        for place, line in lines:
            try:
                self.done[line["key"]] = line["part"]
            except (KeyError, TypeError):
                raise ArtifactError(f"{place}: damaged; delete the file") from None

    def _take_over(self, path: Path) -> None:
        """Rewrite unfinished work that earlier versions kept as one safetensors file."""
        old = next((p for p in (path, path.with_suffix(".safetensors")) if p.is_file()), None)
        if old is None:
            return
        with old.open("rb") as file:
            if old == path and _BEGINS.startswith(file.read(len(_BEGINS))):
                return
        try:
            tensors, meta = load_tensors(old, "unfinished work")
        except ArtifactError:
            raise ArtifactError(f"{old}: damaged, or of something else; delete the file") from None
        self._require_same(meta.get("run"), old)
        n = len(next(iter(tensors.values()), ()))
        rows = ({name: t[i] for name, t in tensors.items()} for i in range(n))
        parts = ({"key": str(i), "part": row} for i, row in enumerate(rows))
        write_atomic(path, _lines([{"run": self.run}, *parts]))
        if old != path:
            old.unlink()

    def _require_same(self, run: object, path: Path) -> None:
        if run != self.run:
            raise ArtifactError(
                f"{path}: belongs to a run with other data, model or options; "
                "give another folder, or delete it"
            )


def _lines(rows: Iterable[Any]) -> bytes:
    dump = (json.dumps(row, ensure_ascii=False, default=_pack) + "\n" for row in rows)
    return "".join(dump).encode()


def _pack(value: Any) -> dict[str, str]:
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} cannot be kept")
    content = safetensors.torch.save({"": value.detach().cpu().contiguous()})
    return {_TENSOR: base64.b64encode(content).decode()}


def _unpack(found: dict[str, Any]) -> Any:
    if found.keys() != {_TENSOR}:
        return found
    return safetensors.torch.load(base64.b64decode(found[_TENSOR]))[""]


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
