"""What an evaluation left behind, read without evaluating again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefheads.calibration.validate import Validation
from prefheads.errors import ArtifactError, DataError
from prefheads.evaluation.methods import Method
from prefheads.evaluation.records import Record, Records
from prefheads.evaluation.results import read_results
from prefheads.evaluation.run import LIKELIHOOD, RECORDS
from prefheads.evaluation.significance import difference as paired_difference
from prefheads.evaluation.significance import over_draws
from prefheads.evaluation.tables import Cell
from prefheads.report.run import parsed
from prefheads.report.wording import columns
from prefheads.stats import Estimate
from prefheads.storage import read_json
from prefheads.tasks.answers import answers_of
from prefheads.tasks.metrics import sample_scores

NLL = "change of NLL"
NOTHING = 1e-5  # a difference below this is rounding
SAME = ("seed", "of", "draws")  # options of controls; what they differ in is no setting of a method


@dataclass(frozen=True)
class Evaluation:
    """The results of `prefheads eval`.

    Attributes:
        folder: Where they lie.
        cells: Every metric of every method.
        methods: As typed, in order; the first is the baseline.
        notes: What a reader of a task's scores of texts must know.
        seed: Of the run.
    """

    folder: Path
    cells: tuple[Cell, ...]
    methods: tuple[Method, ...]
    notes: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Read ``results.json``.

        Raises:
            ArtifactError: Missing (the evaluation has not ended) or damaged.
        """
        told, parts = read_results(folder)
        cells = tuple(cell for part in parts.values() for cell in part)
        try:
            methods = tuple(Method.parse(name) for name in dict.fromkeys(c.method for c in cells))
        except DataError as error:
            raise ArtifactError(f"{folder}: of another version ({error})") from error
        notes = {task: str(about["note"]) for task, about in told.items() if about["note"]}
        run = folder / "run.json"
        options = read_json(run).get("options", {}) if run.is_file() else {}
        return cls(folder, cells, methods, notes, int(options.get("seed", 0)))

    def draws(self, method: str) -> list[str]:
        """The names under which a method's texts are kept: those of its draws."""
        return [one.name for one in Method.parse(method).drawn(self.seed)]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(dict.fromkeys(c.task for c in self.cells))

    def metrics(self, task: str) -> list[str]:
        """The metrics of a task that are compared: those of texts, then the change of NLL."""
        texts = [c.metric for c in self.cells if c.task == task and c.table == "texts"]
        likelihood = [NLL for c in self.cells if c.task == task and c.metric == NLL]
        return list(dict.fromkeys([*texts, *likelihood]))

    def cell(self, task: str, method: str, metric: str) -> Cell | None:
        """One metric of one method on one task."""
        wanted = (task, method, metric)
        return next((c for c in self.cells if (c.task, c.method, c.metric) == wanted), None)

    def controls(self, method: Method) -> list[Method]:
        """Random controls of a method that share all its options."""
        options = dict(method.options).items()
        return [
            m
            for m in self.methods
            if m.is_control
            and m.base == method.kind
            and options <= {k: v for k, v in m.options.items() if k not in SAME}.items()
        ]

    def records(self, task: str) -> dict[str, dict[str, Record]]:
        """The texts of a task with a reference, by method and sample; a torn last line is left.

        Raises:
            ArtifactError: The file is no file of records.
        """
        path = self.folder / task / RECORDS
        found: dict[str, dict[str, Record]] = {}
        for record in Records(path).done.values():
            if record.reference is not None:
                found.setdefault(record.method, {})[record.id] = record
        return found

    def likelihood(self, task: str) -> Validation | None:
        """The NLL of every sample of a task under every method; None if it was not measured.

        Raises:
            ArtifactError: The file is damaged.
        """
        path = self.folder / task / LIKELIHOOD
        return parsed(path, Validation.from_dict) if path.is_file() else None


def estimate(cell: Cell) -> Estimate:
    """A cell's value with its interval."""
    return Estimate(cell.value, cell.low, cell.high)


@dataclass(frozen=True)
class Difference:
    """One method minus another on one task and metric.

    Attributes:
        first, second: The metric of each with its interval.
        paired: Their difference on the same samples with its 95 % interval over users; only its
            value where the samples are no longer in the run's folder.
        higher_is_better: Of the metric.
    """

    task: str
    metric: str
    names: tuple[str, str]
    first: Estimate
    second: Estimate
    paired: Estimate
    higher_is_better: bool
    n: int

    @property
    def better(self) -> Estimate:
        """Turned so that above 0 the first is better."""
        d = self.paired
        return d if self.higher_is_better else Estimate(-d.mean, -d.high, -d.low, d.p)

    def row(self) -> dict[str, Any]:
        """One line."""
        return {
            "task": self.task,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "first": self.names[0],
            **columns(self.first, "first_value", "first_"),
            "second": self.names[1],
            **columns(self.second, "second_value", "second_"),
            **columns(self.paired, "difference"),
            "samples": self.n,
        }


def differences(found: Evaluation, pairs: Sequence[tuple[str, str]]) -> list[Difference]:
    """Compare pairs of methods on every task and metric, paired by sample."""
    result = []
    for task in found.tasks:
        records, likelihood = found.records(task), found.likelihood(task)
        for first, second in pairs:
            paired = _of_texts(
                task,
                *([records[n] for n in found.draws(m) if n in records] for m in (first, second)),
            )
            if likelihood is not None and {first, second} <= set(likelihood.methods):
                paired[NLL] = likelihood.difference(first, second)
            for metric in found.metrics(task):
                a, b = (found.cell(task, name, metric) for name in (first, second))
                if a is None or b is None or math.isnan(a.value - b.value):
                    continue
                unpaired = Estimate(a.value - b.value, math.nan, math.nan)
                both, difference = (estimate(a), estimate(b)), paired.get(metric, unpaired)
                names, higher = (first, second), a.higher_is_better
                result.append(Difference(task, metric, names, *both, difference, higher, a.n))
    return result


def _of_texts(
    task: str, first: Sequence[dict[str, Record]], second: Sequence[dict[str, Record]]
) -> dict[str, Estimate]:
    """Differences by metric; of each side the texts of every draw."""
    if not first or not second:
        return {}
    sides = [*first, *second]
    ids = [key for key in first[0] if all(key in side for side in sides)]
    if not ids:
        return {}
    golds = [str(first[0][key].reference) for key in ids]
    users = [first[0][key].user_id for key in ids]
    rows = [sample_scores(task, [side[key].prediction for key in ids], golds) for side in sides]
    a, b = rows[: len(first)], rows[len(first) :]
    alone = len(first) == len(second) == 1
    return {
        m.name: paired_difference(a[0][m.name], b[0][m.name], m, users)
        if alone
        else over_draws([r[m.name] for r in a], [r[m.name] for r in b], m, users)
        for m in answers_of(task).metrics
    }
