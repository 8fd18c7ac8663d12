"""The estimates of screening, against finite differences by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from support.estimates import estimate
from support.models import ARCHITECTURES, SHAPE, random_encoded, tiny
from support.reference import attentions, gained, naive_nll, output_projection

from prefheads.discovery import screen
from prefheads.interventions.intercept import head_layout

HEADS = [(0, 2), (1, 0), (1, 3), (2, 2)]


@contextmanager
def projected(model, layer: int, change) -> Iterator[None]:
    """Passes the input (1, n, heads, d) of one output projection through a function."""

    def hook(_, args):
        x = args[0]
        return (change(x.reshape(*x.shape[:2], SHAPE[1], -1)).reshape(x.shape),)

    handle = output_projection(attentions(model)[layer]).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def log_p(model, encoded) -> torch.Tensor:
    """Log-probabilities of all tokens where the response is predicted, (T, vocab)."""
    ids = torch.cat([encoded.prompt_ids, encoded.response_ids])
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits[len(encoded.prompt_ids) - 1 : -1].double().log_softmax(-1)


@contextmanager
def put_out(model, layer: int, change) -> Iterator[None]:
    """Passes the output (1, n, width) of one decoder layer through a function."""

    def hook(_, args, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = head_layout(model).layers[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def dialled(model, encoded, target, scope, layer, head, line=projected):
    """Log-probabilities as a function of the dial of one head: 0 ablated, 1 unchanged; on the line
    of its own output, or of its layer's."""
    n = len(encoded.prompt_ids)
    start = n - 1 if scope == "response" else 0
    columns = torch.zeros(1, n + len(encoded.response_ids), dtype=torch.bool)
    columns[0, :n] = encoded.profile_mask
    gains = torch.ones(SHAPE)
    gains[layer, head] = 0
    outputs = []

    def keep(x):
        outputs.append(x.clone())
        return x

    with line(model, layer, keep):
        log_p(model, encoded)
        with gained(model, gains, target, start, columns):
            log_p(model, encoded)
    own, cut = outputs
    if target == "head" and line is projected:  # that hook acts on what this one has kept
        cut = own.clone()
        cut[:, start:, head] = 0

    def at(dial: float) -> torch.Tensor:
        with line(model, layer, lambda _: cut + dial * (own - cut)):
            return log_p(model, encoded)

    return at


def precise(kind):
    """A model in which finite differences are accurate."""
    model = tiny(kind)
    if kind == "mixtral":
        model.set_experts_implementation("eager")
    return model.double()


@pytest.mark.parametrize("target", ["head", "profile", "query"])
@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_estimates_equal_finite_differences(kind, scope, target, monkeypatch) -> None:
    """- dNLL/dt + mean over y of (d log p(y)/dt)^2 / 2T in a head's dial t, for given y; on the
    line where it is higher."""
    model, encoded = precise(kind), random_encoded()
    drawn = torch.stack([random_encoded(seed=s).response_ids for s in range(screen.DRAWS)])
    monkeypatch.setattr(screen, "_draw", lambda logits, key: drawn)
    monkeypatch.setattr(screen, "LOWEST", 2)
    found, nll = estimate(model, encoded, target, scope)
    assert (nll - naive_nll(model, encoded, torch.ones(SHAPE))).abs() < 1e-5
    n, wanted = len(encoded.response_ids), []
    for layer, head in HEADS:
        along = []
        for line in (projected, put_out) if layer < screen.LOWEST else (projected,):
            at = dialled(model, encoded, target, scope, layer, head, line)
            near, far = ((at(1 + h) - at(1 - h)) / (2 * h) for h in (0.0025, 0.005))
            slope = (4 * near - far) / 3  # no smaller step: norms work in float32
            gold, *others = (
                slope[torch.arange(n), y].sum() for y in (encoded.response_ids, *drawn)
            )
            along.append(gold / n + torch.stack(others).square().mean() / (2 * n))
        wanted.append(max(along))
    by_hand = torch.stack(wanted)
    difference = by_hand - torch.stack([found[head] for head in HEADS])
    assert (difference.abs() / (1 + by_hand.abs())).max() < 5e-4
    assert by_hand.abs().max() > 0.03


@pytest.mark.parametrize("target", ["head", "profile", "query"])
def test_the_line_of_the_dial_ends_at_ablation(target) -> None:
    """What the finite differences above run along is what ablation measures."""
    model, encoded = precise("llama"), random_encoded()
    for (layer, head), line in product(HEADS, (projected, put_out)):
        gains = torch.ones(SHAPE)
        gains[layer, head] = 0
        at = dialled(model, encoded, target, "response", layer, head, line)
        for dial, gain in ((0, gains), (1, torch.ones(SHAPE))):
            nll = -at(dial)[torch.arange(5), encoded.response_ids].mean()
            assert (nll - naive_nll(model, encoded, gain, target)).abs() < 1e-5


def test_responses_are_drawn_from_the_model_and_fixed_by_the_key() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.0, 0.0, 1.0, 0.0]])
    logits = p.log().repeat(10_000, 1)
    drawn = screen._draw(logits, "0:a")
    assert drawn.shape == (screen.DRAWS, 20_000)
    for y in drawn:
        share = torch.bincount(y[::2], minlength=4) / 10_000
        assert (share - p[0]).abs().max() < 0.02 and share[3] == 0
        assert (y[1::2] == 2).all()
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(screen._draw(logits, "0:a"), drawn)
    assert not torch.equal(screen._draw(logits, "0:b"), drawn)
    assert not torch.equal(screen._draw(logits, "1:a"), drawn)


@pytest.mark.parametrize("scope", ["response", "all"])
def test_the_graph_of_one_layer_at_a_time_is_in_memory(scope) -> None:
    """What a model of four times the layers keeps for the backward pass is not more."""

    def most_kept(n_layers: int) -> int:
        alive, most = 0, 0

        class Kept:
            def __init__(self, tensor):
                nonlocal alive, most
                self.tensor = tensor.detach()
                alive += 1
                most = max(most, alive)

            def __del__(self):
                nonlocal alive
                alive -= 1

        model = tiny(num_hidden_layers=n_layers)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            estimate(model, random_encoded(), scope=scope)
        return most

    assert most_kept(8) <= most_kept(2) + 2
