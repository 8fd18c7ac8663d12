"""`prefheads analyze --model`: what is measured in the model is measured once, and shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import Chat
from support.commands import assert_one_error, contents
from support.compared import ask
from support.judged import METHODS as JUDGED
from support.judged import scored
from support.judged import write_run as write_judged_run
from support.saved import Cli, save_model

from prefheads.checkpoint import Checkpoint
from prefheads.cli import session
from prefheads.errors import ArtifactError
from prefheads.evaluation.records import Records
from prefheads.heads.scores import HeadScores
from prefheads.judge.pairs import load_study
from prefheads.judge.store import Votes
from prefheads.report.measure.tokens import Readings
from prefheads.report.page import entry, page
from prefheads.report.page.paper import judged

FEW = ("--samples", 3, "--texts", 2, "--quiet")  # errors alone are told


@pytest.fixture(scope="module")
def evaluated(
    tiny_folder: Path, lamp_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two tasks, one of them in two folds."""
    from prefheads.cli.main import run

    out = tmp_path_factory.mktemp("runs") / "eval"
    some = ("--task", "LaMP-7,LaMP-3", "--methods", "plain,dps", "--limit", 6, "--measure", "texts")
    assert run([str(a) for a in ask(tiny_folder, lamp_folder, out, *some)]) == 0
    return out


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn by other tests; here they would take most of the time."""

    def save(figure: object, path: Path) -> tuple[Path]:
        path.write_bytes(b"a figure")
        return (path,)

    monkeypatch.setattr(entry, "save", save)
    monkeypatch.setattr(page, "inline_svg", lambda figure, name, description: "<svg></svg>")


@pytest.fixture
def fit_run(fitted: Path, tmp_path: Path) -> Path:
    """A copy of its own of a fitted run."""
    return Path(shutil.copytree(fitted, tmp_path / "fit"))


@pytest.fixture
def eval_run(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of its own of an evaluation."""
    return Path(shutil.copytree(evaluated, tmp_path / "eval"))


def never(*_: object, **__: object) -> Any:
    raise AssertionError("the model was loaded")


def texts_of(run: Path, name: str) -> Readings:
    kept = Checkpoint(run / "measured" / "measured.jsonl", "measurements").done
    return Readings.from_dict(kept[f"{name}-texts"]["content"])


def test_analyze_a_fit_in_the_model_once(
    cli: Cli, fit_run: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = ("analyze", fit_run, "--model", tiny_folder, *FEW, "--json")
    result = cli(*asking)
    assert (result.code, result.err) == (0, "")
    entries = {e["name"]: e for e in json.loads(result.out)["entries"]}
    for target in ("head", "profile"):
        assert entries[f"roles-{target}"]["figures"] and entries[f"roles-{target}"]["tables"]
        assert entries[f"relation-{target}-attention"]["figures"]
    assert "times plain decoding" in entries["flops"]["shows"]
    attention = HeadScores.load(fit_run / "measured" / "run-attention.safetensors")
    found = HeadScores.load(fit_run / "scores-head.safetensors")
    assert attention.shape == (3, 3, 4)
    assert not set(attention.user_ids) & set(found.user_ids)  # users that discovery has not seen
    readings = texts_of(fit_run, "run")
    assert readings.total == len(readings.traces) == 2
    assert all(set(t.texts) == {"plain", "steered", "written"} for t in readings.traces)
    shown = (fit_run / "analysis" / "report.html").read_text()
    assert "Point at a token" in shown and "Missing: measurements in the model" not in shown

    before = contents(fit_run)
    monkeypatch.setattr(session, "load", never)
    assert cli(*asking).code == 0
    assert cli("analyze", fit_run).code == 0  # what was measured is shown without the model, too
    assert contents(fit_run) == before
    with pytest.raises(AssertionError, match="was loaded"):
        cli(*asking, "--samples", 2)  # something else, which has not been measured


def test_without_the_model_it_says_what_is_missing(cli: Cli, fit_run: Path) -> None:
    assert cli("analyze", fit_run).code == 0
    shown = (fit_run / "analysis" / "report.html").read_text()
    assert f"<code>prefheads analyze {fit_run} --model" in shown
    assert shown.count("Missing: measurements in the model") == 3  # two targets, and texts
    assert not (fit_run / "measured").exists()


def test_analyze_a_discovery_has_no_texts(
    cli: Cli, discovered: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(discovered, tmp_path / "run"))
    assert cli("analyze", run, "--model", tiny_folder, *FEW).code == 0
    attention = HeadScores.load(run / "measured" / "run-attention.safetensors")
    assert attention.n_examples == 3  # all users took part in discovery, so it is some of them
    shown = (run / "analysis" / "report.html").read_text()
    assert "3 users of the discovery" in shown and "Missing: a way to steer" in shown


def test_analyze_an_evaluation_in_the_model(
    cli: Cli, eval_run: Path, tiny_folder: Path, lamp_folder: Path
) -> None:
    data = ("--data", lamp_folder)
    result = cli("analyze", eval_run, "--model", tiny_folder, *data, *FEW, "--json")
    assert (result.code, result.err) == (0, "")
    entries = {e["name"]: e for e in json.loads(result.out)["entries"]}
    for part in ("LaMP-7", "LaMP-3-fit-0", "LaMP-3-fit-1"):
        assert entries[f"{part}-roles-head"]["figures"]
    for task in ("LaMP-7", "LaMP-3"):
        readings = texts_of(eval_run, task)
        assert (readings.method, readings.total, len(readings.traces)) == ("dps", 6, 2)
        records = Records(eval_run / task / "records.jsonl").done
        for trace in readings.traces:
            for name, method in (("plain", "plain"), ("steered", "dps")):
                text = "".join(token.text for token in trace.texts[name])
                assert text in {
                    r.prediction for (m, _), r in records.items()
                    if m == method and r.user_id == trace.user_id
                }  # fmt: skip
    assert Path(entries["data"]["tables"][0]).read_text().startswith("task,type,setting,splits,")
    assert f"results-{task}-texts" in entries
    shown = (eval_run / "analysis" / "report.html").read_text()
    for item in ("Fig. 3", "Fig. 4", "Fig. 5", "Fig. 6", "Fig. 7", "Fig. 8", "Table 3", "Table 5"):
        assert f"<td>{item}</td>" in shown


def change_records(run: Path, **changes: object) -> None:
    path = run / "LaMP-7" / "records.jsonl"
    rows = [json.loads(line) | changes for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "changes, reason",
    [({"steering": "0"}, "with other heads"), ({"prompt_sha256": "0"}, "from another prompt")],
)
def test_texts_made_otherwise_are_not_read(
    cli: Cli, eval_run: Path, tiny_folder: Path, changes: dict[str, str], reason: str
) -> None:
    change_records(eval_run, **changes)
    assert_one_error(cli("analyze", eval_run, "--model", tiny_folder, *FEW), reason)


def test_what_cannot_be_used_is_refused(cli: Cli, fit_run: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", num_hidden_layers=2)
    assert_one_error(cli("analyze", fit_run, "--model", other), "is a run of", "not of")
    assert_one_error(cli("analyze", fit_run, "--data", tmp_path / "no"), "no such file")
    (fit_run / "measured").mkdir()
    (fit_run / "measured" / "measured.jsonl").write_text('{"content": 1}\n')
    assert_one_error(cli("analyze", fit_run), "measured.jsonl: damaged")


def test_measurements_of_earlier_versions_are_used(
    cli: Cli, fit_run: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were a JSON file each, and the texts of a fit one more."""
    asking = ("analyze", fit_run, "--model", tiny_folder, *FEW)
    assert cli(*asking).code == 0
    folder = fit_run / "measured"
    for name, run in (("measured", "measurements"), ("texts", "texts")):
        done = Checkpoint(folder / f"{name}.jsonl", run).done
        (folder / f"{name}.jsonl").unlink()
        for key, part in done.items() if name == "measured" else [(name, done)]:
            (folder / f"{key}.json").write_text(json.dumps(part))
    monkeypatch.setattr(session, "load", never)
    assert cli(*asking).code == 0 and cli("analyze", fit_run).code == 0
    shown = (fit_run / "analysis" / "report.html").read_text()
    assert "Point at a token" in shown and "Missing: measurements" not in shown


def test_heads_of_another_fit_are_part_of_the_page(
    cli: Cli, fitted: Path, tmp_path: Path, eval_run: Path
) -> None:
    about = json.loads((eval_run / "run.json").read_text())
    about["options"]["fitted"] = [str(fitted), str(tmp_path / "gone")]
    (eval_run / "run.json").write_text(json.dumps(about))
    result = cli("analyze", eval_run, "--json")
    entries = {e["name"]: e for e in json.loads(result.out)["entries"]}
    assert entries["None-pcs-head"]["figures"]  # a fit of no benchmark task
    assert f"prefheads analyze {tmp_path / 'gone'}" in entries["heads-gone"]["missing"]


def test_judgements_of_both_kinds_are_shown(cli: Cli, tmp_path: Path) -> None:
    run = write_judged_run(tmp_path / "run", 6, same=1)
    (missing,) = judged(run)
    assert "judge serve" in missing.missing and "judge llm" in missing.missing
    study = load_study(run, JUDGED)
    votes = Votes(tmp_path / "votes.sqlite", study)
    for pair in study.differing:
        votes.add(pair, "ann", JUDGED[1], JUDGED[0])
    people = cli("judge", "results", "--db", tmp_path / "votes.sqlite", "--json")
    (run / "judge-people.json").write_text(people.out)
    with Chat(scored).listening() as server:
        methods = ("--methods", ",".join(JUDGED), "--base-url", server.url, "--model", "some-judge")
        model = cli("judge", "llm", "--run", run, *methods, "--json")
    (run / "judge-llm.json").write_text(model.out)
    by_model, by_people = judged(run)
    assert "by some-judge of 6 blinded pairs" in by_model.shows
    assert by_model.tables is not None and by_people.tables is not None
    first = by_model.tables[""][0]
    assert first["rated"] == "alignment wins" and 0 <= first[JUDGED[1]] <= 1
    shares = {row["winner"]: row["value"] for row in by_people.tables[""]}
    assert shares[JUDGED[1]] == pytest.approx(6 / 7) and shares["tie"] == pytest.approx(1 / 7)
    (run / "judge-llm.json").write_text('{"table": [1], "task": "x"}')
    with pytest.raises(ArtifactError, match="not what a judge command printed"):
        judged(run)
