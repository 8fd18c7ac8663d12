"""The benchmarks on a tiny model: what they compare is the same, and nothing is measured twice."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import CompileConfig

ROOT = Path(__file__).parents[1]

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import startup  # noqa: E402
from benchmarks.cells import measure_cell, run_cells  # noqa: E402
from benchmarks.report import BEGIN, END, report  # noqa: E402
from benchmarks.results import Results  # noqa: E402
from benchmarks.subject import Subject, spread  # noqa: E402
from benchmarks.tables import tables  # noqa: E402

HERE = {"model": "tiny", "device": "cpu", "threads": 1}
DISCOVERY = HERE | {
    "bench": "discovery", "what": "time", "prompt": 20, "response": 4, "scope": "response",
    "target": "head", "tokens_per_pass": 64, "examples": 2, "rounds": 2, "heads": 3,
}  # fmt: skip
DECODING = HERE | {
    "bench": "decoding", "what": "time", "prompt": 12, "batch": 2, "new": 5, "rounds": 2
}  # fmt: skip


@pytest.fixture(scope="module")
def subject() -> Subject:
    threads = torch.get_num_threads()
    subject = Subject("tiny", "cpu", 1)
    torch.set_num_threads(threads)
    return subject


@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("target", ["head", "profile"])
def test_discovery_ways_agree(subject, scope, target) -> None:
    result = measure_cell(DISCOVERY | {"scope": scope, "target": target}, subject)
    ways = ["authors", "naive", "exact", "screened"]
    assert list(result["seconds"]) == (ways if target == "head" else ways[2:])
    assert all(len(v) == 2 and min(v) > 0 for v in result["seconds"].values())
    if target == "head":
        assert result["difference"] < 1e-5
    assert 0 <= result["recall"] <= 1
    assert subject.model.config._attn_implementation == "sdpa"


def test_decoding_ways_agree(subject) -> None:
    result = measure_cell(DECODING, subject)
    assert result["same_tokens"] == 1 and result["off_is_plain"]
    assert all(len(v) == 2 for v in (*result["first"].values(), *result["each"].values()))


def test_compiled_steps_are_compiled_once(subject, monkeypatch) -> None:
    def config(**kwargs):
        return CompileConfig(backend="eager", mode=None)

    monkeypatch.setattr("benchmarks.decoding.CompileConfig", config)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    result = measure_cell(DECODING | {"what": "compiled"}, subject)
    assert result["graphs"] == result["graphs_at_first"] == 3  # plain, amplify, contrast
    assert list(result["each"]) == ["plain", "off", "amplify", "contrast"]
    assert all(len(v) == 2 for v in result["each"].values())


def test_contrast_differs_from_plain(subject) -> None:
    from benchmarks.decoding import _Ways

    ways = _Ways(subject, DECODING | {"new": 16})
    texts = {way: ways.run(way)[0] for way in ("plain", "contrast", "amplify", "cad")}
    assert all(text.shape == (2, 16) for text in texts.values())
    assert any((texts[way] != texts["plain"]).any() for way in ("contrast", "amplify"))


@pytest.mark.parametrize("way", ["plain", "contrast", "authors", "cad"])
def test_memory_of_decoding(subject, way) -> None:
    result = measure_cell(DECODING | {"what": "memory", "way": way}, subject)
    assert result["peak"] >= result["rest"] > 0


def test_a_contrast_holds_what_the_formula_says(subject) -> None:
    result = measure_cell(DECODING | {"what": "held", "new": 16}, subject)
    extra = result["held"]["contrast"] - result["held"]["plain"]
    assert 0 < result["formula"] <= extra <= result["formula"] + result["room"]


def test_heads_are_spread_over_layers_and_heads() -> None:
    assert spread(270, 6, 9) == [0, 46, 92, 138, 184, 230]
    assert len({h % 9 for h in spread(270, 6, 9)}) > 1
    assert max(spread(4, 4, 4)) < 4


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    path, cells, done = tmp_path / "r.jsonl", [{"x": i} for i in range(4)], []

    def measure(cell):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(cell["x"])
        return {"y": cell["x"]}

    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, Results(path), measure)
    with path.open("a") as file:
        file.write('{"cell": {"x": 2}, "resu')  # killed while writing
    run_cells(cells, Results(path), lambda cell: {"y": -cell["x"]})
    results = Results(path)
    assert [results[cell]["result"]["y"] for cell in cells] == [0, 1, -2, -3]
    assert all(json.loads(line) for line in path.read_text().splitlines() if "machine" in line)


def test_another_machine_measures_for_itself(tmp_path: Path, monkeypatch) -> None:
    path, cells = tmp_path / "r.jsonl", [{"x": 0}]
    run_cells(cells, Results(path), lambda cell: {"y": 1})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    run_cells(cells, Results(path), lambda cell: {"y": 2})
    assert [line["result"]["y"] for line in Results(path).lines()] == [1, 2]
    assert Results(path)[cells[0]]["result"]["y"] == 2


def test_report_fills_the_page(subject, tmp_path: Path) -> None:
    results = Results(tmp_path / "r.jsonl")
    for cell in (DISCOVERY, DECODING, DECODING | {"what": "memory", "way": "contrast"}):
        results.add(cell, measure_cell(cell, subject))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):  # what was written is replaced
        report(results, page)
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert text.count("| 20 + 4, 2 | exact |") == 1
    for name in ("discovery", "decoding"):
        assert (tmp_path / f"figures/{name}-0.png").stat().st_size > 1000
        assert text.count(f"](figures/{name}-0.png)") == 1


def test_ratios_are_of_paired_rounds() -> None:
    result = {"device": "cpu", "dtype": "float32", "torch": "2", "recall": 1.0, "difference": 0.0}
    seconds = {"authors": [9, 8, 9], "naive": [6, 4, 10], "exact": [1, 2, 1], "screened": [1, 1, 1]}
    line = {"cell": DISCOVERY, "result": result | {"seconds": seconds}}
    machine = {"cpu": "c", "simd": "s", "cores": 1, "load": 0}
    exact = tables([line | {"machine": machine}])[0].rows[2]
    assert exact[3:5] == ["6.00 (2.00 to 10)", "9.00 (4.00 to 9.00)"]


def test_the_command_line(tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / "r.jsonl"
    arguments = ["benchmarks", "decoding", "--model", "tiny", "--threads", "1", "--quick"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--results", str(path)])
    measured = []
    monkeypatch.setattr(
        "benchmarks.cells._apart", lambda cell: measured.append(cell) or measure_cell(cell)
    )
    command.main()
    n = len(measured)
    assert n == 2 * (1 + 6 + 1)
    command.main()
    assert len(measured) == n and "16 of 16 cells" in capsys.readouterr().err


def test_startup_tells_median_and_spread(capsys) -> None:
    startup.table(2, ["--version"])
    shown = capsys.readouterr().out
    assert "median of 2" in shown
    assert re.search(r"prefheads --version .* \d\.\d\d \(\d\.\d\d to \d\.\d\d\)", shown)
