"""Products by another library are those of the layers, and only where it may choose."""

from __future__ import annotations

import pytest
import torch
from models import tiny
from steered import SOFT, generate
from torch import nn

from prefheads import linear as module
from prefheads.linear import fast_steps, linear
from prefheads.steering import steer

SHAPES = [(1, 1, 32), (2, 1, 32), (1, 2, 32), (2, 32), (3, 1, 32), (5, 7, 32), (0, 3, 32)]


def values(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["onednn", "mkl"])
def library(request, monkeypatch) -> str:
    if request.param == "mkl":
        monkeypatch.setattr(module, "HAS_ONEDNN", False)
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_layer(shape, bias, library) -> None:
    model, x = nn.Sequential(nn.Linear(32, 7, bias=bias)), values(*shape)
    plain = model(x)
    with fast_steps(model):
        assert "forward" in model[0].__dict__
        fast = model(x)
    assert fast.shape == plain.shape and fast.is_contiguous()
    assert torch.allclose(fast, plain, atol=1e-6)
    assert "forward" not in model[0].__dict__


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 9])
def test_neither_factor_needs_to_lie_in_order(rows) -> None:
    x, weight = values(32, rows).T, values(32, 50).T[::2]
    assert torch.allclose(linear(x, weight, None), x @ weight.T, atol=1e-5)


@torch.no_grad()
def test_a_layer_may_be_given_other_weights() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8)), values(3, 8)
    with fast_steps(model):
        model[0].weight = nn.Parameter(torch.eye(8))
        model[0].bias.zero_()
        assert torch.allclose(model(x), x)


def test_a_gradient_is_kept() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8)), values(3, 8)
    model(x).square().sum().backward()
    plain = model[0].weight.grad.clone()
    model.zero_grad()
    with fast_steps(model):
        model(x).square().sum().backward()
    assert torch.equal(model[0].weight.grad, plain)


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 9])
def test_a_chosen_precision_is_kept(rows) -> None:
    model, x = nn.Sequential(nn.Linear(8, 8)), values(rows, 8)
    with fast_steps(model), torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


@torch.no_grad()
def test_what_is_not_finite_stays_so(library) -> None:
    x = values(9, 8)
    x[4, 3] = float("nan")
    out = linear(x, values(5, 8), None)
    assert out[4].isnan().all() and out.isnan().sum() == 5


def test_other_layers_are_left_alone() -> None:
    class Own(nn.Linear):
        pass

    wrapped = nn.Linear(4, 4)
    own = wrapped.forward = wrapped.forward  # as accelerate does
    model = nn.Sequential(Own(4, 4), nn.Linear(4, 4).bfloat16())
    with fast_steps(nn.Sequential(*model, wrapped)):
        assert not any("forward" in layer.__dict__ for layer in model)
        assert wrapped.forward == own


@torch.no_grad()
@pytest.mark.parametrize("rows", [3, 200])
def test_passes_of_many_rows_are_left_to_torch(rows, monkeypatch) -> None:
    model, used = nn.Sequential(nn.Linear(8, 8)), []
    monkeypatch.setattr(module, "linear", lambda *a: used.append(a) or linear(*a))
    with fast_steps(model):
        model(values(rows, 8))
    assert len(used) == (rows < 100)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_steps_go_through_it_while_a_model_is_steered(mode, monkeypatch) -> None:
    model, used = tiny(), []
    monkeypatch.setattr(module, "linear", lambda *a: used.append(a) or linear(*a))
    with steer(model, SOFT, 1.0, mode=mode):
        generate(model, n_new=2)
    assert used
    assert not any("forward" in m.__dict__ for m in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 3, 8, 9, 16, 100, 128, 129])
def test_any_number_of_rows(n) -> None:
    model, x = nn.Sequential(nn.Linear(16, 30)), values(n, 2, 16)[:, 1:]
    plain = model(x)
    with fast_steps(model):
        assert torch.allclose(model(x), plain, atol=1e-5)
        assert model(x).shape == (n, 1, 30)
