"""A steered generation, and scores of heads, against full passes."""

from __future__ import annotations

import torch
from support.matrix import gap
from support.models import SHAPE
from support.reference import naive_nll, steered_logits
from support.steered import EXAMPLES, PROFILES, PROMPTS, SOFT, step_logits

from prefheads import steer
from prefheads.data.encoding import encode

EXACT = 5e-5  # of the largest logit
WAYS = [(mode, target) for mode in ("contrast", "amplify") for target in ("head", "profile")]


def assert_right(model, weights=SOFT, gamma=1.5, row=0, caller=None, **how) -> None:
    """A steered generation has the logits of full passes in each step."""
    prompt, profile = PROMPTS[row], PROFILES[row]
    with steer(caller or model, weights, gamma, profile_mask=profile, **how):
        (new,), (logits,) = step_logits(caller or model, prompt)
    ids, n = torch.cat([prompt, torch.tensor(new[:-1])]), len(prompt)
    wanted = steered_logits(model, ids, n, weights, gamma, profile=profile, **how)
    assert gap(logits, wanted[n - 1 :]) < EXACT


def ablated(model, tokenizer) -> torch.Tensor:
    """PCS of all heads on the first example, by full passes."""
    encoded = encode(tokenizer, EXAMPLES[0])
    one_less = 1 - torch.eye(SHAPE[0] * SHAPE[1]).reshape(-1, *SHAPE)
    plain = naive_nll(model, encoded, torch.ones(SHAPE))
    return torch.stack([naive_nll(model, encoded, g) - plain for g in one_less]).reshape(SHAPE)
