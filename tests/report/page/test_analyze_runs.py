"""`prefheads analyze` of whole runs, without their model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from support.evaluated import write_run
from support.planted import noise_maps, scores_of


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
