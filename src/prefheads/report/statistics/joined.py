"""Evaluations of several models and tasks as one table, as the paper's Tables 1 and 2.

1. Runs are joined where they evaluated the same samples in the same way; others are refused.
2. The best method of a model on a task is set off if it is told from the second best: paired
   approximate randomisation over users, corrected by Holm over all such tests of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefheads.errors import ArtifactError
from prefheads.evaluation.records import Record
from prefheads.evaluation.significance import over_draws, paired_test
from prefheads.evaluation.tables import LEVEL
from prefheads.models.bundled import model_name
from prefheads.optional import require
from prefheads.report.statistics.evaluated import Evaluation
from prefheads.stats import Array, holm
from prefheads.storage import read_json, write_atomic
from prefheads.tasks.answers import Metric, answers_of
from prefheads.tasks.metrics import sample_scores

ALIKE = (  # options of a run
    "split", "items", "retrieval", "prompt_length", "max_new_tokens", "label_tokens", "encoder"
)  # fmt: skip
LEGEND = (
    "Bold: the best method of a model on a task, where it is told from the second best (paired "
    "approximate randomisation over users, Holm over all of the table's tests, 5 %)."
)


@dataclass(frozen=True)
class Score:
    """One metric of one method of one model on one task.

    Attributes:
        table: The paper's table that it belongs to, and what that is of.
        n: Samples.
        p: Where this is the best method: of its test against the second best, corrected.
    """

    table: str
    model: str
    method: str
    task: str
    metric: str
    higher_is_better: bool
    value: float
    n: int
    p: float | None = None

    @property
    def best(self) -> bool:
        """Whether it is the best, and told from the second best."""
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True)
class _TaskOfRun:
    """One task of one run: the texts of every draw of every method on the same samples."""

    folder: Path
    model: str
    task: str
    options: dict[str, Any]
    texts: dict[str, list[dict[str, Record]]]

    @property
    def golds(self) -> dict[str, str]:
        """The reference of every sample."""
        return {key: str(r.reference) for key, r in next(iter(self.texts.values()))[0].items()}


def join(folders: Sequence[Path], *, extracted: bool = False, seed: int = 0) -> list[Score]:
    """The scores of all methods in runs of `prefheads eval`.

    Args:
        extracted: Score the answers that are extracted from texts instead of the whole texts.
        seed: Of the permutations.

    Raises:
        ArtifactError: No such runs, or runs that cannot be compared.
    """
    parts: list[_TaskOfRun] = []
    for part in (p for folder in folders for p in _tasks_of(folder)):
        for other in parts:
            if other.task == part.task:
                _require_comparable(part, other)
        parts.append(part)
    scores = [s for part in parts for s in _scores(part, extracted, seed)]
    for table in {s.table for s in scores}:
        tested = [i for i, s in enumerate(scores) if s.table == table and s.p is not None]
        for i, p in zip(tested, holm([scores[i].p or 0.0 for i in tested]), strict=True):
            scores[i] = replace(scores[i], p=float(p))
    return scores


def table_of(task: str) -> str:
    """The table of the paper that a task's scores belong to, and what that table is of."""
    if not task.startswith("LaMP-"):
        return f"{'LongLaMP' if task.startswith('LongLaMP') else 'Other tasks'} (not in the paper)"
    if task == "LaMP-6":
        return "E-mail subjects (not in the paper)"
    if answers_of(task).kind == "Gen.":
        return "Table 1: LaMP, generation"
    return "Table 2: LaMP, classification and regression"


def _tasks_of(folder: Path) -> list[_TaskOfRun]:
    if not (folder / "run.json").is_file() or not (folder / "results.json").is_file():
        raise ArtifactError(f"{folder}: holds no finished run of `prefheads eval`")
    about, found = read_json(folder / "run.json"), Evaluation.read(folder)
    parts = []
    for task in found.tasks:
        methods = dict.fromkeys(c.method for c in found.cells if c.task == task)
        records = found.records(task)
        drawn = {m: [records[n] for n in found.draws(m) if n in records] for m in methods}
        texts = {m: draws for m, draws in drawn.items() if draws}
        if texts:
            model = model_name(about.get("model"))
            parts.append(_TaskOfRun(folder, model, task, about.get("options", {}), texts))
    if not parts:
        raise ArtifactError(f"{folder}: holds no texts with references, which the tables are of")
    return parts


def _require_comparable(part: _TaskOfRun, other: _TaskOfRun) -> None:
    here, there = f"{part.folder}", f"{other.folder}"
    if part.model == other.model:
        raise ArtifactError(f"{here}: {part.task} of {part.model} is in {there} too; give only one")
    if part.golds != other.golds:
        shared = len(part.golds.items() & other.golds.items())
        raise ArtifactError(
            f"{here}: holds other samples of {part.task} than {there} ({len(part.golds)} and "
            f"{len(other.golds)}, {shared} of them the same), so they cannot be compared"
        )
    for name in ALIKE:
        mine, others = part.options.get(name), other.options.get(name)
        if mine != others:
            raise ArtifactError(
                f"{here}: was evaluated with another {name} than {there} ({mine}, {others}), so "
                "they cannot be compared"
            )


def _scores(part: _TaskOfRun, extracted: bool, seed: int) -> list[Score]:
    golds = part.golds
    rows: dict[str, list[dict[str, Array]]] = {}
    for method, draws in part.texts.items():
        for records in draws:
            texts = [records[key].prediction for key in golds]
            if extracted:
                texts = [answers_of(part.task).extract(text) or text for text in texts]
            found = sample_scores(part.task, texts, list(golds.values()))
            rows.setdefault(method, []).append(found)
    first = next(iter(part.texts.values()))[0]
    users = [first[key].user_id for key in golds]
    scores = []
    for metric in answers_of(part.task).metrics:
        made = [
            Score(table_of(part.task), part.model, method, part.task, metric.name,
                  metric.higher_is_better,
                  float(np.mean([metric.aggregate(found[metric.name]) for found in draws])),
                  len(golds))
            for method, draws in rows.items()
        ]  # fmt: skip
        of_metric = {m: [r[metric.name] for r in draws] for m, draws in rows.items()}
        scores += _with_best(made, metric, of_metric, users, seed)
    return scores


def _with_best(
    scores: list[Score],
    metric: Metric,
    rows: dict[str, list[Array]],
    users: Sequence[str],
    seed: int,
) -> list[Score]:
    """The same scores, the best with the p value of its test against the second best."""
    if len(scores) < 2:
        return scores
    order = sorted(scores, key=lambda s: s.value, reverse=metric.higher_is_better)
    best, second = order[:2]
    first, other = rows[best.method], rows[second.method]
    if len(first) == len(other) == 1:
        p = paired_test(first[0], other[0], metric, users, seed=seed)
    else:
        p = float(np.nan_to_num(over_draws(first, other, metric, users).p, nan=1.0))
    return [replace(s, p=p) if s is best else s for s in scores]


def frames(scores: Sequence[Score], bold: str = "{}") -> dict[str, Any]:
    """A data frame for each of the paper's tables: a row a model and method, a column a metric.

    Args:
        bold: What a best value is written in.
    """
    pandas = require("pandas", "eval")
    tables = {}
    for table in sorted({s.table for s in scores}):
        cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
        for s in (s for s in scores if s.table == table):
            column = (s.task, f"{s.metric} {'↑' if s.higher_is_better else '↓'}")
            shown = f"{s.value:.4f}"
            row = cells.setdefault((s.model, s.method), {})
            row[column] = bold.format(shown) if s.best else shown
        frame = pandas.DataFrame.from_dict(cells, orient="index").fillna("")
        frame = frame[sorted(frame.columns, key=lambda column: column[0])]
        frame.index = pandas.MultiIndex.from_tuples(cells, names=["model", "method"])
        frame.columns = pandas.MultiIndex.from_tuples(frame.columns)
        tables[table] = frame
    return tables


def write(out: Path, scores: Sequence[Score]) -> None:
    """Write ``tables.md``, ``tables.tex`` and ``tables.csv`` (a line a score)."""
    pandas = require("pandas", "eval")
    markdown = []
    for title, frame in frames(scores, "**{}**").items():
        frame.columns = [" ".join(column) for column in frame.columns]
        table = frame.reset_index().to_markdown(index=False, disable_numparse=True)
        markdown.append(f"### {title}\n\n{table}\n")
    latex = []
    for title, frame in frames(scores, "\\textbf{{{}}}").items():
        frame = frame.rename(columns=_as_latex, index=_as_latex)
        caption = f"{title}. {LEGEND}".replace("%", "\\%")
        latex.append(frame.to_latex(escape=False, caption=caption))
    lines = pandas.DataFrame([asdict(s) | {"best": s.best} for s in scores])
    write_atomic(out / "tables.md", "\n".join([*markdown, LEGEND + "\n"]).encode())
    write_atomic(out / "tables.tex", "\n".join(latex).encode())
    write_atomic(out / "tables.csv", lines.to_csv(index=False).encode())


def _as_latex(name: str) -> str:
    for sign, written in {"_": "\\_", "%": "\\%", "↑": "$\\uparrow$", "↓": "$\\downarrow$"}.items():
        name = name.replace(sign, written)
    return name
