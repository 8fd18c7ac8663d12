"""How long commands take before they do anything: fresh processes, each command in its turn.

python -m benchmarks startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.tables import Table, show

COMMANDS = ("--version", "--help", "keys --help", "data download --help", "discover --help")


def seconds(command: str) -> float:
    """What one process takes, from its start to its end."""
    started = time.perf_counter()
    words = [sys.executable, "-m", "prefheads", *command.split()]
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def table(rounds: int, commands: Sequence[str] = COMMANDS) -> None:
    """Print the median and the range of each command's times."""
    for command in commands:  # once before: files come from the disk, and are compiled
        seconds(command)
    taken = [{command: seconds(command) for command in commands} for _ in range(rounds)]
    rows = []
    for command in commands:
        times = [round_[command] for round_ in taken]
        spread = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        rows.append([f"prefheads {command}", spread])
    show([Table(f"Seconds in a fresh process, median of {rounds} (range)", ["command", "s"], rows)])
