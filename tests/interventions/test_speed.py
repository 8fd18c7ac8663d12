"""What makes passes fast: each way round work is used, and gives what the plain way gives."""

from __future__ import annotations

import pytest
import torch
from support.models import random_encoded, tiny
from torch import nn
from transformers import AttentionInterface

import prefheads.interventions.shared_prompt
from prefheads.interventions.forward import skipped
from prefheads.interventions.intercept import head_layout
from prefheads.interventions.shared_prompt import attend_shared

# -- rows of a shared prompt --------------------------------------------------------------------


def attend(mask: torch.Tensor | None, dtype=torch.float32, rows=5, past=7):
    """Outputs of rows of a shared prompt: by sdpa itself, and by a function that is not known."""
    heads, groups, n, d = 6, 2, 4, 8
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    query, key, value = draw(rows, heads, n, d), draw(rows, groups, n, d), draw(rows, groups, n, d)
    prompt = draw(1, groups, past, d), draw(1, groups, past, d)
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = heads // groups, True
    sdpa = AttentionInterface()["sdpa"]

    def run(function):
        once, options = (lambda make: make()), {"scaling": 0.3}
        return attend_shared(
            function, module, query, key, value, mask, prompt, False, once, options
        )[0]

    return run(sdpa), run(lambda *args, **kwargs: sdpa(*args, **kwargs))


@pytest.fixture
def folds(monkeypatch) -> list[int]:
    """One entry for each time that rows go through attention as one, under a mask."""
    seen, fold = [], prefheads.interventions.shared_prompt._fold_mask
    monkeypatch.setattr(
        prefheads.interventions.shared_prompt, "_fold_mask", lambda *a: seen.append(1) or fold(*a)
    )
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


@torch.no_grad()
def test_skipped_layers_pass_on_what_enters_them() -> None:
    model, ids = tiny(), random_encoded().prompt_ids[None]
    layout = head_layout(model)
    ran = []
    hooks = [x.mlp.register_forward_hook(lambda m, *_: ran.append(m)) for x in layout.layers]
    with skipped(layout, 3):
        out = model(ids, output_hidden_states=False).logits
    assert not ran
    hidden = model.model.norm(model.model.embed_tokens(ids))
    assert torch.allclose(out, model.lm_head(hidden), atol=1e-6)
    for hook in hooks:
        hook.remove()
    assert not any("forward" in layer.__dict__ for layer in layout.layers)
