"""Combining two opinions about the next token: the formulas, and what must stay exact."""

from __future__ import annotations

import math

import pytest
import torch

from prefheads.steering.combine import combine, contrast_layers, entropy_strength

INF = float("inf")


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 7, generator=generator), torch.randn(3, 2, 7, generator=generator)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_equation_8(logits, gamma) -> None:
    personalised, generic = logits
    wanted = (1 + gamma) * personalised - gamma * generic
    assert (combine(personalised, generic, gamma) - wanted).abs().max() < 1e-5


def test_a_small_case_by_hand() -> None:
    found = combine(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 3.0]), 0.5)
    assert found.tolist() == [2.5, 0.0]


def test_each_row_has_its_own_strength(logits) -> None:
    personalised, generic = logits
    gamma = torch.tensor([0.0, 1.0, 3.0])[:, None, None]
    found = combine(personalised, generic, gamma)
    for row in range(3):
        wanted = combine(personalised[row], generic[row], float(gamma[row]))
        assert torch.equal(found[row], wanted)


@pytest.mark.parametrize("poison", [float("nan"), INF, -INF, 1e38])
@pytest.mark.parametrize("plausibility", [None, 0.5])
def test_strength_zero_is_exactly_the_personalised(logits, poison, plausibility) -> None:
    personalised, generic = logits
    generic[1] = poison
    gamma = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    found = combine(personalised, generic, gamma, plausibility=plausibility)
    assert torch.equal(found[1], personalised[1])
    assert not torch.equal(found[0], personalised[0])


def test_rows_that_are_not_active_are_exactly_the_personalised(logits) -> None:
    personalised, generic = logits
    active = torch.tensor([True, False, True])[:, None, None]
    found = combine(personalised, generic, 2.0, active=active, plausibility=0.9)
    assert torch.equal(found[1], personalised[1])
    assert torch.equal(found[::2], combine(personalised, generic, 2.0, plausibility=0.9)[::2])


def test_half_precision_is_combined_in_float32(logits) -> None:
    personalised, generic = (x.to(torch.bfloat16) for x in logits)
    found = combine(personalised, generic, 1.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, 2 * personalised.float() - generic.float())


def test_inputs_are_left_alone(logits) -> None:
    before = [x.clone() for x in logits]
    combine(*logits, 1.0, plausibility=0.9)
    assert all(torch.equal(a, b) for a, b in zip(logits, before, strict=True))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_plausibility_keeps_what_is_likely_enough(logits, share) -> None:
    personalised, generic = logits
    found = combine(personalised, generic, 2.0, plausibility=share)
    p = personalised.softmax(-1)
    kept = p >= share * p.amax(-1, keepdim=True) * (1 - 1e-6)
    assert torch.equal(found > -INF, kept)
    assert torch.equal(found[kept], combine(personalised, generic, 2.0)[kept])
    assert kept.any(-1).all()
    assert (kept.sum(-1) == 1).all() == (share == 1.0)


def test_entropy_of_known_distributions() -> None:
    uniform, certain = torch.zeros(5), torch.tensor([0.0, -1e4, -1e4])
    assert entropy_strength(uniform, 2.0).item() == pytest.approx(2 * math.log(5), rel=1e-6)
    assert entropy_strength(certain, 2.0).item() == 0
    half = torch.tensor([1.0, 1.0, -1e4])
    assert entropy_strength(half, 1.0).item() == pytest.approx(math.log(2), rel=1e-6)


def test_tokens_that_are_ruled_out_do_not_count_in_the_entropy() -> None:
    assert entropy_strength(torch.tensor([0.0, 0.0, -INF]), 1.0).item() == pytest.approx(
        math.log(2), rel=1e-6
    )


def test_tokens_that_both_rule_out_stay_ruled_out() -> None:
    found = combine(torch.tensor([1.0, -INF]), torch.tensor([0.0, -INF]), 1.0)
    assert found.tolist() == [2.0, -INF]


def test_entropy_strength_by_row_with_a_cap(logits) -> None:
    personalised, _ = logits
    gamma = torch.tensor([0.0, 1.0, 3.0])[:, None, None]
    found = entropy_strength(personalised, gamma, cap=1.5)
    p = personalised.softmax(-1)
    wanted = (gamma * -(p * p.log()).sum(-1, keepdim=True)).clamp(max=1.5)
    assert found.shape == (3, 2, 1)
    assert (found - wanted).abs().max() < 1e-6
    assert (found == 1.5).any() and (found < 1.5).any()


def test_layers_are_contrasted_where_the_last_one_rules_tokens_out() -> None:
    """The early layer's probability of such a token may round to 0."""
    final = torch.tensor([0.0, 0.0, -INF])
    for unlikely in (-5.0, -200.0, -INF):
        early = torch.tensor([1.0, 0.0, unlikely])
        found = contrast_layers(final, [early])
        wanted = final.log_softmax(-1)[:2] - early.log_softmax(-1)[:2]
        assert torch.allclose(found[:2], wanted) and found[2] == -INF
