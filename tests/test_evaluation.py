"""Benchmark runs: methods, likelihood, records that survive a kill, tables, and their refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lamp_files import write_task
from saved import Result, save_model

import prefheads as ph
from prefheads.contrast import combine
from prefheads.encoding import encode
from prefheads.errors import ArtifactError, DataError, PrefheadsError
from prefheads.evaluation.data import find_samples, find_sibling, find_tasks
from prefheads.evaluation.folds import make_folds
from prefheads.evaluation.generate import generate_records
from prefheads.evaluation.likelihood import likelihood
from prefheads.evaluation.methods import DEFAULTS, Decoder, Method, make_decoder
from prefheads.evaluation.records import Record, Records
from prefheads.evaluation.run import Measured
from prefheads.evaluation.tables import cells
from prefheads.examples import Example, load_examples, other_profiles, without_profile
from prefheads.heads import HeadWeights
from prefheads.scoring import token_nll
from prefheads.setting import Setting
from prefheads.steerer import PreferenceSteerer
from prefheads.steering import ScopeWarning
from prefheads.tasks.metrics import evaluate, read_predictions

METHODS = (
    "plain",
    "cad",
    "dola",
    "decore",
    "dps",
    "dps-cluster",
    "dps-cluster:routing=hard",
    "calibrated",
    "random-heads",
    "random-mask",
)
Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def loaded(folder: Path):
    return ph.load_model(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lamp")
    write_task(root, "LaMP_7", 24)
    write_task(root, "LaMP_3", 10)
    return root


@pytest.fixture(scope="module")
def samples(data: Path) -> list[Example]:
    return load_examples(data / "LaMP_7")


@pytest.fixture(scope="module")
def steerer(loaded, samples: list[Example]) -> PreferenceSteerer:
    settings = [Setting("top 8% by head PCS", "amplify", "head", 0.5)]
    return PreferenceSteerer.fit(
        *loaded, samples[:10], 2, settings=settings, min_samples=1, progress=False
    )


def heads_at(*heads: tuple[int, int]) -> Callable[[float], HeadWeights]:
    return lambda fraction: HeadWeights.from_heads((3, 4), heads)  # of no scope


def decoders(
    names: tuple[str, ...], loaded: Any, examples: list[Example], steerer: PreferenceSteerer
) -> list[Decoder]:
    retrieval = heads_at((1, 2), (2, 0))
    return [make_decoder(Method.parse(n), loaded[0], examples, steerer, retrieval) for n in names]


# --- methods


@pytest.mark.parametrize(
    "text, part",
    [
        ("dsp", "plain, cad"),
        ("dps:gama=1", "gamma"),
        ("dps:gamma", "name=value"),
        ("dps:gamma=much", "number"),
        ("dps:gamma=-1", "out of range"),
        ("dps:gamma=inf", "out of range"),
        ("dps:fraction=0", "out of range"),
        ("dps:suppression=2", "out of range"),
        ("plain:gamma=1", "has no gamma"),
        ("plain:temperature=0", "out of range"),
        ("dps-cluster:routing=medium", "hard, soft"),
        ("random-heads:of=plain", "dps"),
        ("decore:mode=amplify", "mode=contrast"),
    ],
)
def test_bad_methods_are_told_in_a_line(text: str, part: str) -> None:
    with pytest.raises(DataError, match=part) as error:
        Method.parse(text)
    assert "\n" not in str(error.value)


def test_options_take_the_place_of_defaults() -> None:
    method = Method.parse("dps: gamma=0.5 :temperature=0.7")
    assert method.name == "dps:gamma=0.5:temperature=0.7"
    assert (method.options["gamma"], method.options["fraction"]) == (0.5, 0.04)
    chosen = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}
    assert method.generate_options == chosen | {"num_beams": 1, "repetition_penalty": 1.0}
    control = Method.parse("random-heads:of=decore:cap=2")
    assert control.needs_retrieval_heads and not control.needs_steerer
    assert (control.options["schedule"], control.options["cap"]) == ("entropy", 2.0)
    assert Method.parse("random-mask:of=calibrated").needs_steerer
    assert all(Method.parse(kind).options["temperature"] == 1 for kind in DEFAULTS)


def test_maps_of_every_method(loaded, samples, steerer: PreferenceSteerer) -> None:
    few = samples[10:14]
    made = {d.method.name: d for d in decoders(METHODS, loaded, few, steerer)}
    top = steerer.scores["head"].top(fraction=0.04)
    assert [m.heads for m in made["dps"].maps] == [top.heads] * 4
    assert not made["plain"].maps and not made["cad"].maps and not made["dola"].maps
    assert made["decore"].scope == "all" and made["decore"].setting.schedule == "entropy"
    wide = decoders(("dps:fraction=0.5", "random-heads:fraction=0.5"), loaded, few, steerer)
    own, control = (d.maps[0] for d in wide)
    assert control.n_active == own.n_active and control.heads != own.heads
    hard = made["dps-cluster:routing=hard"].maps[0]
    assert hard.values.max() == 1  # one cluster's own importance weights
    calibrated = made["calibrated"]
    assert calibrated.setting == steerer.setting


def test_a_method_without_its_heads_is_refused(loaded, samples) -> None:
    for name in ("dps", "calibrated", "decore"):
        with pytest.raises(PrefheadsError, match="needs"):
            make_decoder(Method.parse(name), loaded[0], samples)


# --- texts


def test_texts_are_those_of_stock_generate(
    loaded,
    samples,
    steerer: PreferenceSteerer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batched from a shared prompt, as alone from scratch, for every method without sampling."""
    model, tokenizer = loaded
    few = samples[10:15]
    names = tuple(n for n in METHODS if n not in ("cad", "dola"))
    made = decoders(names, loaded, few, steerer)
    # What a checkpoint brings of its own is no part of plain decoding.
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 5.0)
    records = Records(tmp_path / "records.jsonl")
    generate_records(
        model, tokenizer, few, made, records, max_new_tokens=6, batch_size=3, progress=False
    )
    monkeypatch.undo()
    for i, example in enumerate(few):
        encoded = encode(tokenizer, replace(example, output=None), max_length=1000)
        ids = encoded.prompt_ids[None]
        for decoder in made:
            record = records.done[decoder.method.name, example.id]
            how = decoder.setting
            weights = torch.zeros(3, 4) if decoder.weights is None else decoder.weights[i]
            with ph.steer(
                model,
                weights,
                how.gamma,
                mode=how.mode,
                target=how.target,
                suppression=how.suppression,
                scope=decoder.scope,
                schedule=how.schedule,
                profile_mask=encoded.profile_mask,
            ):
                out = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=6,
                    do_sample=False,
                )
            alone = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
            assert record.prediction == alone
            assert record.prompt_tokens == ids.shape[1] and 0 < record.new_tokens <= 6
            assert record.reference == example.output and record.seconds > 0


def test_baselines_in_a_batch_are_those_alone(
    loaded, samples, steerer: PreferenceSteerer, tmp_path: Path
) -> None:
    few, names = samples[10:15], ("cad", "dola", "cad:repetition_penalty=1.3")
    batched, alone = Records(tmp_path / "batched.jsonl"), Records(tmp_path / "alone.jsonl")
    for records, size in ((batched, 3), (alone, 1)):
        made = decoders(names, loaded, few, steerer)
        options = {"max_new_tokens": 6, "batch_size": size, "progress": False}
        generate_records(*loaded, few, made, records, **options)
    texts = {key: r.prediction for key, r in alone.done.items()}
    assert {key: r.prediction for key, r in batched.done.items()} == texts
    assert texts["cad", few[0].id] != texts["dola", few[0].id]


def test_calibrated_for_every_position(
    loaded, samples, steerer: PreferenceSteerer, tmp_path: Path
) -> None:
    """A fit for scope "all" cannot go on from a prompt encoded without it."""
    few = samples[10:12]
    everywhere = replace(steerer, scope="all")
    (made,) = decoders(("calibrated",), loaded, few, everywhere)
    assert made.scope == "all" and not made.shares_prompt
    records = Records(tmp_path / "records.jsonl")
    generate_records(*loaded, few, [made], records, max_new_tokens=3, progress=False)
    assert len(records.done) == 2


def test_heads_of_another_scope_are_told(loaded, samples, steerer: PreferenceSteerer) -> None:
    with pytest.warns(ScopeWarning, match="scope='response' steer with scope='all'"):
        decoders(("dps:scope=all",), loaded, samples[10:12], steerer)


def test_a_temperature_samples_the_same_again(
    loaded, samples, steerer: PreferenceSteerer, tmp_path: Path
) -> None:
    few, names = samples[10:14], ("plain:temperature=1.5", "dps:temperature=1.5", "plain")
    texts = []
    for run in ("a", "b"):
        records = Records(tmp_path / f"{run}.jsonl")
        made = decoders(names, loaded, few, steerer)
        # In the second run another method's texts are there already.
        if run == "b":
            generate_records(*loaded, few, made[2:], records, max_new_tokens=8, progress=False)
        generate_records(*loaded, few, made, records, max_new_tokens=8, progress=False)
        texts.append({key: r.prediction for key, r in records.done.items()})
    assert texts[0] == texts[1]
    assert any(texts[0][names[0], e.id] != texts[0]["plain", e.id] for e in few)


def test_a_batch_too_large_is_halved(
    loaded, samples, steerer: PreferenceSteerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefheads.evaluation import generate as module

    few = samples[10:15]
    made = decoders(("plain", "dps"), loaded, few, steerer)
    whole = Records(tmp_path / "whole.jsonl")
    generate_records(*loaded, few, made, whole, max_new_tokens=5, progress=False)
    stock = module.complete

    def small(model: Any, tokenizer: Any, batch: Any, **options: Any) -> Any:
        if len(batch.prompt_ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return stock(model, tokenizer, batch, **options)

    monkeypatch.setattr(module, "complete", small)
    halved = Records(tmp_path / "halved.jsonl")
    generate_records(*loaded, few, made, halved, max_new_tokens=5, progress=False)
    assert {r.batch_size for r in halved.done.values()} == {1, 2}
    for key, record in whole.done.items():
        assert halved.done[key].prediction == record.prediction


# --- records


def record(key: str = "1", method: str = "plain", **changes: Any) -> Record:
    lengths = (0.0, 3, 2, 0.1, 0.0, 1)
    made = Record("LaMP-7", key, key, method, "h", "é\u2028x", "y", "plain", *lengths, "s")
    return replace(made, **changes)


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    first = Records(path)
    first.add([record("1"), record("2")])
    first.add([record("2", prediction="later"), record("3")])
    again = Records(path)
    assert [r.id for r in again.of("plain", ["3", "1", "2"])] == ["3", "1", "2"]
    assert again.done == first.done and again.done["plain", "2"].prediction == "é\u2028x"
    assert len(path.read_text().split("\n")) == 4


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    Records(path).add([record("1"), record("2")])
    path.write_bytes(path.read_bytes()[:-5])
    records = Records(path)
    assert [key for _, key in records.done] == ["1"]
    records.add([record("2")])
    assert len(Records(path).done) == 2


@pytest.mark.parametrize("text", ["hello\n", "{}\n", '{"id": "1"}\n', "[]\n", "\xff\n"])
def test_foreign_records_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"records.jsonl:1"):
        Records(path)


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.add([record("1")])
    assert records.finished("plain", ["1"], ["h"], ["s"])
    assert not records.finished("plain", ["1", "2"], ["h", "h"], ["s", "s"])
    with pytest.raises(ArtifactError, match="another prompt"):
        records.finished("plain", ["1"], ["other"], ["s"])
    with pytest.raises(ArtifactError, match="other heads"):
        records.finished("plain", ["1"], ["h"], ["other"])


# --- likelihood


def test_likelihood_is_that_of_the_steered_model(loaded, samples, steerer) -> None:
    few = samples[10:14]
    names = (*METHODS, "plain:temperature=2")
    made = decoders(names, loaded, few, steerer)
    found = likelihood(*loaded, few, made, progress=False)
    assert found.nll.shape == (4, 3, len(names)) and found.methods == names
    contexts = [few, other_profiles(few, 0), [without_profile(e) for e in few]]
    for i, decoder in enumerate(made):
        if decoder.method.kind in ("cad", "dola") or decoder.method.options["temperature"] != 1:
            continue
        how = decoder.setting
        for c, examples in enumerate(contexts):
            for n, example in enumerate(examples):
                weights = torch.zeros(3, 4) if decoder.weights is None else decoder.weights[n]
                mask = encode(loaded[1], example).profile_mask
                with ph.steer(
                    loaded[0],
                    weights,
                    how.gamma,
                    mode=how.mode,
                    target=how.target,
                    suppression=how.suppression,
                    scope=decoder.scope,
                    schedule=how.schedule,
                    profile_mask=mask,
                ):
                    nll = ph.response_nll(*loaded, [example])
                assert found.nll[n, c, i] == pytest.approx(float(nll), abs=1e-5)


def test_likelihood_of_baselines(loaded, samples, steerer) -> None:
    model, tokenizer = loaded
    few = samples[10:13]
    names = ("plain", "cad:gamma=0.7", "dola", "plain:temperature=2")
    found = likelihood(*loaded, few, decoders(names, loaded, few, steerer), progress=False)
    assert np.isnan(found.nll[:, :, 2]).all()

    def logits(example: Example) -> tuple[torch.Tensor, torch.Tensor]:
        e = encode(tokenizer, example)
        ids = torch.cat([e.prompt_ids, e.response_ids])[None]
        with torch.no_grad():
            return model(ids).logits[0, len(e.prompt_ids) - 1 : -1], e.response_ids

    for n, example in enumerate(few):
        own, targets = logits(example)
        bare, _ = logits(without_profile(example))
        expected = token_nll(combine(own, bare, 0.7), targets).mean()
        assert found.nll[n, 0, 1] == pytest.approx(float(expected), abs=1e-5)
        assert found.nll[n, 2, 1] == pytest.approx(float(token_nll(bare, targets).mean()), abs=1e-5)
        warm = token_nll(own / 2, targets).mean()
        assert found.nll[n, 0, 3] == pytest.approx(float(warm), abs=1e-5)


# --- folds


def test_users_are_set_aside(samples) -> None:
    (fold,) = make_folds(samples, None, discovery=4, calibration=4, limit=10)
    assert len(fold.test) == 10 and fold.share == 0.5
    pool, test = ({e.user_id for e in part} for part in (fold.pool, fold.test))
    assert len(pool) == 8 and not pool & test


def test_few_users_are_evaluated_crosswise(samples) -> None:
    folds = make_folds(samples, None, discovery=10, calibration=10, limit=None)
    assert sorted(e.id for f in folds for e in f.test) == sorted(e.id for e in samples)
    for fold in folds:
        assert not {e.id for e in fold.test} & {e.id for e in fold.pool}
    with pytest.raises(DataError, match="too few"):
        make_folds(samples[:7], None, discovery=3, calibration=2, limit=None)
    cut = make_folds(samples, None, discovery=10, calibration=10, limit=7)
    assert [len(f.test) for f in cut] == [4, 3] and [len(f.pool) for f in cut] == [12, 12]


def test_heads_from_train(samples) -> None:
    (fold,) = make_folds(samples[:4], samples[4:], discovery=2, calibration=3, limit=None)
    assert fold.test == samples[:4] and len({e.user_id for e in fold.pool}) == 5
    with pytest.raises(DataError, match="name another split"):
        make_folds(samples[:4], samples, discovery=2, calibration=3, limit=None)
    again = [replace(e, id=f"{e.id}-again") for e in samples]
    (fold,) = make_folds(samples[:4], again, discovery=2, calibration=3, limit=None)
    assert not {e.user_id for e in fold.pool} & {e.user_id for e in fold.test}
    forced = make_folds(samples[:4], samples, discovery=2, calibration=3, limit=None, force=True)
    assert forced[0].test == samples[:4]


# --- tables


def test_cells_are_the_metrics_with_tests() -> None:
    golds = [f"the {word} is here" for word in "abcdefghijklmnop"]
    good = [record(str(i), "plain", prediction=g, reference=g) for i, g in enumerate(golds)]
    bad = [replace(r, method="cad", prediction="nothing of it") for r in good]
    same = [replace(r, method="dps") for r in good]
    measured = Measured("LaMP-7", {"plain": good, "cad": bad, "dps": same}, None, {}, 1)
    found = {(c.method, c.metric): c for c in cells(measured)}
    worse = found["cad", "rouge-1"]
    assert worse.p < 0.01 and worse.mark == "-" and worse.high < 0.5
    assert found["dps", "rouge-1"].p == 1 and found["dps", "rouge-1"].mark == ""
    assert np.isnan(found["plain", "rouge-1"].p) and found["plain", "rouge-1"].value == 1
    assert {m for _, m in found} == {"rouge-1", "rouge-L", "meteor"}


def test_strict_and_extracted_stand_apart() -> None:
    texts = {"1": "The score is 4.", "2": "5", "3": "none"}
    records = [
        replace(record(k), task="LaMP-3", prediction=t, reference="4") for k, t in texts.items()
    ]
    measured = Measured("LaMP-3", {"plain": records}, None, {}, 1)
    found = {(c.table, c.metric): c.value for c in cells(measured, extracted=True)}
    assert found["texts", "mae"] == pytest.approx((3 + 1 + 3) / 3)
    assert found["extracted answers", "mae"] == pytest.approx((0 + 1 + 3) / 3)


def test_each_table_is_a_family_of_its_own() -> None:
    texts = {"plain": "nothing", "cad": "4", "dps": "5"}
    records = {
        m: [
            replace(record(str(i), m), task="LaMP-3", prediction=t, reference="4") for i in range(9)
        ]
        for m, t in texts.items()
    }
    measured = Measured("LaMP-3", records, None, {}, 1)
    alone = {(c.method, c.metric): c.p for c in cells(measured) if c.table == "texts"}
    both = cells(measured, extracted=True)
    assert {(c.method, c.metric): c.p for c in both if c.table == "texts"} == pytest.approx(
        alone, nan_ok=True
    )


# --- the command


def ask(folder: Path, data: Path, out: Path, *more: object) -> tuple[object, ...]:
    few = ("--discovery", 4, "--calibration", 4, "--clusters", 2, "--min-samples", 1)
    few = (*few, "--max-new-tokens", 5)
    return ("eval", "--model", folder, "--data", data, "--out", out, *few, *more)


@pytest.fixture(scope="module")
def evaluated(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from prefheads.cli.main import run

    out = tmp_path_factory.mktemp("runs") / "eval"
    some = ("--task", "LaMP-7,LaMP-3", "--methods", ",".join(METHODS), "--limit", 8, "--extract")
    assert run([str(a) for a in ask(folder, data, out, *some)]) == 0
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
    _, predictions = read_predictions(evaluated / "LaMP-7" / "predictions" / "cad.json")
    golds = {
        r.id: str(r.reference)
        for (method, _), r in Records(evaluated / "LaMP-7" / "records.jsonl").done.items()
        if method == "cad"
    }
    assert read_predictions(evaluated / "LaMP-7" / "golds.json") == ("LaMP-7", golds)
    expected = evaluate("LaMP-7", list(predictions.values()), [golds[k] for k in predictions])
    found = {
        c["metric"]: c["value"]
        for c in results["cells"]
        if (c["task"], c["method"], c["table"]) == ("LaMP-7", "cad", "texts")
    }
    assert found == pytest.approx(expected)


def test_eval_resumes_without_work(cli: Cli, folder: Path, data: Path, evaluated: Path) -> None:
    before = {p: p.read_bytes() for p in evaluated.rglob("*") if p.is_file()}
    some = ("--task", "LaMP-7,LaMP-3", "--methods", ",".join(METHODS), "--limit", 8, "--extract")
    assert cli(*ask(folder, data, evaluated, *some, "--batch-size", 3)).code == 0
    assert {p: p.read_bytes() for p in evaluated.rglob("*") if p.is_file()} == before
    refused = cli(*ask(folder, data, evaluated, *some, "--items", 3))
    assert refused.code == 2 and "another items" in refused.err


def test_eval_grows_by_methods(cli: Cli, folder: Path, data: Path, tmp_path: Path) -> None:
    some = ("--task", "LaMP-7", "--limit", 5, "--json")
    first = json.loads(cli(*ask(folder, data, tmp_path, *some, "--methods", "plain")).out)
    both = json.loads(cli(*ask(folder, data, tmp_path, *some, "--methods", "plain,cad")).out)
    plain = [c for c in both["cells"] if c["method"] == "plain"]
    assert plain == first["cells"] and len(both["cells"]) == 2 * len(plain)
    assert not (tmp_path / "LaMP-7" / "fit-0").exists()  # nothing that needs heads


def test_a_killed_eval_ends_with_the_same_table(
    folder: Path, data: Path, evaluated: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of likelihood and of generation; then the same command again."""
    script = """
import os, signal, sys
from prefheads import checkpoint
from prefheads.evaluation.records import Records
checkpoint.SAVE_AFTER = 0
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
    command = [str(a) for a in ask(folder, data, tmp_path / "run", *some)]
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
    assert len(lines) == 8 * len(METHODS)


def test_heads_are_not_found_on_what_is_evaluated(cli: Cli, folder: Path, tmp_path: Path) -> None:
    write_task(tmp_path / "lamp", "LaMP_7", 6)
    write_task(tmp_path / "lamp", "LaMP_7", 10, "train", first=6)
    some = ("--task", "LaMP-7", "--methods", "plain,dps", "--measure", "likelihood")
    same = (*some, "--discovery-split", "dev")
    refused = cli(*ask(folder, tmp_path / "lamp", tmp_path / "out", *same))
    assert refused.code == 2 and "not found on what is evaluated" in refused.err
    forced = cli(*ask(folder, tmp_path / "lamp", tmp_path / "out", *same, "--force"))
    assert forced.code == 0
    trained = cli(*ask(folder, tmp_path / "lamp", tmp_path / "other", *some))
    assert (trained.code, trained.err) == (0, "")
    users = json.loads((tmp_path / "other/LaMP-7/fit-0/steerer.json").read_text())["users"]
    assert not {u for part in users.values() for u in part} & {str(i) for i in range(6)}


def test_a_fitted_folder_lends_its_heads(
    cli: Cli, folder: Path, data: Path, tmp_path: Path
) -> None:
    fit = ("fit", "--model", folder, "--data", data / "LaMP_7", "--out", tmp_path / "fit")
    assert cli(*fit, "--split", "0.3,0.3,0.4", "--min-samples", 1).code == 0
    some = ("--task", "LaMP-7", "--methods", "plain,dps", "--fitted", tmp_path / "fit", "--json")
    found = json.loads(cli(*ask(folder, data, tmp_path / "out", *some)).out)
    assert found["tasks"]["LaMP-7"]["samples"] == 10
    assert not (tmp_path / "out" / "LaMP-7" / "fit-0").exists()


def test_a_fit_on_other_users_is_refused(
    cli: Cli, folder: Path, data: Path, tmp_path: Path
) -> None:
    """A training split that appears later changes who is evaluated; the old fit must not serve."""
    root = tmp_path / "lamp"
    write_task(root, "LaMP_7", 24)
    some = ("--task", "LaMP-7", "--methods", "plain,dps", "--measure", "texts")
    assert cli(*ask(folder, root, tmp_path / "out", *some)).code == 0
    write_task(root, "LaMP_7", 10, "train", first=24)
    refused = cli(*ask(folder, root, tmp_path / "out", *some))
    assert refused.code == 2 and "other users" in refused.err


def test_texts_without_golds(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """The official test split has none: predictions can be had, in the official shape."""
    task = write_task(tmp_path / "lamp", "LaMP_7", 4, "test")
    (task / "test_outputs.json").unlink()
    some = ("--task", "LaMP-7", "--split", "test", "--methods", "plain")
    refused = cli(*ask(folder, tmp_path / "lamp", tmp_path / "out", *some))
    assert refused.code == 2 and "test_outputs.json" in refused.err
    some = (*some, "--measure", "texts")
    assert cli(*ask(folder, tmp_path / "lamp", tmp_path / "out", *some)).code == 0
    found = read_predictions(tmp_path / "out" / "LaMP-7" / "predictions" / "plain.json")
    assert len(found[1]) == 4 and not (tmp_path / "out" / "LaMP-7" / "golds.json").exists()


def test_samples_of_one_author_are_one_user(tmp_path: Path) -> None:
    """Files of LaMP name nobody; who shares an article is the same person."""
    text = "An article that is long enough to be one author's alone, number {}."
    profiles = {"a": (1, 2), "b": (2, 3), "c": (4,), "d": (5,)}
    questions = [
        {
            "id": key,
            "input": f"Generate a headline for the following article: {text.format(asked)}",
            "profile": [{"id": str(n), "text": text.format(n), "title": "Same"} for n in articles],
        }
        for (key, articles), asked in zip(profiles.items(), (7, 8, 3, 9), strict=True)
    ]
    golds = [{"id": key, "output": "A headline"} for key in profiles]
    (tmp_path / "dev_questions.json").write_text(json.dumps(questions))
    for task in ("LaMP_4", "LaMP_7"):
        told = json.dumps({"task": task, "golds": golds})
        (tmp_path / "dev_outputs.json").write_text(told)
        users = [e.user_id for e in load_examples(tmp_path / "dev_questions.json")]
        assert users == ["a", "a", "a", "d"]
    for question in questions:
        question["user_id"] = f"user-{question['id']}"
    (tmp_path / "dev_questions.json").write_text(json.dumps(questions))
    named = load_examples(tmp_path / "dev_questions.json")
    assert [e.user_id for e in named] == ["user-a", "user-b", "user-c", "user-d"]


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
    cli: Cli, folder: Path, data: Path, tmp_path: Path, more: tuple[object, ...], part: str
) -> None:
    result = cli(*ask(folder, data, tmp_path / "out", "--methods", "plain", *more))
    assert result.code == 2 and result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ") and part in line


# --- finding samples


def test_samples_are_found_wherever_they_lie(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        write_task(tmp_path / "flat", "LaMP_7", 2, split)
    write_task(tmp_path / "flat" / "time", "LaMP_7", 2)
    flat = find_samples(tmp_path / "flat", "LaMP-7", None)
    assert flat == tmp_path / "flat" / "LaMP_7" / "dev_questions.json"
    assert find_samples(flat.parent, "lamp_7", "train").name == "train_questions.json"
    nested = tmp_path / "nested" / "LaMP_2" / "new" / "dev"
    write_task(tmp_path / "made", "LaMP_2", 2)
    nested.parent.mkdir(parents=True)
    (tmp_path / "made" / "LaMP_2").rename(nested)
    assert find_samples(tmp_path / "nested", "LaMP-2", "dev").parent == nested
    long = tmp_path / "long" / "topic_writing_user"
    long.mkdir(parents=True)
    for split in ("train", "val"):
        (long / f"{split}.jsonl").write_text("")
    assert find_samples(tmp_path / "long", "LongLaMP-4", None) == long / "val"
    assert find_tasks(tmp_path / "long") == ["LongLaMP-4"]
    assert find_sibling(long / "val", "train") == long / "train"
    assert find_sibling(long / "val", "test") is None
    assert find_sibling(flat, "train") == flat.with_name("train_questions.json")
    assert find_sibling(flat.parents[1] / "time/LaMP_7/dev_questions.json", "train") is None
    (tmp_path / "long" / "topic_writing_temporal").mkdir()
    (tmp_path / "long" / "topic_writing_temporal" / "val.jsonl").write_text("")
    with pytest.raises(DataError, match="name the one"):
        find_samples(tmp_path / "long", "LongLaMP-4", "val")


def test_tasks_without_golds_are_not_found(tmp_path: Path) -> None:
    write_task(tmp_path, "LaMP_7", 2)
    (write_task(tmp_path, "LaMP_2", 2) / "dev_outputs.json").unlink()
    assert find_tasks(tmp_path) == ["LaMP-7"]
    (tmp_path / "LaMP_7" / "dev_outputs.json").unlink()
    with pytest.raises(DataError, match="no task's folder"):
        find_tasks(tmp_path)


def test_eval_of_longlamp(cli: Cli, folder: Path, tmp_path: Path) -> None:
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
    some = ("--split", "test", "--methods", "plain,dps", "--json")
    done = cli(*ask(folder, tmp_path / "long", tmp_path / "out", *some))
    assert (done.code, done.err) == (0, "")
    task = json.loads(done.out)["tasks"]["LongLaMP-4"]
    assert (task["samples"], task["split"], task["heads_from"]) == (6, "test", "train")
    steerer = json.loads((tmp_path / "out/LongLaMP-4/fit-0/steerer.json").read_text())
    found = {user for part in steerer["users"].values() for user in part}
    assert found == {f"writer-{i}" for i in range(6)}  # not those who are in both splits
