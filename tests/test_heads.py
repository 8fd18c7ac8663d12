"""Scores and weights of heads: selection, arithmetic, statistics, files."""

import json
import os
import random
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import GPT2Config, LlamaConfig

from prefheads.errors import ArtifactError, DataError, SteeringError
from prefheads.heads import HeadScores, HeadWeights, Provenance, fingerprint, select_heads
from prefheads.storage import load_tensors, read_json, save_tensors, writable_dir, write_json

INFO = Provenance(model_id="tiny", fingerprint="", task="LaMP-4", scope="all", seed=3)


def make_scores(n: int = 12, layers: int = 4, heads: int = 3, seed: int = 0) -> HeadScores:
    generator = torch.Generator().manual_seed(seed)
    return HeadScores(
        torch.randn(n, layers, heads, generator=generator),
        torch.rand(n, generator=generator) + 1,
        tuple(f"e{i}" for i in range(n)),
        tuple(f"u{i // 2}" for i in range(n)),
        INFO,
    )


def make_weights(seed: int = 0, layers: int = 4, heads: int = 3) -> HeadWeights:
    return HeadWeights(torch.rand(layers, heads, generator=torch.Generator().manual_seed(seed)))


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


# --- statistics of scores


def test_mean_and_stderr_are_the_textbook_ones() -> None:
    scores = make_scores()
    for layer in range(4):
        for head in range(3):
            column = [float(v) for v in scores.values[:, layer, head]]
            assert scores.mean[layer, head].item() == pytest.approx(statistics.mean(column), 1e-5)
            expected = statistics.stdev(column) / len(column) ** 0.5
            assert scores.stderr[layer, head].item() == pytest.approx(expected, 1e-5)


def test_one_example_has_no_stderr_and_one_user_no_interval() -> None:
    single = make_scores().select(examples="e3")
    assert single.n_examples == 1
    assert single.stderr.isnan().all()
    low, high = make_scores().select(users="u1").interval()
    assert low.isnan().all() and high.isnan().all()


def test_merged_shards_are_the_whole() -> None:
    whole = make_scores()
    shards = [whole.select(examples=[f"e{i}" for i in rows]) for rows in ([0], range(1, 7), [7])]
    rest = whole.select(examples=[f"e{i}" for i in range(8, 12)])
    assert shards[0].merge(*shards[1:], rest) == whole


def test_merge_refuses_what_does_not_belong_together() -> None:
    scores = make_scores()
    half = scores.select(users=["u0", "u1"])
    with pytest.raises(DataError, match="'e0' occurs twice"):
        scores.merge(half)
    other = replace(scores.select(users=["u5"]), info=replace(INFO, scope="response"))
    with pytest.raises(DataError, match="scope is 'all' and 'response'"):
        half.merge(other)
    with pytest.raises(DataError, match="cannot be merged"):
        half.merge(make_scores(heads=5))


def test_select_takes_rows_by_user_and_example() -> None:
    scores = make_scores()
    some = scores.select(users=["u1", "u4"])
    assert some.example_ids == ("e2", "e3", "e8", "e9")
    assert torch.equal(some.values, scores.values[[2, 3, 8, 9]])
    assert torch.equal(some.nll, scores.nll[[2, 3, 8, 9]])
    assert some.info.n_examples == 4
    assert scores.select(users=["u1"], examples=["e3", "e4"]).example_ids == ("e3",)
    with pytest.raises(DataError, match="user 'nobody'"):
        scores.select(users=["u1", "nobody"])
    with pytest.raises(DataError):
        scores.select(users=["u0"], examples=["e9"])


def test_interval_covers_the_truth_where_examples_of_a_user_are_alike() -> None:
    rng = np.random.default_rng(0)
    users, each, heads = 30, 5, 400
    truth = 0.3
    per_user = rng.normal(0, 1, (users, 1, heads)).repeat(each, axis=1)
    values = truth + per_user + rng.normal(0, 0.2, (users, each, heads))
    scores = HeadScores(
        torch.tensor(values.reshape(-1, 1, heads)),
        torch.ones(users * each),
        tuple(map(str, range(users * each))),
        tuple(f"u{i // each}" for i in range(users * each)),
    )
    low, high = scores.interval(0.95, n_boot=500, seed=1)
    covered = ((low <= truth) & (truth <= high)).float().mean().item()
    assert 0.89 <= covered <= 0.98
    # Drawn example by example, the interval would be about half as wide.
    assert ((high - low) / (2 * 1.96 * scores.stderr)).mean() > 1.7
    again = scores.interval(0.95, n_boot=500, seed=1)
    assert torch.equal(low, again[0]) and torch.equal(high, again[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_example(bad: float) -> None:
    scores = make_scores()
    values = scores.values.clone()
    values[7, 1, 2] = bad
    with pytest.raises(DataError, match="'e7'") as error:
        replace(scores, values=values)
    one_line(error)


def test_scores_need_matching_shapes() -> None:
    scores = make_scores()
    with pytest.raises(DataError, match="11 NLLs"):
        replace(scores, nll=scores.nll[1:])
    with pytest.raises(DataError):
        replace(scores, user_ids=scores.user_ids[1:])
    with pytest.raises(DataError):
        replace(scores, values=scores.values[0])


# --- selection


@pytest.mark.parametrize("seed", range(5))
def test_top_is_a_naive_sort(seed: int) -> None:
    scores = make_scores(seed=seed, layers=6, heads=5)
    mean = scores.mean
    naive = sorted(
        [(layer, head) for layer in range(6) for head in range(5)],
        key=lambda at: -mean[at].item(),
    )
    n_positive = int((mean > 0).sum())
    for k in (1, 3, n_positive):
        top = scores.top(k=k)
        assert set(top.heads) == set(naive[:k])
        assert set(top.values.unique().tolist()) <= {0.0, 1.0}
    ranked = scores.ranked()
    assert [(layer, head) for layer, head, _, _ in ranked] == naive
    assert ranked[0][2:] == (mean[naive[0]].item(), scores.stderr[naive[0]].item())


def test_fraction_is_of_all_heads_rounded_and_never_none() -> None:
    positive = torch.arange(270.0).reshape(30, 9) + 1
    assert select_heads(positive, fraction=0.04).n_active == 11
    assert select_heads(positive, fraction=1e-6).n_active == 1
    assert select_heads(positive, fraction=1.0).n_active == 270


def test_ties_go_to_the_lower_layer_and_head() -> None:
    assert select_heads(torch.ones(5, 40), k=3).heads == [(0, 0), (0, 1), (0, 2)]


def test_only_helpful_heads_are_chosen_unless_signed() -> None:
    mean = torch.tensor([[0.5, -0.1], [0.0, 0.2]])
    with pytest.warns(UserWarning, match="only 2 of 3"):
        assert select_heads(mean, k=3).heads == [(0, 0), (1, 1)]
    assert select_heads(mean, k=3, signed=True).heads == [(0, 0), (1, 0), (1, 1)]
    with pytest.warns(UserWarning):
        assert select_heads(-mean.abs(), weights="soft").n_active == 0


def test_selection_wants_exactly_one_size_in_range() -> None:
    scores = make_scores()
    for arguments in (
        {},
        {"k": 2, "fraction": 0.1},
        {"k": 0},
        {"k": 13},
        {"fraction": 0.0},
        {"fraction": 1.5},
    ):
        with pytest.raises(SteeringError) as error:
            scores.top(**arguments)  # type: ignore[arg-type]
        one_line(error)


def test_soft_weights_are_shares_of_the_largest() -> None:
    mean = torch.tensor([[0.4, -0.3], [0.1, 0.2]])
    assert select_heads(mean, weights="soft").values.tolist() == [[1.0, 0.0], [0.25, 0.5]]
    assert select_heads(mean, k=2, weights="soft").values.tolist() == [[1.0, 0.0], [0.0, 0.5]]
    scores = make_scores()
    assert torch.allclose(scores.soft().values, (scores.mean / scores.mean.max()).clamp(min=0))
    assert scores.soft(k=2).heads == scores.top(k=2).heads


# --- weights


@pytest.mark.parametrize("seed", range(5))
def test_mixing_is_linear(seed: int) -> None:
    a, b, c = (make_weights(10 * seed + i) for i in range(3))
    w = random.Random(seed).random()
    mixed = w * a + (1 - w) * b
    assert torch.allclose(mixed.values, w * a.values + (1 - w) * b.values)
    assert torch.allclose(mixed.values, ((1 - w) * b + a * w).values)
    assert 1 * a == a
    assert (0 * a).n_active == 0
    left, right = (0.2 * a + 0.3 * b) + 0.5 * c, 0.2 * a + (0.3 * b + 0.5 * c)
    assert torch.allclose(left.values, right.values)


def test_weights_outside_of_the_unit_interval_are_refused_not_clamped() -> None:
    ones = HeadWeights(torch.ones(2, 3))
    for bad in (lambda: 2 * ones, lambda: ones + ones, lambda: -0.5 * ones):
        with pytest.raises(SteeringError, match=r"\[0, 1\]") as error:
            bad()
        one_line(error)
    assert HeadWeights(torch.tensor([[1 + 5e-7, -5e-7]])).values.tolist() == [[1.0, 0.0]]
    with pytest.raises(TypeError):
        ones * "2"  # type: ignore[operator]


def test_weights_must_be_finite_maps_of_one_shape() -> None:
    with pytest.raises(SteeringError, match="NaN in the weights, at layer 1, head 0"):
        HeadWeights(torch.tensor([[0.0, 1.0], [torch.nan, 0.5]]))
    with pytest.raises(SteeringError):
        HeadWeights(torch.zeros(2, 3, 4))
    for combine in (lambda a, b: a + b, lambda a, b: a.overlap(b)):
        with pytest.raises(SteeringError, match="2x3 and 3x2"):
            combine(HeadWeights(torch.zeros(2, 3)), HeadWeights(torch.zeros(3, 2)))


def test_weights_keep_a_copy_of_what_they_are_given() -> None:
    source = torch.zeros(2, 2)
    weights = HeadWeights(source)
    source[0, 0] = 1
    assert weights.n_active == 0


def test_mixture_keeps_only_the_provenance_its_parts_share() -> None:
    a = HeadWeights(torch.zeros(1, 1), INFO)
    b = HeadWeights(torch.zeros(1, 1), replace(INFO, scope="response", task="LaMP-7", seed=9))
    assert (a + a).info == INFO
    assert (a + b).info == replace(INFO, scope="", task=None, seed=0)


def test_heads_round_trip_through_a_list() -> None:
    heads = [(0, 2), (3, 0), (3, 1)]
    weights = HeadWeights.from_heads((4, 3), heads)
    assert weights.heads == heads and weights.n_active == 3
    with pytest.raises(SteeringError, match=r"4\.0"):
        HeadWeights.from_heads((4, 3), [(4, 0)])
    with pytest.raises(SteeringError):
        HeadWeights.from_heads((4, 3), [(0, -1)])


def test_overlap_is_jaccard() -> None:
    a = HeadWeights.from_heads((4, 3), [(0, 0), (0, 1), (0, 2)])
    b = HeadWeights.from_heads((4, 3), [(0, 1), (0, 2), (1, 0)])
    empty = HeadWeights(torch.zeros(4, 3))
    assert a.overlap(b) == b.overlap(a) == 2 / 4
    assert a.overlap(a) == empty.overlap(empty) == 1
    assert a.overlap(empty) == 0


# --- random controls (6.4)


@pytest.mark.parametrize("seed", range(10))
def test_random_heads_are_others_with_the_same_weights(seed: int) -> None:
    mean = make_scores(layers=8, heads=6).mean
    own = select_heads(mean, k=9, weights="soft")
    control = own.random_like(seed)
    assert not set(control.heads) & set(own.heads)
    nonzero = own.values[own.values > 0]
    assert torch.equal(control.values[control.values > 0].sort().values, nonzero.sort().values)
    assert control == own.random_like(seed)
    assert control != own.random_like(seed + 100)
    assert control.info.method == "random-heads" and control.info.seed == seed


def test_random_heads_keep_their_number_where_others_are_too_few() -> None:
    own = HeadWeights.from_heads((2, 3), [(0, 0), (0, 1), (0, 2), (1, 0)])
    control = own.random_like(0)
    assert control.n_active == 4
    assert {(1, 1), (1, 2)} <= set(control.heads)


def test_random_masks_match_sparsity_and_values() -> None:
    own = select_heads(torch.linspace(-1, 1, 900).reshape(30, 30), k=90, weights="soft")
    masks = [own.random_like(seed, kind="mask") for seed in range(40)]
    counts = [mask.n_active for mask in masks]
    assert len(set(counts)) > 5  # drawn head by head, not a fixed number
    assert statistics.mean(counts) == pytest.approx(90, abs=6)
    values = set(own.values.flatten().tolist())
    assert set(masks[0].values.flatten().tolist()) <= values
    where = torch.stack([mask.values > 0 for mask in masks]).float().mean(0)
    assert where[own.values > 0].mean() == pytest.approx(0.1, abs=0.03)
    assert HeadWeights(torch.zeros(2, 2)).random_like(0, kind="mask").n_active == 0
    with pytest.raises(SteeringError):
        own.random_like(0, kind="rows")  # type: ignore[arg-type]


# --- files


def test_scores_and_weights_come_back_as_saved(tmp_path: Path) -> None:
    scores = make_scores()
    scores.save(tmp_path / "scores.safetensors")
    assert HeadScores.load(tmp_path / "scores.safetensors") == scores
    weights = HeadWeights(make_weights().values, replace(INFO, reference="no-profile"))
    weights.save(str(tmp_path / "é heads.safetensors"))
    loaded = HeadWeights.load(tmp_path / "é heads.safetensors")
    assert loaded == weights and loaded.info.reference == "no-profile"
    weights.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "é heads.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3  # no temporary files


def test_truncated_and_damaged_files_are_named(tmp_path: Path) -> None:
    make_scores().save(path := tmp_path / "scores.safetensors")
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"scores\.safetensors") as error:
            HeadScores.load(path)
        one_line(error)
    for position in range(0, 400, 13):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(bytes(damaged))
        with pytest.raises(ArtifactError) as error:
            HeadScores.load(path)
        one_line(error)


def test_foreign_missing_and_wrong_files_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"values": torch.zeros(2, 2)}, tmp_path / "foreign")
    (tmp_path / "text").write_text("not tensors")
    (tmp_path / "folder").mkdir()
    make_scores().save(tmp_path / "scores")
    save_tensors(tmp_path / "unnamed", {"other": torch.zeros(2)}, "head weights", {"info": {}})
    info = {"info": {"no such field": 1}}
    save_tensors(tmp_path / "newer", {"values": torch.zeros(2, 2)}, "head weights", info)
    nan = {"values": torch.full((2, 2), torch.nan)}
    save_tensors(tmp_path / "nan", nan, "head weights", {"info": {}})
    for name in ("foreign", "text", "folder", "scores", "unnamed", "newer", "nan", "missing"):
        with pytest.raises(ArtifactError, match=name) as error:
            HeadWeights.load(tmp_path / name)
        one_line(error)
    with pytest.raises(ArtifactError, match="holds head scores, but head weights"):
        HeadWeights.load(tmp_path / "scores")


def llama(**changes: int) -> LlamaConfig:
    shape = {"num_hidden_layers": 4, "num_attention_heads": 3, "hidden_size": 24, "vocab_size": 99}
    return LlamaConfig(**(shape | changes))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    config = llama()
    info = replace(INFO, fingerprint=fingerprint(config))
    HeadWeights(make_weights().values, info).save(path := tmp_path / "heads")
    assert HeadWeights.load(path, config).info == info
    assert HeadWeights.load(path, SimpleNamespace(config=config)).info == info
    for other in (llama(vocab_size=100), llama(num_hidden_layers=5), GPT2Config(n_layer=4)):
        with pytest.raises(ArtifactError) as error:
            HeadWeights.load(path, other)
        message = one_line(error)
        assert fingerprint(config) in message and fingerprint(other) in message
    # Without a fingerprint the shape still has to fit.
    make_weights().save(path)
    HeadWeights.load(path, config)
    with pytest.raises(ArtifactError, match="5x3"):
        HeadWeights.load(path, llama(num_hidden_layers=5))


def test_fingerprint_follows_the_architecture_not_the_weights_or_names() -> None:
    assert fingerprint(llama()) == fingerprint(llama(bos_token_id=7))
    assert fingerprint(llama()) != fingerprint(llama(intermediate_size=64))
    # GPT-2 calls its layers n_layer.
    assert fingerprint(GPT2Config(n_layer=2)) != fingerprint(GPT2Config(n_layer=3))
    assert len(fingerprint(llama())) == 16


def test_failed_write_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_weights(1).save(path := tmp_path / "heads")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ArtifactError, match="No space left on device") as error:
        make_weights(2).save(path)
    one_line(error)
    assert HeadWeights.load(path) == make_weights(1)
    assert [file.name for file in tmp_path.iterdir()] == ["heads"]
    with pytest.raises(ArtifactError):
        make_weights().save(tmp_path / "no folder" / "heads")


def test_json_files_and_folders(tmp_path: Path) -> None:
    folder = writable_dir(tmp_path / "a" / "b")
    write_json(folder / "x.json", {"é": [1, 2.5, None]})
    assert read_json(folder / "x.json") == {"é": [1, 2.5, None]}
    (folder / "bad.json").write_text('{\n "a": }')
    with pytest.raises(ArtifactError, match="line 2"):
        read_json(folder / "bad.json")
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00{")
    for name in ("binary.json", "missing.json"):
        with pytest.raises(ArtifactError, match=name) as error:
            read_json(folder / name)
        one_line(error)
    with pytest.raises(ArtifactError):
        writable_dir(folder / "x.json")


def test_metadata_is_plain_json_in_the_header(tmp_path: Path) -> None:
    make_weights().save(path := tmp_path / "heads")
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["prefheads"])
    assert header["kind"] == "head weights" and header["meta"]["info"]["scope"] == "response"
    tensors, meta = load_tensors(path, "head weights")
    assert set(tensors) == {"values"} and meta == header["meta"]
