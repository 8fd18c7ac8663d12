"""Small inputs of commands, and what is expected of their errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.saved import Result

TOPICS = {"cook": "A stew of beans, onions and garlic.", "sail": "The wind at sea, a reef, a rope."}


def rows(n_users: int = 12, each: int = 2) -> list[dict[str, Any]]:
    """Examples of users who write of one of two things."""
    found = []
    for user in range(n_users):
        topic = list(TOPICS)[user % 2]
        for i in range(each):
            found.append(
                {
                    "id": f"{user}-{i}",
                    "user_id": f"{topic}-{user}",
                    "profile": [{"text": TOPICS[topic]}, {"text": f"{topic} {user}"}],
                    "input": f"Write {i}",
                    "output": f"{topic} {i}",
                }
            )
    return found


def write_rows(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_one_error(result: Result, *parts: str) -> None:
    """Exit code 2, nothing on stdout, and one line on stderr that says all these things."""
    assert result.code == 2
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
