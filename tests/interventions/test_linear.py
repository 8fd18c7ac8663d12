"""Products by another library are those of the layers, and only where it may choose."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny
from support.steered import SOFT, generate
from torch import nn

from prefheads.interventions import linear as module
from prefheads.interventions.linear import fast_steps, linear
from prefheads.steering.context import steer

SHAPES = [(1, 1, 32), (2, 1, 32), (1, 2, 32), (2, 32), (3, 1, 32), (5, 7, 32), (0, 3, 32)]


def values(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# What a CPU has: oneDNN for all weights; for a vocabulary's, and the weight first; neither.
CPUS = {"avx512": (True, True, 2), "avx2": (True, False, 32), "other": (False, False, 2)}


@pytest.fixture(params=CPUS)
def cpu(request, monkeypatch) -> str:
    if CPUS[request.param][0] and not module.HAS_ONEDNN:
        pytest.skip("this torch carries no oneDNN")
    names = ("HAS_ONEDNN", "AVX512", "WEIGHT_FIRST")
    for name, value in zip(names, CPUS[request.param], strict=True):
        monkeypatch.setattr(module, name, value)
    return request.param


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [7, 300])
def test_products_are_those_of_the_layer(shape, width, bias, cpu) -> None:
    model, x = nn.Sequential(nn.Linear(32, width, bias=bias)), values(*shape)
    plain = model(x)
    with fast_steps(model):
        assert "forward" in model[0].__dict__
        fast = model(x)
    assert fast.shape == plain.shape and fast.is_contiguous()
    assert torch.allclose(fast, plain, atol=1e-6)
    assert "forward" not in model[0].__dict__


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 9])
def test_neither_factor_needs_to_lie_in_order(rows, cpu) -> None:
    x, weight = values(32, rows).T, values(32, 50).T[::2]
    for vocabulary in (False, True):
        product = linear(x, weight, None, vocabulary=vocabulary)
        assert torch.allclose(product, x @ weight.T, atol=1e-5)


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
def test_what_is_not_finite_stays_so(cpu) -> None:
    x = values(9, 8)
    x[4, 3] = float("nan")
    out = linear(x, values(5, 8), None, vocabulary=True)
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
    product = module._product
    monkeypatch.setattr(module, "_product", lambda *a: used.append(a) or product(*a))
    with fast_steps(model):
        model(values(rows, 8))
    assert len(used) == (rows < 100)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_steps_go_through_it_while_a_model_is_steered(mode, monkeypatch) -> None:
    model, used = tiny(), []
    product = module._product
    monkeypatch.setattr(module, "_product", lambda *a: used.append(a) or product(*a))
    with steer(model, SOFT, 1.0, mode=mode):
        generate(model, n_new=2)
    assert used
    assert not any("forward" in m.__dict__ for m in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 3, 8, 9, 16, 100, 128, 129])
@pytest.mark.parametrize("width", [30, 200])
def test_any_number_of_rows(n, width, cpu) -> None:
    model, x = nn.Sequential(nn.Linear(16, width)), values(n, 2, 16)[:, 1:]
    plain = model(x)
    with fast_steps(model):
        assert torch.allclose(model(x), plain, atol=1e-5)
        assert model(x).shape == (n, 1, width)
