"""Counterparts of the paper's tables: results, cost, judgements, and the data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from prefheads.errors import ArtifactError
from prefheads.evaluation.flops import model_cost, paper_estimate
from prefheads.report.page.entry import Entry
from prefheads.report.statistics.evaluated import Evaluation
from prefheads.report.statistics.joined import table_of
from prefheads.report.wording import columns, counted
from prefheads.stats import INTERVALS, Estimate
from prefheads.storage import read_json
from prefheads.tasks.statistics import TaskStatistics

TERA = 1e12
PROMPTS = (512, 1024, 2048)  # the lengths of Table 3
NEW = 32
JUDGED = "judge*.json"  # what the judge commands print with --json, kept in the run's folder


def results(found: Evaluation) -> list[Entry]:
    """All methods on every task: one entry a table of the evaluation."""
    entries = []
    for task, table in dict.fromkeys((c.task, c.table) for c in found.cells):
        cells = [c for c in found.cells if (c.task, c.table) == (task, table)]
        rows: dict[str, dict[str, Any]] = {}
        for c in cells:
            rows.setdefault(c.method, {"method": c.method})[c.metric] = str(c)
        n = max(c.n for c in cells)
        in_paper = table_of(task).startswith("Table")
        note = found.notes.get(task, "") if table != "likelihood" else ""
        entries.append(
            Entry(
                f"results-{task}-{table.replace(' ', '-')}",
                f"{task}: all methods, {table}",
                table_of(task).partition(":")[0] if table == "texts" and in_paper else "",
                shows=(
                    f"{n} samples; {INTERVALS}. + and -: better and worse "
                    f"than {found.methods[0].name} by a paired test, p < 0.05, corrected by Holm "
                    f"over the table. {note}"
                ).strip(),
                tables={"": list(rows.values())},
            )
        )
    return entries


def cost_rows(config: PreTrainedConfig, fork: int) -> list[dict[str, Any]]:
    """Cost of plain decoding and of steering, by the paper's estimate and counted.

    Args:
        fork: First layer with a steered head.
    """
    cost, rows = model_cost(config), []
    for n in PROMPTS:
        paper = paper_estimate(config, n, NEW)
        row: dict[str, Any] = {"prompt": n}
        if paper is not None:
            row |= {"paper_plain": paper[0] / TERA, "paper_dps": paper[1] / TERA}
            row |= {"paper_overhead": paper[1] / paper[0]}
        plain, contrast = cost.plain(n, NEW), cost.contrast(n, NEW, fork)
        row |= {"exact_plain": plain / TERA, "exact_dps": contrast / TERA}
        row |= {"exact_overhead": contrast / plain}
        rows.append(row | {"exact_amplify_overhead": cost.amplify(n, NEW) / plain})
    return rows


def cost(rows: Sequence[Mapping[str, Any]] | None, command: str) -> Entry:
    """Table 3 for the run's model.

    Args:
        rows: Of :func:`cost_rows`; None if nothing was counted.
        command: What counts.
    """
    title, paper = "FLOPs of plain decoding and of steering", "Table 3"
    if rows is None:
        return Entry("flops", title, paper, missing=f"the model's config: `{command}`.")
    last = rows[-1]
    return Entry(
        "flops",
        title,
        paper,
        shows=(
            f"TFLOP for {NEW} new tokens at batch size 1, by length of the prompt: the paper's "
            "formula, and a count of the matrix products that the model's code performs. After "
            f"{last['prompt']} tokens DPS costs {last['exact_overhead']:.3f} times plain decoding "
            "(its second branch begins at the first layer with a steered head), amplification "
            f"{last['exact_amplify_overhead']:.3f} times. `prefheads flops` has CAD, DoLa and "
            "discovery."
        ),
        tables={"": rows},
    )


def statistics_rows(found: Sequence[TaskStatistics]) -> list[dict[str, Any]]:
    """Lines of Table 5."""
    rows = []
    for s in found:
        row: dict[str, Any] = {"task": s.task or "no task", "type": s.kind, "setting": s.setting}
        row |= {"splits": ", ".join(s.splits), "users": s.users, "instances": s.instances}
        for name in ("profile_items", "input_words", "output_words"):
            spread = getattr(s, name)
            mean, median = (None, None) if spread is None else spread
            row |= {f"{name}_mean": mean, f"{name}_median": median}
        rows.append(row)
    return rows


def data(rows: Sequence[Mapping[str, Any]] | None, command: str) -> Entry:
    """Table 5 for the run's data."""
    title, paper = "What the data holds", "Table 5"
    if rows is None:
        return Entry("data", title, paper, missing=f"the data: `{command}`.")
    told = "Users, instances and lengths of the data that was named, all its splits together."
    return Entry("data", title, paper, shows=told, tables={"": rows})


def judged(run: Path) -> list[Entry]:
    """Table 4: judgements by people and by a language model, from files in the run's folder.

    Raises:
        ArtifactError: A file that no judge command has printed.
    """
    paper = "Table 4"
    found = {path: read_json(path) for path in sorted(run.glob(JUDGED))}
    entries = []
    for path, content in found.items():
        try:
            by, read = ("people", _people) if "wins" in content else ("a language model", _model)
            shows, rows = read(content)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path}: not what a judge command printed with --json ({error!r})"
            ) from None
        named = f"Judged by {by}: {content['task']}, {' against '.join(content['methods'])}"
        entries.append(Entry(path.stem, named, paper, shows=shows, tables={"": rows}))
    here = f"--run {shlex.quote(str(run))} --methods A,B --task TASK"
    lacking = []
    if not any("wins" in content for content in found.values()):
        lacking.append(
            f"people: `prefheads judge serve {here} --db VOTES`, then `prefheads judge results "
            f"--db VOTES --json > {shlex.quote(str(run))}/judge-people.json`"
        )
    if not any("table" in content for content in found.values()):
        lacking.append(
            f"a language model: `prefheads judge llm {here} --base-url URL --model JUDGE --json > "
            f"{shlex.quote(str(run))}/judge-llm.json`"
        )
    if lacking:
        title = "Judged by people and by a language model"
        entries.append(Entry("judge", title, paper, missing=f"{'; '.join(lacking)}."))
    return entries


def _people(found: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    alpha = found["alpha"]
    agreed = "not defined" if alpha is None else f"{alpha:.2f}"
    rows = [
        {"winner": name, **columns(_estimate(share))}
        for name, share in (*found["wins"].items(), ("difference", found["difference"]))
    ]
    return (
        f"Share of {found['pairs'] - found['open']} blinded pairs that each method wins by "
        f"majority vote of {counted(len(found['votes']), 'annotator')}, with "
        f"{INTERVALS}; {found['same']} pairs have the same text twice and count as ties. "
        f"Krippendorff's alpha {agreed} (1: the annotators agree; 0: as by chance)."
    ), rows


def _model(found: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    first, second = found["methods"]
    rows = []
    for line in found["table"]:
        row: dict[str, Any] = {"rated": line["name"].replace("_", " ")}
        means = zip((first, second), line["means"], strict=True)
        for name, mean in (*means, ("difference", line["difference"])):
            row |= columns(_estimate(mean), name, f"{name} ")
        rows.append(row)
    return (
        f"Ratings from 1 to 5 by {found['judge']} of {found['rated']} blinded pairs, both orders, "
        f"with {INTERVALS}; {found['same']} pairs have the same text twice "
        "and count as ties. The first line is the share of pairs won on preference alignment. "
        "The difference is that of the second method less the first."
    ), rows


def _estimate(found: Mapping[str, Any]) -> Estimate:
    return Estimate(found["mean"], found["low"], found["high"])
