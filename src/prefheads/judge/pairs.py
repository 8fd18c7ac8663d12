"""Blinded pairs: what two methods of an evaluation wrote for the same samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefheads.data.example import spread
from prefheads.data.task import Item, task_name, task_of
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.records import SAMPLES, Records, read_samples
from prefheads.evaluation.run import RECORDS


@dataclass(frozen=True)
class Pair:
    """Two texts for one sample.

    Attributes:
        profile: The user's earlier texts that the prompt held, with the fields that it showed.
        texts: The texts of the two methods, in the order of ``Study.methods``.
    """

    id: str
    user_id: str
    profile: tuple[Item, ...]
    input: str
    texts: tuple[str, str]

    @property
    def same(self) -> bool:
        """Whether the texts are alike, so that there is nothing to choose: a tie."""
        return self.texts[0].strip() == self.texts[1].strip()


@dataclass(frozen=True)
class Study:
    """Two methods to compare on one task.

    Attributes:
        methods: Their names; which text is whose is for results only, not for judges.
        seed: Decides the samples, and which text stands first.
        pairs: All sampled pairs, those with the same text twice included.
    """

    task: str
    methods: tuple[str, str]
    seed: int
    pairs: tuple[Pair, ...]

    @property
    def differing(self) -> tuple[Pair, ...]:
        """The pairs that judges see."""
        return tuple(p for p in self.pairs if not p.same)

    def swapped(self, pair: Pair, judge: str) -> bool:
        """Whether the second method's text stands first: a coin for each pair and judge."""
        return bool(_sha256([self.seed, judge, pair.id])[0] & 1)

    def describe(self) -> dict[str, Any]:
        """What votes on it depend on, and what results need of it."""
        return {
            "task": self.task,
            "methods": list(self.methods),
            "seed": self.seed,
            "pairs": [
                {
                    "id": p.id,
                    "user_id": p.user_id,
                    "same": p.same,
                    "sha256": _sha256([p.profile, p.input, p.texts]).hex(),
                }
                for p in self.pairs
            ],
        }


def load_study(
    run: Path, methods: Sequence[str], task: str | None = None, n: int | None = 100, seed: int = 0
) -> Study:
    """Pairs from a folder that `prefheads eval` wrote.

    Args:
        methods: Two of its methods, by the names in its tables.
        task: One of its tasks; may be left out if it has one.
        n: Sample at most so many, users in turn; None takes all that both methods have finished.
        seed: Of the sample and of the order of texts.

    Raises:
        ArtifactError: No such run, or one without the texts that are needed.
        DataError: Not two methods, or methods or a task that it does not hold.
    """
    if len(methods) != 2 or methods[0] == methods[1]:
        named = ", ".join(methods) or "none"
        raise DataError(f"name two different methods to compare, not {named}")
    a, b = methods
    folder = _task_folder(run, task)
    done = Records(folder / RECORDS).done
    known = sorted({method for method, _ in done})
    for method in methods:
        if method not in known:
            raise DataError(f"{folder}: holds no texts of {method}; there are {', '.join(known)}")
    both = [e for e in read_samples(folder) if (a, e.id) in done and (b, e.id) in done]
    if not both:
        raise ArtifactError(f"{folder}: no sample has texts of both {a} and {b}")
    fields = task_of(folder.name).fields
    pairs = (
        Pair(
            e.id,
            e.user_id,
            tuple({f: item[f] for f in fields} for item in e.profile),
            e.input,
            (done[a, e.id].prediction, done[b, e.id].prediction),
        )
        for e in spread(both, n, seed)
    )
    return Study(folder.name, (a, b), seed, tuple(pairs))


def _task_folder(run: Path, task: str | None) -> Path:
    found = {p.parent.name: p.parent for p in sorted(run.glob("*/" + RECORDS))}
    if not found:
        raise ArtifactError(f"{run}: holds no texts; give a folder that `prefheads eval` wrote")
    if task is None and len(found) > 1:
        raise DataError(f"{run}: name the --task; there are {', '.join(found)}")
    name = next(iter(found)) if task is None else task_name(task)
    if name not in found:
        raise DataError(f"{run}: holds no texts of {name}; there are {', '.join(found)}")
    if not (found[name] / SAMPLES).is_file():
        raise ArtifactError(
            f"{found[name]}: has no {SAMPLES}; run the same `prefheads eval` again to add it"
        )
    return found[name]


def _sha256(data: Any) -> bytes:
    return hashlib.sha256(json.dumps(data, ensure_ascii=False).encode()).digest()
