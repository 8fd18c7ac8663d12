"""Amplified heads as weights: in PEFT and in transformers the model is the steered one."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.exported import (
    GAMMA,
    HEADS,
    PLACES,
    SOFT,
    VARIANTS,
    answers,
    assert_same,
    reloaded,
    steered,
)
from support.models import ARCHITECTURES, SHAPE, random_ids, shared, tiny
from support.saved import byte_tokenizer
from transformers import AutoModelForCausalLM

from prefheads.errors import ModelError
from prefheads.export.export import export_adapter, export_merged, low_rank
from prefheads.heads.scores import Provenance, fingerprint
from prefheads.heads.weights import HeadWeights
from prefheads.interventions.projection import find_projections
from prefheads.steering.context import ScopeWarning

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
