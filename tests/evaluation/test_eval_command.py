"""`prefheads eval`: whole runs, killed and resumed, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import assert_one_error
from support.compared import METHODS, ask
from support.lamp_files import write_task
from support.official import official
from support.saved import Cli

from prefheads.evaluation.methods import Method
from prefheads.evaluation.records import Records
from prefheads.tasks.metrics import read_predictions


@pytest.fixture(scope="module")
def evaluated(
    tiny_folder: Path, lamp_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from prefheads.cli.main import run

    out = tmp_path_factory.mktemp("runs") / "eval"
    some = ("--task", "LaMP-7,LaMP-3", "--methods", ",".join(METHODS), "--limit", 8, "--extract")
    assert run([str(a) for a in ask(tiny_folder, lamp_folder, out, *some)]) == 0
    return out


def test_eval_writes_everything(evaluated: Path) -> None:
    results = json.loads((evaluated / "results.json").read_text())
    assert results["tasks"]["LaMP-7"]["samples"] == 8 and results["tasks"]["LaMP-7"]["folds"] == 1
    assert results["tasks"]["LaMP-3"]["samples"] == 8 and results["tasks"]["LaMP-3"]["folds"] == 2
    markdown = (evaluated / "table.md").read_text()
    first = "LaMP-7 (dev), texts: 8 samples; heads from users set aside"
    second = "LaMP-3 (dev), likelihood: 8 samples in 2 folds; heads from users of the other fold"
    for part in (first, second, "rouge-L", "LaMP-3 (dev), extracted answers"):
        assert part in markdown
    assert "\\toprule" in (evaluated / "table.tex").read_text()
    lines = (evaluated / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + len(results["cells"])
    golds = {
        r.id: str(r.reference)
        for (method, _), r in Records(evaluated / "LaMP-7" / "records.jsonl").done.items()
        if method == "cad"
    }
    assert read_predictions(evaluated / "LaMP-7" / "golds.json") == ("LaMP-7", golds)


def test_the_documents_example_scores_a_file_of_predictions(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the values of the run's own table."""
    document = Path(__file__).parents[2] / "docs" / "evaluate.md"
    block = r"```python no-run\n(.*?read_predictions.*?)```"
    (example,) = re.findall(block, document.read_text(), re.S)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "eval").symlink_to(evaluated)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    results = json.loads((evaluated / "results.json").read_text())
    cells = [
        c
        for c in results["cells"]
        if (c["task"], c["method"], c["table"]) == ("LaMP-7", "cad", "texts")
    ]
    found = {c["metric"]: c["value"] for c in cells}
    found |= {f"{c['metric']}, official": c["official"] for c in cells if c["metric"] != "meteor"}
    assert found == pytest.approx(names["scores"])


def test_every_value_of_a_run_is_the_official_evaluations(evaluated: Path) -> None:
    """Of a random control the mean over its draws."""
    results = json.loads((evaluated / "results.json").read_text())
    cells = [c for c in results["cells"] if c["table"] == "texts"]
    assert len(cells) == 5 * len(METHODS)
    for task in ("LaMP-7", "LaMP-3"):
        _, golds = read_predictions(evaluated / task / "golds.json")
        told: dict[str, dict[str, float]] = {}
        for path in (evaluated / task / "predictions").iterdir():
            _, texts = read_predictions(path)
            name = path.stem.replace(",", ":")
            told[name] = official(task, [texts[key] for key in golds], list(golds.values()))
        for cell in (c for c in cells if c["task"] == task):
            draws = [one.name for one in Method.parse(cell["method"]).drawn(0)]
            assert len(draws) == (5 if cell["method"].startswith("random-") else 1)
            wanted = np.mean([told[draw][cell["metric"]] for draw in draws])
            assert cell["value"] == pytest.approx(wanted)
            if cell["official"] is not None:
                resampled = [told[draw][f"{cell['metric']}, official"] for draw in draws]
                assert cell["official"] == pytest.approx(np.mean(resampled))


def test_eval_resumes_without_work(
    cli: Cli, tiny_folder: Path, lamp_folder: Path, evaluated: Path
) -> None:
    before = {p: p.read_bytes() for p in evaluated.rglob("*") if p.is_file()}
    some = ("--task", "LaMP-7,LaMP-3", "--methods", ",".join(METHODS), "--limit", 8, "--extract")
    assert cli(*ask(tiny_folder, lamp_folder, evaluated, *some, "--batch-size", 3)).code == 0
    assert {p: p.read_bytes() for p in evaluated.rglob("*") if p.is_file()} == before
    refused = cli(*ask(tiny_folder, lamp_folder, evaluated, *some, "--items", 3))
    assert refused.code == 2 and "another items" in refused.err


def test_eval_grows_by_methods(
    cli: Cli, tiny_folder: Path, lamp_folder: Path, tmp_path: Path
) -> None:
    some = ("--task", "LaMP-7", "--limit", 5, "--json")
    first = json.loads(
        cli(*ask(tiny_folder, lamp_folder, tmp_path, *some, "--methods", "plain")).out
    )
    both = json.loads(
        cli(*ask(tiny_folder, lamp_folder, tmp_path, *some, "--methods", "plain,cad")).out
    )
    plain = [c for c in both["cells"] if c["method"] == "plain"]
    assert plain == first["cells"] and len(both["cells"]) == 2 * len(plain)
    assert not (tmp_path / "LaMP-7" / "fit-0").exists()  # nothing that needs heads


def test_another_task_keeps_the_tables_of_the_first(
    cli: Cli, tiny_folder: Path, lamp_folder: Path, evaluated: Path, tmp_path: Path
) -> None:
    """Task by task gives what both at once give."""
    some = ("--methods", ",".join(METHODS), "--limit", 8, "--extract", "--quiet", "--json")
    for task in ("LaMP-7", "LaMP-3"):
        done = cli(*ask(tiny_folder, lamp_folder, tmp_path, "--task", task, *some))
        assert (done.code, done.err) == (0, "")
    assert list(json.loads(done.out)["tasks"]) == ["LaMP-7", "LaMP-3"]
    for name in ("table.md", "table.csv", "table.tex"):
        assert (tmp_path / name).read_text() == (evaluated / name).read_text()
    (tmp_path / "results.json").write_text("{}")
    damaged = cli(*ask(tiny_folder, lamp_folder, tmp_path, "--task", "LaMP-3", *some))
    assert_one_error(damaged, "results.json: damaged")


def test_a_killed_eval_ends_with_the_same_table(
    tiny_folder: Path, lamp_folder: Path, evaluated: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of likelihood and of generation; then the same command again."""
    script = """
import os, signal, sys
from prefheads import checkpoint
from prefheads.evaluation.records import Records
left, add, save = int(sys.argv.pop(1)), Records.add, checkpoint.Checkpoint.add
def counted(done):
    def call(self, *args, **kwargs):
        global left
        done(self, *args, **kwargs)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return call
Records.add, checkpoint.Checkpoint.add = counted(add), counted(save)
from prefheads.cli.main import main
main(sys.argv[1:])
"""
    some = ("--task", "LaMP-7,LaMP-3", "--methods", ",".join(METHODS), "--limit", 8, "--extract")
    command = [str(a) for a in ask(tiny_folder, lamp_folder, tmp_path / "run", *some)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for left in (11, 30, -1):
        done = subprocess.run(
            [sys.executable, "-c", script, str(left), *command],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == (-signal.SIGKILL if left > 0 else 0), done.stderr
    for name in ("table.md", "table.csv", "table.tex"):
        assert (tmp_path / "run" / name).read_text() == (evaluated / name).read_text()
    lines = (tmp_path / "run" / "LaMP-7" / "records.jsonl").read_text().splitlines()
    assert len(lines) == 8 * (len(METHODS) + 2 * 4)  # random controls are drawn five times


def test_heads_are_not_found_on_what_is_evaluated(
    cli: Cli, tiny_folder: Path, tmp_path: Path
) -> None:
    write_task(tmp_path / "lamp", "LaMP_7", 6)
    write_task(tmp_path / "lamp", "LaMP_7", 10, "train", first=6)
    some = ("--task", "LaMP-7", "--methods", "plain,dps", "--measure", "likelihood", "--quiet")
    same = (*some, "--discovery-split", "dev")
    refused = cli(*ask(tiny_folder, tmp_path / "lamp", tmp_path / "out", *same))
    assert refused.code == 2 and "not found on what is evaluated" in refused.err
    forced = cli(*ask(tiny_folder, tmp_path / "lamp", tmp_path / "out", *same, "--force"))
    assert forced.code == 0
    trained = cli(*ask(tiny_folder, tmp_path / "lamp", tmp_path / "other", *some))
    assert (trained.code, trained.err) == (0, "")
    users = json.loads((tmp_path / "other/LaMP-7/fit-0/steerer.json").read_text())["users"]
    assert not {u for part in users.values() for u in part} & {str(i) for i in range(6)}


def test_a_fitted_folder_lends_its_heads(
    cli: Cli, tiny_folder: Path, lamp_folder: Path, tmp_path: Path
) -> None:
    fit = (
        "fit",
        "--model",
        tiny_folder,
        "--data",
        lamp_folder / "LaMP_7",
        "--out",
        tmp_path / "fit",
    )
    assert cli(*fit, "--split", "0.3,0.3,0.4", "--min-samples", 1).code == 0
    some = ("--task", "LaMP-7", "--methods", "plain,dps", "--fitted", tmp_path / "fit", "--json")
    found = json.loads(cli(*ask(tiny_folder, lamp_folder, tmp_path / "out", *some)).out)
    assert found["tasks"]["LaMP-7"]["samples"] == 10
    assert not (tmp_path / "out" / "LaMP-7" / "fit-0").exists()


def test_a_fit_on_other_users_is_refused(
    cli: Cli, tiny_folder: Path, lamp_folder: Path, tmp_path: Path
) -> None:
    """A training split that appears later changes who is evaluated; the old fit must not serve."""
    root = tmp_path / "lamp"
    write_task(root, "LaMP_7", 24)
    some = ("--task", "LaMP-7", "--methods", "plain,dps", "--measure", "texts")
    assert cli(*ask(tiny_folder, root, tmp_path / "out", *some)).code == 0
    write_task(root, "LaMP_7", 10, "train", first=24)
    refused = cli(*ask(tiny_folder, root, tmp_path / "out", *some))
    assert refused.code == 2 and "other users" in refused.err


def test_texts_without_golds(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """The official test split has none: predictions can be had, in the official shape."""
    task = write_task(tmp_path / "lamp", "LaMP_7", 4, "test")
    (task / "test_outputs.json").unlink()
    some = ("--task", "LaMP-7", "--split", "test", "--methods", "plain")
    refused = cli(*ask(tiny_folder, tmp_path / "lamp", tmp_path / "out", *some))
    assert refused.code == 2 and "test_outputs.json" in refused.err
    some = (*some, "--measure", "texts")
    assert cli(*ask(tiny_folder, tmp_path / "lamp", tmp_path / "out", *some)).code == 0
    found = read_predictions(tmp_path / "out" / "LaMP-7" / "predictions" / "plain.json")
    assert len(found[1]) == 4 and not (tmp_path / "out" / "LaMP-7" / "golds.json").exists()


def test_golds_that_rouge_does_not_see_are_told(
    cli: Cli, tiny_folder: Path, tmp_path: Path
) -> None:
    task = write_task(tmp_path / "lamp", "LaMP_7", 4)
    golds = [{"id": f"{i}", "output": "Привет, мир"} for i in range(4)]
    (task / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_7", "golds": golds}))
    some = ("--task", "LaMP-7", "--methods", "plain", "--measure", "texts", "--quiet")
    done = cli(*ask(tiny_folder, tmp_path / "lamp", tmp_path / "out", *some))
    assert (done.code, done.err) == (0, "")
    assert "LaMP-7: rouge-1 and rouge-L see nothing of 4 of the 4 references" in done.out


def test_eval_of_longlamp(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """A task of LongLaMP as the Hub holds it, heads from its training split."""
    root = tmp_path / "long" / "topic_writing_user"
    root.mkdir(parents=True)
    for split, users in (("train", range(8)), ("test", range(6, 12))):
        rows = [
            {
                "author": f"writer-{i}",
                "input": f"Generate the content for a reddit post tea {i}",
                "output": f"Tea {i} is good.",
                "profile": [{"summary": f"s{k}", "content": f"wind {i + k}"} for k in range(3)],
            }
            for i in users
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    some = ("--split", "test", "--methods", "plain,dps", "--json", "--quiet")
    done = cli(*ask(tiny_folder, tmp_path / "long", tmp_path / "out", *some))
    assert (done.code, done.err) == (0, "")
    task = json.loads(done.out)["tasks"]["LongLaMP-4"]
    assert (task["samples"], task["split"], task["heads_from"]) == (6, "test", "train")
    steerer = json.loads((tmp_path / "out/LongLaMP-4/fit-0/steerer.json").read_text())
    found = {user for part in steerer["users"].values() for user in part}
    assert found == {f"writer-{i}" for i in range(6)}  # not those who are in both splits


@pytest.mark.parametrize(
    "more, part",
    [
        (("--methods", "dsp"), "unknown method"),
        (("--methods", "plain,plain"), "named twice"),
        (("--methods", " "), "at least one"),
        (("--task", "LaMP-9"), "LaMP-9"),
        (("--task", "LaMP-1"), "LaMP-1"),
        (("--split", "test"), "no split 'test'"),
        (("--task", "LaMP-7", "--limit", 1), "two or more"),
        (("--methods", "dps", "--prompt-length", 16), "--prompt-length"),
        (("--max-new-tokens", 2000), "max_new_tokens"),
        (("--fitted", "nowhere"), "nowhere"),
    ],
)
def test_bad_requests_are_told_in_a_line(
    cli: Cli,
    tiny_folder: Path,
    lamp_folder: Path,
    tmp_path: Path,
    more: tuple[object, ...],
    part: str,
) -> None:
    some = ("--methods", "plain", "--quiet", *more)
    result = cli(*ask(tiny_folder, lamp_folder, tmp_path / "out", *some))
    assert result.code == 2 and result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ") and part in line
