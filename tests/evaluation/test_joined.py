"""`prefheads tables`: runs of several models as one table, and which runs it refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from support.commands import assert_one_error
from support.compared import record
from support.saved import Cli

from prefheads.evaluation.records import Record
from prefheads.evaluation.results import write_tables
from prefheads.evaluation.run import Measured
from prefheads.evaluation.tables import cells

N = 16
GOLDS = [f"the {word} is here" for word in "abcdefghijklmnop"]


def write_run(out: Path, model: str, texts: dict[str, dict[str, list[str]]], **options) -> Path:
    """A finished evaluation: of each task and method the predictions."""
    out.mkdir()
    about = {"command": "eval", "model": model, "options": {"items": 5, **options}}
    (out / "run.json").write_text(json.dumps(about))
    measured = []
    for task, by_method in texts.items():
        golds = GOLDS if task == "LaMP-7" else ["4"] * N
        records: dict[str, list[Record]] = {
            method: [
                record(str(i), method, task=task, prediction=text, reference=golds[i])
                for i, text in enumerate(predictions)
            ]
            for method, predictions in by_method.items()
        }
        (out / task).mkdir()
        lines = [json.dumps(asdict(r)) + "\n" for rows in records.values() for r in rows]
        (out / task / "records.jsonl").write_text("".join(lines))
        measured.append(Measured(task, records, None, {m: [""] for m in records}, 1))
    write_tables(out, measured, [cells(m) for m in measured], {})
    return out


def answers(right: int, form: str = "{}") -> list[str]:
    """So many right ratings, the others wrong by one."""
    return [form.format(4 if i < right else 5) for i in range(N)]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    wrong = ["nothing of it"] * N
    first = {"plain": wrong, "dps": GOLDS, "cad": wrong}
    ratings = {"plain": answers(8), "dps": answers(9), "cad": answers(16)}
    return [
        write_run(tmp_path / "a", "model-a", {"LaMP-7": first, "LaMP-3": ratings}),
        write_run(tmp_path / "b", "org/b_1", {"LaMP-7": {"plain": GOLDS, "dps": GOLDS}}),
    ]


def test_models_tasks_and_methods_in_one_table(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "joined"
    result = cli("tables", *runs, "--out", out, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    value = {(s["model"], s["method"], s["metric"]): s["value"] for s in found}
    assert value["model-a", "dps", "rouge-1"] == 1 == value["org/b_1", "plain", "rouge-L"]
    assert value["model-a", "plain", "mae"] == 0.5 and value["model-a", "dps", "mae"] == 7 / 16
    assert value["model-a", "plain", "rmse"] == pytest.approx(0.5**0.5)
    best = {(s["model"], s["method"], s["metric"]) for s in found if s["best"]}
    # Both of model b are the same, so none is the best; cad's errors are the fewest.
    assert best == {
        *(("model-a", "dps", metric) for metric in ("rouge-1", "rouge-L", "meteor")),
        *(("model-a", "cad", metric) for metric in ("mae", "rmse")),
    }
    (mae,) = (s["p"] for s in found if (s["method"], s["metric"]) == ("cad", "mae"))
    # 7 users differ, of 2 ** 7 ways to swap them 2 are as far apart; Holm over two tests.
    assert mae == pytest.approx(2 * 2 / 2**7, abs=0.01)
    markdown = (out / "tables.md").read_text()
    first, second = markdown.split("### ")[1:]
    assert first.startswith("Table 1: LaMP, generation\n\n| model   | method   | LaMP-7 rouge-1 ↑")
    assert "| model-a | dps      | **1.0000**" in first and "| org/b_1 | dps      | 1.0000" in first
    assert second.startswith("Table 2: LaMP, classification and regression") and "mae ↓" in second
    latex = (out / "tables.tex").read_text()
    assert "\\textbf{1.0000}" in latex and "org/b\\_1" in latex and "mae $\\downarrow$" in latex
    with (out / "tables.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(found) == 3 * 3 + 2 * 3 + 3 * 2
    shown = cli("tables", *runs).out
    assert "1.0000 *" in shown and "Table 2: LaMP" in shown


def test_extracted_answers(cli: Cli, tmp_path: Path) -> None:
    texts = {"plain": answers(8, "The score is {}."), "dps": answers(12, "The score is {}.")}
    run = write_run(tmp_path / "a", "a", {"LaMP-3": texts})
    strict, extracted = (
        {(s["method"], s["metric"]): s["value"] for s in json.loads(cli(*ask).out)}
        for ask in (("tables", run, "--json"), ("tables", run, "--json", "--extract"))
    )
    assert strict["plain", "mae"] == 3  # what is no number counts as the farthest rating
    assert extracted["plain", "mae"] == 0.5 and extracted["dps", "mae"] == 0.25


def test_runs_that_cannot_be_compared(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    some = {"LaMP-7": {"plain": GOLDS[:10]}}
    fewer = write_run(tmp_path / "fewer", "c", some)
    assert_one_error(
        cli("tables", *runs, fewer), str(fewer), "other samples of LaMP-7", "10 and 16, 10 of them"
    )
    other = write_run(tmp_path / "other", "c", {"LaMP-7": {"plain": GOLDS}}, items=3)
    assert_one_error(cli("tables", *runs, other), "another items", "(3, 5)")
    same = write_run(tmp_path / "same", "model-a", {"LaMP-7": {"plain": GOLDS}})
    assert_one_error(cli("tables", *runs, same), "LaMP-7 of model-a is in", "give only one")
    assert_one_error(cli("tables", tmp_path), "no finished run of `prefheads eval`")
