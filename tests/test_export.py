"""Amplified heads as weights: in PEFT and in transformers the model is the steered one."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assert_one_error, rows, write_rows
from models import ARCHITECTURES, SHAPE, random_ids, shared, tiny
from peft import PeftModel
from safetensors.torch import load_file
from saved import byte_tokenizer, save_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import prefheads as ph
from prefheads.cli.main import run
from prefheads.errors import ArtifactError, ModelError, SteeringError
from prefheads.export import export_adapter, export_merged, low_rank, new_folder
from prefheads.heads import Provenance, fingerprint
from prefheads.projection import find_projections
from prefheads.steering import ScopeWarning
from prefheads.storage import load_tensors, save_tensors
from prefheads.weights import HeadWeights

HEADS = HeadWeights.from_heads(SHAPE, [(0, 1), (2, 0), (2, 3)])
SOFT = HeadWeights(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)))
GAMMA = 0.7
IDS = random_ids(19)[None]
NEW = 8
PLACES = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
}


@torch.no_grad()
def answers(model: Any, ids: torch.Tensor = IDS, **options: Any) -> tuple[torch.Tensor, list[Any]]:
    """Logits of a prompt, and greedy tokens after it."""
    logits = model(input_ids=ids, **options).logits
    choice = {"max_new_tokens": NEW, "do_sample": False}
    return logits, model.generate(input_ids=ids, **choice, **options).tolist()


def steered(
    model: PreTrainedModel, heads: HeadWeights, gamma: float = GAMMA, ids: torch.Tensor = IDS
) -> tuple[torch.Tensor, list[Any]]:
    with ph.steer(model, heads, gamma, mode="amplify", target="head", scope="all"):
        return answers(model, ids)


def assert_same(found: tuple[torch.Tensor, list[Any]], wanted: tuple[torch.Tensor, list[Any]]):
    assert (found[0] - wanted[0]).abs().max() < 1e-5 * wanted[0].abs().max().clamp_min(1)
    assert found[1] == wanted[1]


def reloaded(model: PreTrainedModel, folder: Path, name: str = "default") -> PeftModel:
    """A copy of the model with an adapter; PEFT changes the model it is given."""
    return PeftModel.from_pretrained(copy.deepcopy(model), folder, adapter_name=name).eval()


def biased(kind: str, **changes: object) -> PreTrainedModel:
    """A model whose projections have large biases, which amplification must leave alone."""
    model = tiny(kind, **changes)
    for projection in find_projections(model):
        nn.init.normal_(projection.module.bias)
    return model


VARIANTS = {
    **{kind: lambda kind=kind: shared(kind) for kind in ARCHITECTURES},
    "llama, biases": lambda: biased("llama", attention_bias=True),
    "gpt2, biases": lambda: biased("gpt2"),
    "starcoder2, biases": lambda: biased("starcoder2", use_bias=True),
    "llama, wide heads": lambda: tiny("llama", head_dim=16),
    "llama, narrow heads": lambda: tiny("llama", head_dim=4, num_key_value_heads=1),
}


# --- the same model, elsewhere


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("heads", [HEADS, SOFT], ids=["hard", "soft"])
def test_adapter_in_peft_is_the_steered_model(
    variant: str, heads: HeadWeights, tmp_path: Path
) -> None:
    model = VARIANTS[variant]()
    plain, wanted = answers(model), steered(model, heads)
    assert (wanted[0] - plain[0]).abs().max() > 0.01
    adapter = export_adapter(model, heads, GAMMA, tmp_path / "adapter")
    assert adapter.error == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == variant.startswith("gpt2")
    assert_same(answers(reloaded(model, tmp_path / "adapter")), wanted)
    assert torch.equal(answers(model)[0], plain[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_checkpoint_is_the_steered_model(variant: str, tmp_path: Path) -> None:
    model = VARIANTS[variant]()
    plain, wanted = answers(model), steered(model, SOFT)
    export_merged(model, byte_tokenizer(), SOFT, GAMMA, tmp_path / "merged")
    attention = model.config._attn_implementation
    merged = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", attn_implementation=attention
    )
    merged.generation_config.eos_token_id = None
    assert_same(answers(merged.eval()), wanted)
    assert torch.equal(answers(model)[0], plain[0])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_projections_are_found_by_what_they_read(kind: str) -> None:
    model = shared(kind)
    place = PLACES.get(kind, "model.layers.{}.self_attn.o_proj")
    found = find_projections(model)
    assert [p.name for p in found] == [place.format(i) for i in range(3)]
    for projection in found:
        assert projection.module is model.get_submodule(projection.name)
        assert projection.weight.shape[0] == model.config.hidden_size
        assert projection.transposed == (kind == "gpt2")
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_bfloat16_weights(tmp_path: Path) -> None:
    """An adapter holds the exact change of rounded weights; a checkpoint rounds once more."""
    model = tiny().bfloat16()
    exact = copy.deepcopy(model).float()
    export_adapter(model, HEADS, GAMMA, tmp_path / "adapter")
    assert_same(answers(reloaded(exact, tmp_path / "adapter")), steered(exact, HEADS))
    export_merged(model, byte_tokenizer(), HEADS, GAMMA, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    gain = (1 + GAMMA * HEADS.values[2]).repeat_interleave(8)
    wanted = (exact.model.layers[2].self_attn.o_proj.weight * gain).bfloat16()
    assert torch.equal(merged.model.layers[2].self_attn.o_proj.weight, wanted)


def test_adapters_side_by_side_one_a_row(tmp_path: Path) -> None:
    model = shared()
    export_adapter(model, HEADS, GAMMA, tmp_path / "hard")
    export_adapter(model, SOFT, 2.0, tmp_path / "soft")
    both = reloaded(model, tmp_path / "hard", "hard")
    both.load_adapter(tmp_path / "soft", "soft")
    ids = torch.stack([random_ids(13, seed) for seed in range(4)])
    rows = ["soft", "__base__", "hard", "soft"]
    logits, tokens = answers(both, ids, adapter_names=rows)
    ways = {"hard": (HEADS, GAMMA), "soft": (SOFT, 2.0)}
    for i, name in enumerate(rows):
        row = ids[i][None]
        wanted = steered(model, *ways[name], row) if name in ways else answers(model, row)
        assert_same((logits[i][None], [tokens[i]]), wanted)


def test_adapter_in_transformers_without_peft_models(tmp_path: Path) -> None:
    model = tiny()
    wanted = steered(model, HEADS)
    export_adapter(model, HEADS, GAMMA, tmp_path / "adapter")
    model.load_adapter(tmp_path / "adapter")
    assert_same(answers(model), wanted)
    with pytest.raises(ModelError, match="merge adapters"):
        export_adapter(model, HEADS, GAMMA, tmp_path / "again")


def test_soft_routing_is_a_sum_of_adapters(tmp_path: Path) -> None:
    model = shared()
    other = HeadWeights.from_heads(SHAPE, [(1, 1), (2, 3)])
    export_adapter(model, HEADS, GAMMA, tmp_path / "a")
    export_adapter(model, other, GAMMA, tmp_path / "b")
    both = reloaded(model, tmp_path / "a", "a")
    both.load_adapter(tmp_path / "b", "b")
    both.add_weighted_adapter(["a", "b"], [0.3, 0.7], "mixed", combination_type="cat")
    both.set_adapter("mixed")
    assert_same(answers(both), steered(model, 0.3 * HEADS + 0.7 * other))


# --- rank


def test_rank_is_heads_of_a_layer_times_head_size(tmp_path: Path) -> None:
    adapter = export_adapter(shared(), HEADS, GAMMA, tmp_path / "adapter")
    assert adapter.rank == 2 * 8
    assert [(c.heads, c.full_rank) for c in adapter.changes] == [(1, 8), (2, 16)]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 16)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {t.shape for t in tensors.values()} == {(16, 32), (32, 16)}
    places = [f"model.layers.{i}.self_attn.o_proj" for i in (0, 2)]
    assert config["target_modules"] == places
    assert tensors.keys() == {
        f"base_model.model.{place}.lora_{x}.weight" for place in places for x in "AB"
    }


def test_no_rank_beyond_the_outputs() -> None:
    """Where heads are wider than the model, the change has no more rank than outputs."""
    weight = torch.randn(32, 64)
    change = low_rank("p", weight, torch.tensor([0.5, 1.0, 0.0, 2.0]))
    assert len(change.a) == change.full_rank == 32
    gains = torch.tensor([0.5, 1.0, 0.0, 2.0]).repeat_interleave(16)
    torch.testing.assert_close(change.b @ change.a, weight * gains)


@pytest.mark.parametrize("rank", [1, 5, 15])
def test_truncation_is_the_best_of_its_rank_and_states_its_error(rank: int) -> None:
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    gains = torch.tensor([0.0, 0.9, 0.0, 0.1])
    exact = weight * gains.repeat_interleave(8)
    change = low_rank("p", weight, gains, rank)
    assert (change.a.shape, change.b.shape, change.full_rank) == ((rank, 32), (32, rank), 16)
    missing = (exact - change.b @ change.a).norm() / exact.norm()
    assert change.error == pytest.approx(missing.item(), rel=1e-4)
    values = torch.linalg.svdvals(exact)
    assert change.error == pytest.approx((values[rank:].norm() / values.norm()).item(), rel=1e-4)
    assert change.a[:, gains.repeat_interleave(8) == 0].abs().max() == 0


def test_truncated_adapter_says_so(tmp_path: Path) -> None:
    model = shared()
    adapter = export_adapter(model, SOFT, GAMMA, tmp_path / "adapter", max_rank=6)
    assert adapter.rank == 6 and all(0 < c.error < 1 for c in adapter.changes)
    squares = [(c.missing**2, c.norm**2) for c in adapter.changes]
    total = (sum(m for m, _ in squares) / sum(n for _, n in squares)) ** 0.5
    assert adapter.error == pytest.approx(total)
    about = json.loads((tmp_path / "adapter" / "prefheads.json").read_text())
    assert about["error"] == adapter.error
    assert [x["error"] for x in about["layers"]] == [c.error for c in adapter.changes]
    loaded = reloaded(model, tmp_path / "adapter")
    for c in adapter.changes:
        delta = loaded.get_submodule(f"base_model.model.{c.name}").get_delta_weight("default")
        torch.testing.assert_close(delta, c.b @ c.a)
    plain, exact = answers(model)[0], steered(model, SOFT)[0]
    assert 0 < (answers(loaded)[0] - exact).norm() < (plain - exact).norm()


def test_rank_that_is_enough_changes_nothing(tmp_path: Path) -> None:
    export_adapter(shared(), HEADS, GAMMA, tmp_path / "a")
    export_adapter(shared(), HEADS, GAMMA, tmp_path / "b", max_rank=16)
    for name in ("adapter_model.safetensors", "adapter_config.json", "prefheads.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# --- what the files say


def test_files_tell_what_they_are_made_from(tmp_path: Path) -> None:
    model = shared()
    info = Provenance(fingerprint=fingerprint(model.config), scope="all", task="LaMP-7")
    heads = HeadWeights(HEADS.values, info)
    export_adapter(model, heads, GAMMA, tmp_path / "adapter", source="runs/seven")
    about = json.loads((tmp_path / "adapter" / "prefheads.json").read_text())
    assert about["heads"] == [[0, 1, 1.0], [2, 0, 1.0], [2, 3, 1.0]]
    assert about["steering"] == {
        "mode": "amplify", "target": "head", "scope": "all", "gamma": GAMMA,
    }  # fmt: skip
    assert (about["heads_info"]["task"], about["source"]) == ("LaMP-7", "runs/seven")
    assert about["fingerprint"] == fingerprint(model.config)


def test_heads_of_another_scope_warn(tmp_path: Path) -> None:
    model = shared()
    for scope, expected in (("response", [ScopeWarning]), ("all", [])):
        info = Provenance(fingerprint=fingerprint(model.config), scope=scope)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            export_adapter(model, HeadWeights(HEADS.values, info), 1, tmp_path / scope)
        assert [w.category for w in caught] == expected
        assert {w.filename for w in caught} <= {__file__}


# --- what does not fit


class _Gate(nn.Module):
    """A projection whose input is gated first."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x * torch.sigmoid(x.mean(-1, keepdim=True)))


class _TwoReaders(nn.Module):
    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.gate = inner, nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * torch.sigmoid(self.gate(x))


class _Packed(nn.Linear):
    """As quantised layers are: a class of its own."""


def _replace(model: PreTrainedModel, change: Any) -> PreTrainedModel:
    attention = model.model.layers[1].self_attn
    attention.o_proj = change(attention.o_proj)
    return model


def _norm_first(inner: nn.Linear) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(32), inner)


def _packed(inner: nn.Linear) -> nn.Module:
    packed = _Packed(32, 32, bias=False)
    packed.load_state_dict(inner.state_dict())
    return packed


def _float8(inner: nn.Linear) -> nn.Module:
    inner.weight = nn.Parameter(inner.weight.detach().to(torch.float8_e4m3fn), False)
    inner.forward = lambda x: nn.functional.linear(x, inner.weight.float())
    return inner


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_Gate, "something between the heads of layer 1"),
        (_norm_first, "LayerNorm"),
        (_TwoReaders, "only a single projection"),
        (_packed, "a _Packed"),
        (_float8, "float8"),
    ],
)
def test_models_whose_heads_are_no_weights_are_refused(
    change: Any, part: str, tmp_path: Path
) -> None:
    model = _replace(tiny(), change)
    with pytest.raises(ModelError, match=part) as caught:
        export_adapter(model, HEADS, GAMMA, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_projection_shared_between_layers_is_refused(tmp_path: Path) -> None:
    model = tiny()
    layers = model.model.layers
    layers[1].self_attn.o_proj.weight = layers[0].self_attn.o_proj.weight
    with pytest.raises(ModelError, match="shares an output projection"):
        export_adapter(model, HEADS, GAMMA, tmp_path / "out")


@pytest.mark.parametrize(
    ("heads", "gamma", "rank", "part"),
    [
        (HEADS, 0.0, None, "above 0"),
        (HEADS, float("nan"), None, "above 0"),
        (HEADS, -1.0, None, "above 0"),
        (HeadWeights(torch.zeros(SHAPE)), 1.0, None, "all zero"),
        (HeadWeights(torch.ones(2, 4)), 1.0, None, "does not fit"),
        (HEADS, 1.0, 0, "at least 1"),
    ],
)
def test_bad_strengths_and_maps(
    heads: HeadWeights, gamma: float, rank: int | None, part: str, tmp_path: Path
) -> None:
    with pytest.raises(SteeringError, match=part):
        export_adapter(shared(), heads, gamma, tmp_path / "out", max_rank=rank)
    assert not any(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_left_half(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="exists already"):
        export_adapter(shared(), HEADS, GAMMA, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "new") as work:
        (work / "half").write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    export_adapter(shared(), HEADS, GAMMA, tmp_path / "empty")
    assert len(list((tmp_path / "empty").iterdir())) == 3


# --- the command


@pytest.fixture(scope="module")
def exportable(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run calibrated to what can be exported, with two clusters."""
    out = tmp_path_factory.mktemp("runs") / "fitted"
    data = write_rows(out.parent / "people.jsonl", rows(12, 1))
    how = ["--mode", "amplify", "--target", "head", "--scope", "all"]
    where = ["--model", str(tiny_folder), "--data", str(data), "--out", str(out)]
    assert run(["fit", *where, *how, "--clusters", "2", "--min-samples", "1"]) == 0
    return out


def calibrated(run_folder: Path, to: Path, **setting: object) -> Path:
    """A copy of a run, as if calibration had chosen this; plain if nothing is given."""
    shutil.copytree(run_folder, to)
    data = json.loads((to / "steerer.json").read_text())
    data["calibration"]["chosen"] = 1 if setting else 0
    data["calibration"]["settings"][1] |= setting
    (to / "steerer.json").write_text(json.dumps(data))
    return to


def test_fit_can_be_kept_to_what_can_be_exported(exportable: Path) -> None:
    record = json.loads((exportable / "run.json").read_text())
    assert (record["options"]["mode"], record["options"]["target"]) == ("amplify", "head")
    tried = json.loads((exportable / "steerer.json").read_text())["calibration"]["settings"]
    assert len(tried) == 13
    assert {(s["mode"], s["target"]) for s in tried} == {("amplify", "head")}


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_fitted_run_gives_one_folder_a_cluster(
    cli, form: str, tiny_folder: Path, exportable: Path, tmp_path: Path
) -> None:
    source = calibrated(exportable, tmp_path / "run", gamma=1.5)
    out = tmp_path / "out"
    result = cli("export", source, "--model", tiny_folder, "--format", form, "--out", out, "--json")
    assert (result.code, result.err) == (0, "")
    model, tokenizer = ph.load_model(tiny_folder)
    steerer = ph.PreferenceSteerer.load(source, model, tokenizer)
    assert len(steerer.maps) == 2
    for i, heads in enumerate(steerer.maps):
        wanted = steered(model, heads, 1.5)
        if form == "peft":
            found = reloaded(model, out / f"cluster-{i}")
        else:
            found = ph.load_model(out / f"cluster-{i}")[0]
        assert_same(answers(found), wanted)
    report = json.loads(result.out)
    assert [x["folder"] for x in report["written"]] == [str(out / f"cluster-{i}") for i in (0, 1)]
    assert report["gamma"] == 1.5


def test_cluster_without_heads_is_told(
    cli, tiny_folder: Path, exportable: Path, tmp_path: Path
) -> None:
    source = calibrated(exportable, tmp_path / "run", gamma=1.5)
    tensors, meta = load_tensors(source / "steerer.safetensors", "steerer")
    tensors["maps"][0] = 0
    save_tensors(source / "steerer.safetensors", tensors, "steerer", meta)
    where = ("--model", tiny_folder, "--format", "peft", "--out", tmp_path / "out")
    result = cli("export", source, *where)
    assert result.code == 0 and "plain and not written: cluster-0" in result.out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["cluster-1"]


def test_heads_of_a_file_need_a_strength(cli, tiny_folder: Path, tmp_path: Path) -> None:
    config = ph.load_model(tiny_folder)[0].config
    info = Provenance(fingerprint=fingerprint(config), scope="response")
    HeadWeights(SOFT.values, info).save(tmp_path / "heads.safetensors")
    where = ("--model", tiny_folder, "--format", "peft")
    for source in (tmp_path / "heads.safetensors", tmp_path):
        result = cli("export", source, *where, "--out", tmp_path / "none")
        assert_one_error(result, "no calibrated strength", "--gamma")
    options = (*where, "--gamma", 2, "--max-rank", 3, "--out", tmp_path / "out")
    result = cli("export", tmp_path, *options)
    assert result.code == 0
    (note,) = result.err.splitlines()
    assert note.startswith("note: ") and "fit with that scope" in note
    error = json.loads((tmp_path / "out" / "prefheads.json").read_text())["error"]
    assert f"rank 3, relative error {error:.3g}" in result.out
    assert "model.layers.2.self_attn.o_proj" in result.out


def test_what_is_no_change_of_weights_is_refused(
    cli, tiny_folder: Path, exportable: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    where = ("--model", tiny_folder, "--format", "peft", "--out", out)
    for name, change in {"a": {"mode": "contrast"}, "b": {"target": "profile"}}.items():
        source = calibrated(exportable, tmp_path / name, gamma=1.0, **change)
        for options in ((), ("--gamma", 1)):
            result = cli("export", source, *where, *options)
            assert_one_error(result, "--mode amplify --target head --scope all")
    plain = calibrated(exportable, tmp_path / "plain")
    assert_one_error(cli("export", plain, *where), "no steering that helps", "--gamma")
    assert cli("export", plain, *where, "--gamma", 0.5).code == 0


def test_bad_command_lines(cli, tiny_folder: Path, exportable: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", num_hidden_layers=2)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    good = {"--model": tiny_folder, "--format": "peft", "--out": tmp_path / "out", "--gamma": 1}
    for source, change, part in (
        (tmp_path / "none", {}, "no such file"),
        (tmp_path / "taken", {}, "holds no run"),
        (exportable, {"--model": other}, "was fitted for"),
        (exportable, {"--out": tmp_path / "taken"}, "exists already"),
        (exportable, {"--format": "merged", "--max-rank": 4}, "--max-rank"),
        (exportable, {"--max-rank": 0}, "--max-rank"),
        (exportable, {"--gamma": -1}, "above 0"),
        (exportable, {"--gamma": "inf"}, "above 0"),
        (exportable, {"--format": "gguf"}, "--format"),
    ):
        options = [x for pair in (good | change).items() for x in pair]
        assert_one_error(cli("export", source, *options), part)
        assert not (tmp_path / "out").exists()
