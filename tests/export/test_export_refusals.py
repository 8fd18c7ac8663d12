"""What cannot be exported is refused, and nothing is left half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.exported import (
    GAMMA,
    HEADS,
)
from support.models import SHAPE, shared, tiny
from torch import nn
from transformers import PreTrainedModel

from prefheads.errors import ArtifactError, ModelError, SteeringError
from prefheads.export.export import export_adapter, new_folder
from prefheads.heads.weights import HeadWeights


class _Gate(nn.Module):
    """A projection whose input is gated first, each number by a weight of its own."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.gate = nn.Parameter(torch.rand(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x * self.gate)


class _TwoReaders(nn.Module):
    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.gate = inner, nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.gate(x)


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
        (_norm_first, "together before it projects them"),
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
        (HEADS, float("nan"), None, "at least 0"),
        (HEADS, -1.0, None, "at least 0"),
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
