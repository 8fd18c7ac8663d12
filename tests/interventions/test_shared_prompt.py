"""Rows that share a prompt: each way of attending to it gives what full passes give."""

from __future__ import annotations

import pytest
import torch
from support.calls import SDPA, attention_call
from support.models import SHAPE, random_encoded, shared
from support.steered import (
    PROFILE_MASK,
    PROMPTS,
    SOFT,
    each_way,
    expected,
    generate,
)
from torch import Tensor
from transformers import DynamicCache

from prefheads.interventions import shared_prompt
from prefheads.interventions.intercept import intercept
from prefheads.interventions.shared_prompt import (
    RecordedPrompt,
    attend_shared,
    attention_and_lse,
)
from prefheads.scoring.scorer import Scorer
from prefheads.steering.context import steer

N = 5  # tokens of the prompt
PLAIN = {"mode": "contrast", "target": "head", "scope": "response"}


def attend(mask: torch.Tensor | None, dtype=torch.float32, rows=5, past=7):
    """Outputs of rows of a shared prompt: by sdpa itself, and by a function that is not known."""
    heads, groups, n, d = 6, 2, 4, 8
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    query, key, value = draw(rows, heads, n, d), draw(rows, groups, n, d), draw(rows, groups, n, d)
    prompt = draw(1, groups, past, d), draw(1, groups, past, d)

    def run(function):
        call = attention_call(query, key, value, mask, function=function, scaling=0.3)
        return attend_shared(call, prompt, False, lambda make: make())[0]

    return run(SDPA), run(lambda *args, **kwargs: SDPA(*args, **kwargs))


@pytest.fixture
def folds(monkeypatch) -> list[int]:
    """One entry for each time that rows go through attention as one, under a mask."""
    seen, fold = [], shared_prompt._fold_mask
    monkeypatch.setattr(shared_prompt, "_fold_mask", lambda *a: seen.append(1) or fold(*a))
    return seen


def causal(n: int, past: int) -> torch.Tensor:
    return torch.ones(n, past + n, dtype=torch.bool).tril(past)[None, None]


def windowed(n: int, past: int) -> torch.Tensor:
    return causal(n, past) & torch.ones(n, past + n, dtype=torch.bool).triu(past - 3)


def biased(n: int, past: int) -> torch.Tensor:
    low = torch.finfo(torch.float32).min
    bias = torch.randn(5, 6, n, past + n, generator=torch.Generator().manual_seed(1))
    bias[2, 3, :, :past] = low  # this row's head does not see the prompt
    return bias.masked_fill(~causal(n, past), low)


@pytest.mark.parametrize("mask", [None, causal(4, 7), windowed(4, 7), biased(4, 7)])
@torch.no_grad()
def test_attention_in_two_parts_equals_one_row_under_a_mask(mask, folds) -> None:
    parts, folded = attend(mask)
    assert len(folds) == 1  # sdpa itself goes another way
    assert parts.shape == (5, 4, 6, 8)
    assert (parts - folded).abs().max() < 1e-6


@torch.no_grad()
def test_attention_in_two_parts_is_as_exact_in_bfloat16() -> None:
    exact = attend(causal(4, 7))[1]
    parts, folded = attend(causal(4, 7), dtype=torch.bfloat16)
    assert parts.dtype == torch.bfloat16
    assert (parts.float() - exact).abs().max() < 2 * (folded.float() - exact).abs().max()


def test_attention_in_two_parts_is_not_used_where_gradients_are_needed(folds) -> None:
    attend(causal(4, 7))
    assert len(folds) == 2


@pytest.fixture
def no_kernel(monkeypatch) -> None:
    """A torch that lacks the private operator."""
    monkeypatch.setattr(shared_prompt, "LSE_KERNEL", "_no_such_operator")


@each_way
def test_plain_attention_is_that_of_the_kernel(how, no_kernel, monkeypatch) -> None:
    """Also on a GPU, whose kernels do not return the LSE."""
    model, computed, compute = shared("llama"), [], attention_and_lse
    monkeypatch.setattr(
        shared_prompt, "attention_and_lse", lambda *a: computed.append(1) or compute(*a)
    )
    with steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
        new = generate(model)
    assert new == [expected(model, row, SOFT, 1.5, **how) for row in range(3)]
    assert bool(computed) == (how["mode"] == "contrast" and how["scope"] == "response")


@pytest.mark.parametrize("target", ["head", "profile", "query"])
def test_scores_without_the_kernel_are_those_with_it(target, monkeypatch, folds) -> None:
    model, encoded = shared("llama"), random_encoded()
    gains, found = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)), []
    for kernel in (shared_prompt.LSE_KERNEL, "_no_such_operator"):
        monkeypatch.setattr(shared_prompt, "LSE_KERNEL", kernel)
        with intercept(model):
            found.append(
                torch.cat(
                    [x.reshape(-1) for x in Scorer(model, encoded, "response").nll(gains, target)]
                )
            )
        assert bool(folds) == (kernel == "_no_such_operator")
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_attention_that_is_not_plain_gets_both_parts_joined(monkeypatch) -> None:
    model = shared("llama")
    wanted = [expected(model, row, SOFT, 1.5, **PLAIN) for row in range(3)]
    monkeypatch.setattr(shared_prompt, "_is_plain", lambda *_: False)
    with steer(model, SOFT, 1.5, **PLAIN):
        assert generate(model) == wanted


@torch.no_grad()
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("n_query", [1, 3])
@pytest.mark.parametrize("padded", [True, False])
def test_rows_of_several_prompts_see_their_own(n_query, padded, kernel, monkeypatch) -> None:
    """Row r goes on from prompt r modulo their number, under a mask of its own."""
    generator = torch.Generator().manual_seed(0)
    prompts, rows, heads, groups, d, n_own = 3, 6, 4, 2, 8, 5

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    query = draw(rows, heads, n_query, d)
    key, value = draw(rows, groups, n_own, d), draw(rows, groups, n_own, d)
    prompt = draw(prompts, groups, N, d), draw(prompts, groups, N, d)
    mask = torch.ones(n_query, N + n_own, dtype=torch.bool).tril(N + n_own - n_query)
    mask = mask.expand(rows, 1, -1, -1).clone()
    if padded:
        mask[1, ..., :2] = mask[4, ..., :2] = False
        mask[2, ..., :N] = mask[5, ..., :N] = False  # nothing of the prompt
    keys, values = (
        torch.cat([torch.cat([p, p]), own], 2) for p, own in zip(prompt, (key, value), strict=True)
    )
    wanted, _ = attention_call(query, keys, values, mask, scaling=0.3).run()
    if not kernel:
        monkeypatch.setattr(shared_prompt, "LSE_KERNEL", "_no_such_operator")
    call = attention_call(query, key, value, mask, scaling=0.3)
    found, _ = attend_shared(call, prompt, True, lambda make: make())
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-5


def test_minus_infinity_in_a_mask_is_as_the_lowest_number() -> None:
    """Masks that others write may hold it, also over a whole prompt."""
    model = shared("llama")
    ids = torch.stack([PROMPTS[0]] * 2)
    low, logits = torch.finfo(torch.float32).min, []
    for hidden in (low, float("-inf")):
        cache = DynamicCache()
        with torch.no_grad(), steer(model, SOFT, 1.5):
            model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
            mask = torch.zeros(2, 1, 1, ids.shape[1] + 1)
            mask[1, ..., :-1] = hidden
            out = model(
                input_ids=ids[:, :1],
                past_key_values=cache,
                attention_mask=mask,
                position_ids=torch.tensor([[17], [17]]),
            )
        logits.append(out.logits)
    assert torch.isfinite(logits[1]).all()
    assert torch.allclose(*logits, atol=1e-5)


def test_products_do_not_leave_float16() -> None:
    query = torch.full((1, 2, 1, 64), 40.0).half()
    keys = torch.full((1, 2, 5, 64), 40.0).half()
    values = torch.randn(1, 2, 5, 64).half()
    out, _ = attention_and_lse(query, (keys, values), None, 0.125)
    assert torch.isfinite(out).all()


# -- a recorded prompt --


def returns_query(module, query, *rest):
    return query, None


def test_layers_with_masks_of_their_own() -> None:
    """Each is freed before the next is made, in the same place."""
    prompt, seen = RecordedPrompt(2), []
    for layer in range(8):
        mask = torch.ones(1, 1, 4, 6, dtype=torch.bool)
        mask[..., : layer % 3] = False  # keys that nobody sees
        query, keys = torch.zeros(1, 2, 4, 8), torch.randn(1, 2, 6, 8)
        prompt.n_past = 2
        prompt.attend(attention_call(query, keys, keys, mask, layer, returns_query))
        seen.append((keys, mask.clone()))
        del mask
    for layer, (keys, mask) in enumerate(seen):
        call = attention_call(keys, keys, keys, layer=layer)
        assert torch.equal(prompt.prompt_kv(call)[0], keys[:, :, layer % 3 : 4])
        assert torch.equal(prompt.mask(call), mask[..., 2:, layer % 3 :])


def test_a_window_that_reaches_no_prompt() -> None:
    prompt, query, keys = RecordedPrompt(2), torch.zeros(1, 2, 4, 8), torch.randn(1, 2, 4, 8)
    mask = torch.eye(4, dtype=torch.bool)[None, None]  # each sees itself
    call = attention_call(query, keys, keys, mask, function=returns_query)
    prompt.attend(call)
    assert prompt.prompt_kv(call)[0].shape[2] == 0
    assert torch.equal(prompt.mask(call), torch.eye(2, dtype=torch.bool)[None, None])
