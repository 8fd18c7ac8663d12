"""What an evaluation has done so far: one JSON line a sample and method, appended as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prefheads.errors import ArtifactError


@dataclass(frozen=True)
class Record:
    """One generated text.

    Attributes:
        task, id, user_id, method: What was generated, for whom, and how.
        prompt_sha256: Of the prompt as it was rendered, chat template included.
        prediction, reference: The text, and the user's own (None where it is not known).
        setting: How heads were steered.
        gamma: Strength of the steering or contrast; 0 where there is none.
        prompt_tokens, new_tokens: Lengths; the end of the turn counts as a token.
        seconds: Share of the batch's time for decoding.
        prompt_seconds: Share of its time for encoding the prompt, where methods share that.
        batch_size: Samples decoded together.
    """

    task: str
    id: str
    user_id: str
    method: str
    prompt_sha256: str
    prediction: str
    reference: str | None
    setting: str
    gamma: float
    prompt_tokens: int
    new_tokens: int
    seconds: float
    prompt_seconds: float
    batch_size: int


class Records:
    """The records of a task, kept in a file that a killed run leaves usable.

    Args:
        path: A JSONL file; a last line that was cut off is dropped.

    Raises:
        ArtifactError: The file cannot be read, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[tuple[str, str], Record] = {}
        if path.exists():
            for record in self._read():
                self.done[record.method, record.id] = record

    def _read(self) -> Iterable[Record]:
        try:
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.path, whole)
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be used ({error.strerror})") from None
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                yield Record(**json.loads(line))
            except (ValueError, TypeError):
                raise ArtifactError(
                    f"{self.path}:{number}: not a record of an evaluation; give another folder"
                ) from None

    def add(self, records: Sequence[Record]) -> None:
        """Append records in one write; those that are there already are left out."""
        new = [r for r in records if (r.method, r.id) not in self.done]
        lines = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in new)
        with self.path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        for record in new:
            self.done[record.method, record.id] = record

    def finished(self, method: str, ids: Sequence[str], hashes: Sequence[str]) -> bool:
        """Whether all of these samples are there.

        Raises:
            ArtifactError: One is there with another prompt: other data or options.
        """
        found = [self.done.get((method, key)) for key in ids]
        for record, prompt in zip(found, hashes, strict=True):
            if record is not None and record.prompt_sha256 != prompt:
                raise ArtifactError(
                    f"{self.path}: sample {record.id!r} was generated from another prompt (other "
                    "data or options); give another folder"
                )
        return all(record is not None for record in found)

    def of(self, method: str, ids: Sequence[str]) -> list[Record]:
        """The records of a method, in the order of the ids."""
        return [self.done[method, key] for key in ids]
