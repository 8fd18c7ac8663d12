"""The samples of a run beside its records, so that a run can be looked at without its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from prefheads.data.example import Example, parse_example
from prefheads.data.stream import read_json_lines
from prefheads.errors import ArtifactError, DataError
from prefheads.storage import write_atomic

SAMPLES = "samples.jsonl"


def write_samples(folder: Path, examples: Sequence[Example]) -> None:
    """Write the samples of a task in the example format, with the profiles that prompts hold.

    Raises:
        ArtifactError: The file cannot be written.
    """
    lines = (json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in examples)
    write_atomic(folder / SAMPLES, "".join(lines).encode())


def read_samples(folder: Path) -> list[Example]:
    """The samples that `write_samples` wrote, in their order.

    Raises:
        ArtifactError: No such file, or a damaged one.
    """
    path = folder / SAMPLES
    try:
        return [parse_example(row, where) for where, row in read_json_lines(path)]
    except DataError as error:
        raise ArtifactError(str(error)) from None
