"""Tasks and methods of other packages, and what is reached by the registry alone."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import plugin
from support.saved import Cli

from prefheads.data.example import load_examples
from prefheads.data.prompts import build_prompt
from prefheads.data.task import GENERIC, TASKS, find_task, register_task, task_name, task_of
from prefheads.errors import DataError
from prefheads.evaluation.methods import BASELINES, METHODS, Method, register_method
from prefheads.evaluation.records import Records
from prefheads.registry import Registry

POINTS = "[prefheads.tasks]\nverse = verse:VERSE\n[prefheads.methods]\nflat = flat:FLAT\n"
SOURCE = Path(__file__).parents[1] / "src" / "prefheads"


@pytest.fixture
def verses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Both in a folder of modules; what is registered is forgotten afterwards."""
    site = plugin.install(tmp_path / "site", "", verse=plugin.TASK, flat=plugin.METHOD)
    monkeypatch.syspath_prepend(site)
    yield site
    TASKS._registered.clear()
    METHODS._registered.clear()
    for name in ("verse", "flat"):
        sys.modules.pop(name, None)


def check_run(out: Path) -> None:
    """What an evaluation of the new task with the new method left behind."""
    cells = json.loads((out / "results.json").read_text())["cells"]
    texts = {c["method"]: c["value"] for c in cells if c["table"] == "texts"}
    assert {c["metric"] for c in cells if c["table"] == "texts"} == {"words off"}
    nll = {c["method"]: c["value"] for c in cells if c["metric"] == "NLL"}
    assert list(texts) == list(nll) == ["plain", "flat", "flat:by=1"]
    assert nll["flat:by=1"] == pytest.approx(nll["plain"], abs=1e-5)
    assert nll["flat"] != pytest.approx(nll["plain"], abs=1e-3)
    records = Records(out / "Verse-2" / "records.jsonl").done.values()
    assert len(records) == 3 * 6 and all(0 < r.new_tokens <= 5 for r in records)
    assert {r.setting for r in records if r.method != "plain"} == {"flat"}


def command(model: Path, data: Path, out: Path) -> list[str]:
    names = ("--methods", "plain,flat,flat:by=1", "--items", "1", "--quiet")
    return ["eval", *map(str, ("--model", model, "--data", data, "--out", out)), *names]


def test_a_package_adds_a_task_and_a_method_in_one_file_each(
    tiny_folder: Path, tmp_path: Path
) -> None:
    site = plugin.install(tmp_path / "site", POINTS, verse=plugin.TASK, flat=plugin.METHOD)
    data = plugin.write_verses(tmp_path / "verse2.jsonl")
    paths = os.pathsep.join([str(site), str(SOURCE.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "prefheads", *command(tiny_folder, data, tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "out")


def test_a_notebook_registers_them(
    verses: Path, cli: Cli, tiny_folder: Path, tmp_path: Path
) -> None:
    import flat
    import verse

    register_task(verse.VERSE)
    register_method(flat.FLAT)
    assert task_name("verse_2") == task_name("rhyme") == "Verse-2"
    data = plugin.write_verses(tmp_path / "verses.jsonl")
    (first, *_) = load_examples(data, items=1)
    assert build_prompt(first).profile == '"rain and 0" is about rain'
    arguments = (*command(tiny_folder, data, tmp_path / "out"), "--task", "rhyme")
    assert cli(*arguments).code == 0
    check_run(tmp_path / "out")


def test_names_that_exist_are_refused(verses: Path) -> None:
    import flat
    import verse

    register_task(verse.VERSE)
    register_task(verse.VERSE)  # a cell that is run again
    with pytest.raises(DataError, match="'LaMP-7' exists already"):
        register_task(task_of("LaMP-7"))
    with pytest.raises(DataError, match="is no Task"):
        register_task("LaMP-8")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'plain' exists already"):
        register_method(Method.parse("plain"))
    assert flat.FLAT.name not in METHODS.all()
    with pytest.raises(DataError, match=r"unknown task 'verse3': the tasks are .*Verse-2"):
        find_task("verse3")
    assert task_of("verses") is GENERIC


@pytest.mark.parametrize(
    "value, problem",
    [
        ("nowhere:THING", "cannot be loaded"),
        ("broken:THING", "is no Task"),
        ("broken:AGAIN", "'LaMP-7' exists already"),
    ],
)
def test_a_package_that_offers_nonsense_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, problem: str
) -> None:
    module = "from prefheads.data.task import Task\nTHING = 3\n"
    module += "AGAIN = [Task('LaMP-7', '{x}', 'x', ('x',))]\n"
    site = plugin.install(tmp_path, f"[prefheads.tasks]\nmine = {value}\n", broken=module)
    monkeypatch.syspath_prepend(site)
    fresh = Registry(TASKS.group, TASKS._kind, TASKS._builtin)
    with pytest.raises(DataError, match=f"entry point mine = {value}.*{problem}"):
        fresh.all()
    sys.modules.pop("broken", None)


def test_discovery_imports_no_benchmark(tiny_folder: Path) -> None:
    script = f"""
import sys
import prefheads as ph
model = ph.load_model({str(tiny_folder)!r})
rows = [{{"id": str(i), "user_id": str(i), "profile": [{{"text": f"a {{i}}"}}], "input": "b",
         "output": "c"}} for i in range(2)]
ph.discover(*model, ph.load_examples(rows), progress=False)
print([name for name in sys.modules if name.startswith(("prefheads.tasks", "prefheads.eval"))])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Modules that a file imports from, with the names that it takes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def test_built_in_tasks_and_methods_are_reached_by_the_registry_alone() -> None:
    kinds = {m.kind for m in METHODS.all().values()}
    assert len(kinds) == 9 and len(TASKS.all()) == 11
    baselines = {"BASELINES", *(type(one).__name__ for one in BASELINES)}
    for path in SOURCE.rglob("*.py"):
        folder = path.relative_to(SOURCE).parts[0]
        for module, name in imports(path):
            assert module != "prefheads.evaluation.steered" and name not in baselines, path
            if folder != "tasks":
                assert not module.startswith(("prefheads.tasks.lamp", "prefheads.tasks.longlamp"))
            if folder == "data":
                assert not module.startswith("prefheads.tasks"), (path, name)
    for folder in ("evaluation", "data"):
        for path in (SOURCE / folder).rglob("*.py"):
            compared = [
                side.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Compare)
                for part in (node.left, *node.comparators)
                for side in ast.walk(part)
                if isinstance(side, ast.Constant)
            ]
            assert not {*compared} & {*kinds, *TASKS.all()}, path


def test_options_of_new_methods_are_read_as_those_of_others(verses: Path) -> None:
    import flat

    register_method(flat.FLAT)
    assert Method.parse("flat:by=2:temperature=0.5").options == {
        "temperature": 0.5,
        "repetition_penalty": 1.0,
        "by": 2.0,
    }
    with pytest.raises(DataError, match="flat has no gamma; it has temperature"):
        Method.parse("flat:gamma=1")
    assert np.isfinite(Method.parse("flat").options["by"])
