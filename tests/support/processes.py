"""Servers in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def process(
    fitted: tuple[Path, Path], db: Path, port: int = 0, *options: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, listening; killed when the block ends if it is still there."""
    model, run = fitted
    command = [
        sys.executable, "-m", "prefheads", "serve", "--model", str(model), "--run", str(run),
        "--db", str(db), "--port", str(port), "--device", "cpu", "--rate", "10000", "--burst",
        "10000", *options,
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(f"{db}.log", "a") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        try:
            lines = [server.stdout.readline() for _ in range(2)]
            address = re.fullmatch(r"(http://127\.0\.0\.1:\d+/v1)\n", lines[1])
            assert address, (lines, Path(f"{db}.log").read_text())
            yield server, address[1]
        finally:
            if server.poll() is None:
                server.kill()
            server.wait()
            server.stdout.close()


def make_key(cli: Any, db: Path) -> str:
    made = cli("keys", "create", "test", "--db", db)
    assert made.code == 0 and made.err == ""
    return made.out.strip()
