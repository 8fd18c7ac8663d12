"""Prompts, head maps and ways of steering, and what stock generation makes of them."""

from __future__ import annotations

import pytest
import torch
from support.models import SHAPE, left_padded, random_ids
from support.reference import greedy, next_logits, plain_logits, steered_logits

from prefheads.data.example import Example
from prefheads.heads.weights import HeadWeights
from prefheads.interventions.hooks import STEP
from prefheads.steering.context import active_steering

N_NEW = 6
PROMPTS = [random_ids(n, seed=n) for n in (17, 11, 14)]
PROFILES = [torch.arange(n).ge(n - 9) & torch.arange(n).lt(n - 4) for n in (17, 11, 14)]
BATCH = {
    "input_ids": left_padded(PROMPTS),
    "attention_mask": left_padded([torch.ones_like(p) for p in PROMPTS]),
}
PROFILE_MASK = left_padded(PROFILES, False)
HARD = HeadWeights.from_heads(SHAPE, [(1, 2), (1, 3), (2, 0)]).values
SOFT = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
ZERO = torch.zeros(SHAPE)
HOW = [
    {"mode": mode, "target": target, "scope": scope}
    for mode in ("contrast", "amplify")
    for target in ("head", "profile")
    for scope in ("response", "all")
] + [{"mode": "contrast", "target": "query", "scope": scope} for scope in ("response", "all")]
each_way = pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(how.values()))


def generate(model, prompt=None, n_new=N_NEW, **options):
    """New tokens: of all prompts as a padded batch, or of one alone."""
    inputs = BATCH if prompt is None else {"input_ids": prompt[None]}
    options = {"max_new_tokens": n_new, "do_sample": False} | options
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()


def step_logits(model, prompt=None, n_new=N_NEW, **options):
    """New tokens, and the logits (B, n_new, vocab) that generate saw before its processors."""
    inputs = BATCH if prompt is None else {"input_ids": prompt[None]}
    options = {"max_new_tokens": n_new, "do_sample": False} | options
    out = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    new = out.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return new, torch.stack(out.logits, 1)


def expected(model, row, weights, gamma, n_new=N_NEW, **how):
    assert active_steering(model) is None
    after = next_logits(model, PROMPTS[row], weights, gamma, profile=PROFILES[row], **how)
    return greedy(after, n_new)


def ours(hook) -> bool:
    """transformers leaves hooks of its own where it was once asked for hidden states."""
    return not hook.__module__.startswith("transformers.")


def assert_untouched(model, before: torch.Tensor) -> None:
    assert "forward" not in model.__dict__
    assert model.config._attn_implementation in ("sdpa", "eager")
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not any(map(ours, module._forward_hooks.values()))
        assert "forward" not in module.__dict__
        assert STEP not in module.__dict__
    assert active_steering(model) is None
    assert torch.equal(plain_logits(model, PROMPTS[0]), before)


def assert_steered(model, prompt, new, logits, weights, gamma, **how) -> None:
    """Each step has the logits (n_new, vocab), and the likeliest token, of full passes.

    The model is causal, so one full pass over prompt and new tokens shows all steps at once.
    """
    ids = torch.cat([prompt, torch.tensor(new[:-1])])
    wanted = steered_logits(model, ids, len(prompt), weights, gamma, **how)[len(prompt) - 1 :]
    assert (logits - wanted).abs().max() < 1e-4
    assert new == wanted.argmax(-1).tolist()


EXAMPLES = [
    Example("a", "u", ({"text": "Tea, no sugar!"},), "Say it: ", "Hot & plain."),
    Example("b", "v", ({"text": "LOUD"}, {"text": "wow"}), "Shout. Now: ", "HEY"),
    Example("c", "w", (), "Nothing known: ", "fine, I think so."),
]
