"""NLL of tokens, from logits and from what the logits are made of."""

from __future__ import annotations

import pytest
import torch
from support.models import ARCHITECTURES, VOCABULARY, shared, tiny
from torch import nn
from transformers import LlamaForCausalLM

from prefheads.interventions.projection import vocabulary_projection
from prefheads.scoring import scorer
from prefheads.scoring.scorer import projected_nll, token_nll

DONE_TO_LOGITS = ("gemma2", "granite")  # a cap, a scale


def test_token_nll_is_cross_entropy() -> None:
    logits, targets = torch.randn(2, 3, 7), torch.tensor([1, 6, 0])
    expected = -logits.double().log_softmax(-1)[:, torch.arange(3), targets]
    assert (token_nll(logits, targets) - expected).abs().max() < 1e-5
    assert token_nll(logits.bfloat16(), targets).dtype == torch.float32


def test_normalisers_in_few_rows_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(scorer, "AT_ONCE", 2**13)
    logits = torch.randn(3, 5, 2**12, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(5)
    wanted = -logits.log_softmax(-1)[:, range(5), targets]
    assert (token_nll(logits, targets) - wanted).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("vocabulary", [7, 256, 1000])
def test_projected_nll_is_that_of_the_logits(vocabulary, bias, dtype, monkeypatch) -> None:
    """To more digits than by the logits themselves, where these have few."""
    monkeypatch.setattr(scorer, "AT_ONCE", 1)
    torch.manual_seed(0)
    projection = nn.Linear(16, vocabulary, bias).to(dtype)
    base = 20 * torch.randn(1, 3, 16, dtype=dtype)
    hidden = base + torch.randn(4, 3, 16, dtype=dtype)
    targets = torch.tensor([0, vocabulary - 1, vocabulary // 2])
    # Logits that are exact, as far as they can be written in this type.
    known = projection.double()(base.double()).to(dtype)
    wanted = token_nll(projection(hidden.double()), targets)
    fine = wanted + token_nll(known, targets) - token_nll(projection(base.double()), targets)
    projection.to(dtype)
    found = projected_nll(hidden, projection, targets, (base, known))
    assert found.dtype == torch.float32
    assert (found - fine).abs().max() < (1e-5 if dtype == torch.float32 else 0.05)


@torch.no_grad()
def test_logits_that_are_not_finite_are_not_hidden() -> None:
    projection, hidden = nn.Linear(16, 9), torch.randn(2, 3, 16)
    projection.weight[5, 5] = float("nan")
    known = hidden[:1], projection(hidden[:1])
    assert projected_nll(hidden, projection, torch.arange(3), known).isnan().all()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_projections_that_make_the_logits(kind) -> None:
    model = shared(kind)
    found = vocabulary_projection(model)
    assert found is (None if kind in DONE_TO_LOGITS else model.get_output_embeddings())


def test_projections_that_are_more_than_their_weights() -> None:
    model = tiny("llama")
    handle = model.lm_head.register_forward_hook(lambda module, args, out: out / 2)
    assert vocabulary_projection(model) is None
    handle.remove()
    assert vocabulary_projection(model) is model.lm_head
    model.lm_head.forward = lambda x: x
    assert vocabulary_projection(model) is None

    class Adapted(nn.Linear):
        pass

    model.lm_head = Adapted(32, VOCABULARY)
    assert vocabulary_projection(model) is None
    model.lm_head = nn.Linear(32, VOCABULARY)
    assert vocabulary_projection(model) is model.lm_head


def test_what_is_done_to_logits_may_depend_on_their_type() -> None:
    """A model that makes float32 of its logits does nothing to those that are."""

    class Upcast(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.float()
            return out

    model = Upcast(tiny("llama").config).eval()
    assert vocabulary_projection(model) is model.lm_head
    assert vocabulary_projection(model.bfloat16()) is None


def test_logits_that_are_written_into_are_not_those_of_the_projection() -> None:
    class Masked(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits[..., 0] = -100.0
            return out

    assert vocabulary_projection(Masked(tiny("llama").config).eval()) is None
