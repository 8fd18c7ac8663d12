"""A file of results, one line of JSON a cell: what a machine has measured it does not again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

Cell = dict[str, Any]
KIND = ("cpu", "simd", "cores")  # of a machine: what is measured on one kind holds for it alone


class Results:
    """Finished cells, in a file that grows line by line.

    A line is ``{"cell": ..., "result": ..., "machine": ...}``. A line that a killed run left
    unfinished is passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._machine = machine()
        self._done = {_key(line["cell"], line["machine"]): line for line in self._read()}

    def _read(self) -> Iterator[Cell]:
        if not self.path.exists():
            return
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if not isinstance(line, dict) or not line.keys() >= {"cell", "result", "machine"}:
                continue
            if line["machine"].keys() >= set(KIND):
                yield line

    def __contains__(self, cell: Cell) -> bool:
        return _key(cell, self._machine) in self._done

    def __getitem__(self, cell: Cell) -> Cell:
        return self._done[_key(cell, self._machine)]

    def lines(self, **wanted: Any) -> list[Cell]:
        """Lines whose cells have these values, in the order in which they were first measured."""
        return [
            line
            for line in self._done.values()
            if all(line["cell"].get(name) == value for name, value in wanted.items())
        ]

    def add(self, cell: Cell, result: Cell) -> None:
        """Append a finished cell, and see it onto the disk."""
        line = {"cell": cell, "result": result, "machine": machine()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                file.write("\n")  # after an unfinished line
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._done[_key(cell, self._machine)] = line


def _key(cell: Cell, machine: Cell) -> str:
    return json.dumps([cell, *(machine[name] for name in KIND)], sort_keys=True)


def machine() -> Cell:
    """Where a cell was measured, and how busy that machine was."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    simd = torch.backends.cpu.get_cpu_capability()
    return {"cpu": name, "simd": simd, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
