"""Analyses of whole runs: calibration and evaluation by option, and `prefheads analyze`."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, astuple, replace
from pathlib import Path

import numpy as np
import pytest
from support import results
from support.planted import noise_maps, scores_of

from prefheads.calibration.validate import Validation
from prefheads.errors import ArtifactError
from prefheads.evaluation.methods import Method
from prefheads.evaluation.records import Record
from prefheads.evaluation.results import write_tables
from prefheads.evaluation.run import Measured
from prefheads.evaluation.tables import cells
from prefheads.report.figures.steering import size_figure
from prefheads.report.hints import METHODS as HINTED
from prefheads.report.page import steering
from prefheads.report.page.entry import Entry, write
from prefheads.report.statistics import evaluated, sweeps
from prefheads.report.statistics.evaluated import Evaluation
from prefheads.stats import Estimate
from prefheads.steering.setting import PLAIN

METHODS = (
    "plain",
    "dps",
    "dps:fraction=0.08",
    "dps:fraction=0.02",
    "dps:gamma=0.5",
    "dps-cluster",
    "dps-cluster:routing=hard",
    "random-heads",
    "random-heads:seed=1",
    "random-mask:fraction=0.08",
)
RIGHT = {"dps": 8, "dps-cluster": 4, "dps-cluster:routing=hard": 6}  # of 10 samples
N = 10


def write_run(folder: Path, command: str, **options: object) -> Path:
    folder.mkdir(exist_ok=True)
    about = {"command": command, "model": "some model", "options": options}
    (folder / "run.json").write_text(json.dumps(about))
    return folder


def record(task: str, method: str, i: int) -> Record:
    text = "comedy" if i < RIGHT.get(method, 2) else "action"
    return Record(
        task, f"s{i}", f"u{i}", method, "", text, "comedy", method, 0.0, 1, 1, 1.0, 1.0, 1
    )


@pytest.fixture(scope="module")
def eval_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LaMP-2 on ten samples, with a likelihood in which method i changes the NLL by i / 10."""
    out = write_run(tmp_path_factory.mktemp("runs") / "eval", "eval", fitted=["my fit"])
    texts = {m: [record("LaMP-2", m, i) for i in range(N)] for m in METHODS}
    names = tuple(f"{kind}{i}" for kind in "su" for i in range(N))
    nll = np.zeros((N, 3, len(METHODS))) + np.arange(len(METHODS)) / 10
    nll += np.arange(N)[:, None, None]  # users differ by nats, methods by tenths
    nll[:, :, METHODS.index("random-heads")] += np.linspace(-0.1, 0.1, N)[:, None]
    likelihood = Validation(PLAIN, METHODS, nll, names[:N], names[N:])
    measured = Measured("LaMP-2", texts, likelihood, {m: ["x"] for m in METHODS}, 1)
    (out / "LaMP-2").mkdir()
    lines = [json.dumps(asdict(r)) + "\n" for rows in texts.values() for r in rows]
    (out / "LaMP-2" / "records.jsonl").write_text("".join(lines) + '{"torn')
    (out / "LaMP-2" / "likelihood.json").write_text(json.dumps(likelihood.to_dict()))
    write_tables(out, [measured], [cells(measured)], {})
    return out


@pytest.fixture(scope="module")
def fit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "fit", "fit", data="people.jsonl")
    results.steerer().save(run)
    (run / "validation.json").write_text(json.dumps(results.validation().to_dict()))
    return run


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- calibration


def test_head_sets_are_read_from_their_names() -> None:
    assert sweeps.head_set("top 4% by head PCS") == ("head", 0.04)
    assert sweeps.head_set("mine")[0] == "mine" and np.isnan(sweeps.head_set("mine")[1])


def test_calibration_rows_hold_every_setting() -> None:
    calibration = results.calibration()
    rows = sweeps.calibration_rows(calibration)
    assert [r["change_of_nll"] for r in rows] == list(calibration.change)
    (chosen,) = [r for r in rows if r["chosen"]]
    assert (chosen["mode"], chosen["target"], chosen["gamma"]) == ("amplify", "profile", 2.0)


def test_size_figure_has_every_steered_setting_once() -> None:
    calibration = results.calibration()
    figure = size_figure(calibration, "title")
    drawn = sum(len(c[0].get_xdata()) for axes in figure.axes for c in axes.containers)
    assert drawn == len(calibration.settings) - 1


# --- evaluation


def test_sweeps_are_the_methods_that_differ_in_one_option() -> None:
    found = {s.name: s for s in sweeps.find_sweeps([Method.parse(m) for m in METHODS])}
    assert set(found) == {"dps: fraction", "dps: gamma", "dps-cluster: routing"}
    fractions = found["dps: fraction"]
    assert fractions.values == (0.02, 0.04, 0.08)
    assert [m.name for m in fractions.methods] == ["dps:fraction=0.02", "dps", "dps:fraction=0.08"]


def test_what_else_is_fixed_is_in_the_name() -> None:
    methods = [Method.parse(f"dps:mode=amplify:gamma={g}") for g in (0.1, 0.5)]
    (sweep,) = sweeps.find_sweeps(methods)
    assert sweep.name == "dps (mode=amplify): gamma"


def test_sweep_rows_stand_beside_the_controls_of_the_same_options(eval_run: Path) -> None:
    found = Evaluation.read(eval_run)
    sweep = next(s for s in sweeps.find_sweeps(found.methods) if s.option == "fraction")
    rows = {(r["option_value"], r["metric"]): r for r in sweeps.sweep_rows(found, sweep)}
    assert {metric for _, metric in rows} == {"accuracy", "f1", "change of NLL"}
    assert rows[0.04, "accuracy"]["value"] == pytest.approx(0.8)
    assert rows[0.04, "change of NLL"]["value"] == pytest.approx(0.1)
    assert rows[0.04, "change of NLL"]["random_control"] == pytest.approx((0.7 + 0.8) / 2)
    assert rows[0.08, "change of NLL"]["random_control"] == pytest.approx(0.9)
    assert np.isnan(rows[0.02, "change of NLL"]["random_control"])
    assert rows[0.02, "accuracy"]["baseline"] == pytest.approx(0.2)


def test_differences_of_texts_are_paired_by_sample(eval_run: Path) -> None:
    pair = ("dps-cluster:routing=hard", "dps-cluster")
    found = {d.metric: d for d in evaluated.differences(Evaluation.read(eval_run), [pair])}
    accuracy = found["accuracy"].paired
    assert accuracy.mean == pytest.approx(0.2)
    assert accuracy.low < 0.2 < accuracy.high  # 8 of 10 samples do not differ at all
    assert accuracy.high - accuracy.low < 1


def test_differences_of_likelihood_are_paired_by_sample(eval_run: Path, tmp_path: Path) -> None:
    """Samples differ by nats, which no interval of unpaired means could tell 0.6 from 0 in."""
    found = Evaluation.read(eval_run)
    (nll,) = [
        d.paired
        for d in evaluated.differences(found, [("dps", "random-heads")])
        if d.metric == evaluated.NLL
    ]
    expected = -0.6 - np.linspace(-0.1, 0.1, N)  # dps is method 1, random-heads method 7
    users = [f"u{i}" for i in range(N)]
    assert astuple(nll) == pytest.approx(astuple(Estimate.of(expected, users)), abs=1e-9)
    assert -0.7 < nll.low < -0.6 < nll.high < -0.5
    (entry,) = [e for e in steering.evaluation_entries(found, "") if e.name == "eval-controls-dps"]
    assert "LaMP-2, dps - random-heads: accuracy +0.600 [" in entry.shows
    assert f"change of NLL -0.600 [{nll.low:+.3f}, {nll.high:+.3f}]" in entry.shows
    assert "no interval" not in entry.shows and "Results keep no" not in entry.shows

    bare = tmp_path / "bare"  # only the tables were kept
    bare.mkdir()
    (bare / "results.json").write_bytes((eval_run / "results.json").read_bytes())
    (alone,) = [
        d.paired
        for d in evaluated.differences(Evaluation.read(bare), [("dps", "random-heads")])
        if d.metric == evaluated.NLL
    ]
    assert alone.mean == pytest.approx(-0.6) and np.isnan(alone.low)


def test_a_damaged_likelihood_is_told(eval_run: Path, tmp_path: Path) -> None:
    (tmp_path / "LaMP-2").mkdir()
    (tmp_path / "LaMP-2" / "likelihood.json").write_text('{"nll": 3}')
    found = replace(Evaluation.read(eval_run), folder=tmp_path)
    with pytest.raises(ArtifactError, match=r"likelihood\.json: damaged"):
        found.likelihood("LaMP-2")


def test_an_unfinished_or_damaged_evaluation_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        Evaluation.read(tmp_path)
    (tmp_path / "results.json").write_text('{"cells": [{"task": 1}]}')
    with pytest.raises(ArtifactError, match="damaged"):
        Evaluation.read(tmp_path)


def test_missing_analyses_name_the_command() -> None:
    entries = [
        *steering.calibration_entries(None, "", "prefheads fit X"),
        *steering.validation_entries(None, "", "prefheads validate X"),
        *steering.evaluation_entries(None, "prefheads eval X"),
    ]
    assert all(e.figure is None and not e.shows for e in entries)
    commands = [e.missing.split("`")[1] for e in entries]
    assert commands == ["prefheads fit X", "prefheads validate X", "prefheads eval X"]
    for method in HINTED.split(","):
        Method.parse(method)


# --- files


def test_unknown_figures_are_empty_in_tables(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": float("nan")}, {"a": 2, "c": 0.123456789}]
    write(tmp_path, [Entry("x", "An entry", "Fig. 1", "It shows.", tables={"": rows})], "about")
    assert table(tmp_path / "tables" / "x.csv") == [
        {"a": "1", "b": "", "c": ""},
        {"a": "2", "b": "", "c": "0.123457"},
    ]
    page = (tmp_path / "index.md").read_text()
    assert "[x.csv](tables/x.csv)" in page and "It shows." in page and "Fig. 1" in page


# --- the command


def linked(folder: Path) -> set[str]:
    text = (folder / "index.md").read_text()
    return {part.split(")")[0] for part in text.split("](")[1:]}


def test_analyze_a_fit(cli, fit_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    before = {p.name: p.read_bytes() for p in fit_run.iterdir()}
    result = cli("analyze", fit_run, "--out", folder, "--json", "--quiet")
    assert (result.code, result.err) == (0, "")
    entries = {e["name"]: e for e in json.loads(result.out)["entries"]}
    figures = {"pcs", "users", "sparsity", "overlap", "reliability", "clusters", "scales"}
    figures |= {"controls", "transfer"}
    wanted = {f"{name}-{target}" for name in figures for target in ("head", "profile")}
    wanted |= {"relation-head-profile", "gamma", "sizes", "paper-form", "validation"}
    assert {name for name, e in entries.items() if e["figures"]} == wanted
    for e in entries.values():
        assert e["shows"] or e["missing"]
        assert all(Path(p).stat().st_size for p in (*e["figures"], *e["tables"]))
    assert {Path(p).suffix for e in entries.values() for p in e["figures"]} == {".png", ".svg"}
    assert all((folder / target).is_file() for target in linked(folder))
    assert "--fitted" in entries["eval"]["missing"]
    assert len(entries["validation"]["findings"]) == 6
    assert entries["validation"]["findings"][0] in (folder / "index.md").read_text()
    assert {p.name: p.read_bytes() for p in fit_run.iterdir()} == before
    rows = table(tmp_path / "a" / "tables" / "reliability-head-own.csv")
    assert {r["compared"] for r in rows} >= {"two halves of one user", "halves of two users"}


def test_analyze_an_evaluation(cli, eval_run: Path, tmp_path: Path) -> None:
    result = cli("analyze", eval_run, "--out", tmp_path)
    assert (result.code, result.err) == (0, "")
    assert "Hard against soft routing" in result.out and "eval-routing.png" in result.out
    rows = table(tmp_path / "tables" / "eval-routing.csv")
    assert {r["metric"] for r in rows} == {"accuracy", "f1", "change of NLL"}
    controls = table(tmp_path / "tables" / "eval-controls-dps.csv")
    assert {r["second"] for r in controls} == {"random-heads", "random-heads:seed=1"}
    page = (tmp_path / "index.md").read_text()
    assert "random-heads:fraction=0.02" in page  # the control that this sweep lacks
    assert "prefheads analyze 'my fit'" in page


def test_analyze_one_sample_a_user_says_what_cannot_be_known(cli, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "discover")
    scores_of(noise_maps(8)).save(run / "scores.safetensors")
    assert cli("analyze", run).code == 0
    page = (run / "analysis" / "index.md").read_text()
    assert "no evidence of user-specific heads" in page
    assert "prefheads fit" in page and "prefheads validate" in page


def test_analyze_shows_what_there_is_first(cli, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "discover")
    scores_of(noise_maps(3)).save(run / "scores.safetensors")
    result = cli("analyze", run, "--json")
    entries = json.loads(result.out)["entries"]
    there = [bool(e["shows"]) for e in entries]
    assert entries[0]["name"] == "pcs-head" and there == sorted(there, reverse=True)
    page = (run / "analysis" / "report.html").read_text()
    order = [page.index(part) for part in (
        'id="a-pcs-head"', "<h2>The paper, and this run", "<h2>Not in this run", 'id="a-eval"',
        "<h2>How it was made",
    )]  # fmt: skip
    assert order == sorted(order)
    before = page[: page.index("<h2>The paper, and this run")]
    assert '<details class="section" open>' in before and "prefheads validate" not in before


def test_analyze_one_user(cli, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "discover")
    scores_of(noise_maps(1), each=3, noise=0.1).save(run / "scores.safetensors")
    result = cli("analyze", run, "--json")
    assert result.code == 0
    names = {e["name"] for e in json.loads(result.out)["entries"] if e["figures"]}
    assert names == {"pcs-head", "users-head", "sparsity-head"}
    assert cli("analyze", run, "--out", tmp_path / "again").code == 0
    first, second = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (run / "analysis", tmp_path / "again")
    )
    assert first == second  # the same run gives the same files


def test_analyze_of_nothing(cli, tmp_path: Path) -> None:
    for folder, reason in ((tmp_path, "holds no run"), (tmp_path / "no", "holds no run")):
        result = cli("analyze", folder)
        assert result.code == 2 and reason in result.err and result.out == ""
    result = cli("analyze", write_run(tmp_path / "run", "eval"))
    assert result.code == 2 and "nothing has been finished" in result.err
    (tmp_path / "run" / "run.json").write_text("[]")
    assert "damaged" in cli("analyze", tmp_path / "run").err
