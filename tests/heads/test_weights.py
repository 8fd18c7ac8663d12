"""Weights of heads: arithmetic, random controls, and the model they belong to."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from prefheads.errors import ArtifactError, SteeringError
from prefheads.heads.scores import HeadWeights, Provenance, fingerprint, select_heads

INFO = Provenance(model_id="tiny", task="LaMP-4", scope="all", seed=3)


def make_weights(seed: int = 0, layers: int = 4, heads: int = 3) -> HeadWeights:
    return HeadWeights(torch.rand(layers, heads, generator=torch.Generator().manual_seed(seed)))


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


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
    results: list[Callable[[], HeadWeights]] = [
        lambda: 2 * ones,
        lambda: ones + ones,
        lambda: -0.5 * ones,
    ]
    for bad in results:
        with pytest.raises(SteeringError, match=r"\[0, 1\]") as error:
            bad()
        one_line(error)
    assert HeadWeights(torch.tensor([[1 + 5e-7, -5e-7]])).values.tolist() == [[1.0, 0.0]]
    with pytest.raises(TypeError):
        ones * "2"


def test_weights_must_be_finite_maps_of_one_shape() -> None:
    with pytest.raises(SteeringError, match="NaN in the weights, at layer 1, head 0"):
        HeadWeights(torch.tensor([[0.0, 1.0], [torch.nan, 0.5]]))
    with pytest.raises(SteeringError):
        HeadWeights(torch.zeros(2, 3, 4))
    wide, tall = HeadWeights(torch.zeros(2, 3)), HeadWeights(torch.zeros(3, 2))
    with pytest.raises(SteeringError, match="2x3 and 3x2"):
        _ = wide + tall
    with pytest.raises(SteeringError, match="2x3 and 3x2"):
        wide.overlap(tall)


def test_weights_keep_a_copy_of_what_they_are_given() -> None:
    source = torch.zeros(2, 2)
    weights = HeadWeights(source)
    source[0, 0] = 1
    assert weights.n_active == 0


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
    mean = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
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


def test_random_masks_are_as_sparse_and_as_strong_on_any_heads() -> None:
    own = select_heads(torch.linspace(-1, 1, 900).reshape(30, 30), k=90, weights="soft")
    masks = [own.random_like(seed, kind="mask") for seed in range(40)]
    values = own.values.flatten().sort().values
    assert all(torch.equal(mask.values.flatten().sort().values, values) for mask in masks)
    assert len({tuple(mask.heads) for mask in masks}) == 40
    where = torch.stack([mask.values > 0 for mask in masks]).float().mean(0)
    assert where[own.values > 0].mean() == pytest.approx(0.1, abs=0.03)
    assert HeadWeights(torch.zeros(2, 2)).random_like(0, kind="mask").n_active == 0
    with pytest.raises(SteeringError):
        own.random_like(0, kind="rows")  # type: ignore[arg-type]


# --- the model they belong to


def llama(**changes: int) -> LlamaConfig:
    shape: dict[str, Any] = {
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "hidden_size": 24,
        "vocab_size": 99,
    }
    return LlamaConfig(**{**shape, **changes})


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
