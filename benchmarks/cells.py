"""Runs the cells of a benchmark that a results file lacks, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Cell, Results

ROOT = Path(__file__).parents[1]


def shared_by_cells(bench: str, args: argparse.Namespace) -> Cell:
    """What all cells of a command line have in common."""
    return {"bench": bench, "model": args.model, "device": args.device, "threads": args.threads}


def run_cells(
    cells: Sequence[Cell], results: Results, measure: Callable[[Cell], Cell] | None = None
) -> None:
    """Measure the cells that are not in the results yet; each is kept as soon as it is done.

    Args:
        measure: Measures a cell in this process; by default a fresh process does, so that no cell
            sees what another left in memory. This process must not load a model then.
    """
    todo = [cell for cell in cells if cell not in results]
    print(f"{len(cells) - len(todo)} of {len(cells)} cells are in {results.path}", file=sys.stderr)
    for i, cell in enumerate(todo, 1):
        name = " ".join(f"{k}={v}" for k, v in cell.items())
        print(f"[{i}/{len(todo)}] {name}", end=" ", file=sys.stderr, flush=True)
        started = time.perf_counter()
        results.add(cell, (measure or _apart)(cell))
        print(f"({time.perf_counter() - started:.0f} s)", file=sys.stderr, flush=True)


def _apart(cell: Cell) -> Cell:
    command = [sys.executable, "-m", "benchmarks", "cell", json.dumps(cell)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    result: Cell = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_cell(cell: Cell, subject: Any = None) -> Cell:
    """The result of one cell, measured in this process."""
    from benchmarks import decoding, discovery
    from benchmarks.subject import Subject

    if subject is None:
        subject = Subject(cell["model"], cell["device"], cell["threads"])
    bench = {"discovery": discovery, "decoding": decoding}[cell["bench"]]
    result: Cell = subject.hardware | bench.measure(subject, cell)
    return result
