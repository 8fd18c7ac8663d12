"""Validation of a setting, with its controls."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.models import shared

from prefheads.calibration.validate import N_RANDOM, Validation, validate
from prefheads.data.example import Example, other_profiles, without_profile
from prefheads.heads.weights import HeadWeights
from prefheads.scoring.scorer import response_nll
from prefheads.steering.context import steer
from prefheads.steering.setting import PLAIN, Setting

SHAPE = (3, 4)
WEIGHTS = torch.zeros(SHAPE)
WEIGHTS[1, 2] = WEIGHTS[2, 0] = 1.0


def people(n: int = 4) -> list[Example]:
    words = ["tea and rain", "red kites", "old maps", "salt bread", "deep snow", "brass bells"]
    return [
        Example(f"{i}-{j}", f"user {i}", ({"text": words[i]},), f"about {j}", words[i][::-1])
        for i in range(n)
        for j in range(2)
    ]


def test_validation_holds_every_control(characters, tmp_path):
    model, examples = shared(), people()
    heads = [HeadWeights(WEIGHTS)] * len(examples)
    setting = Setting("top", "amplify", "head", 0.5)
    result = validate(
        model,
        characters,
        examples,
        heads,
        setting,
        others={"twice": (heads, replace(setting, gamma=1.0))},
        plain_temperature=1.5,
        checkpoint=tmp_path / "validation.jsonl",
        progress=False,
    )
    assert result.methods == (
        "plain",
        "plain, temperature 1.5",
        "steered",
        "steered, temperature 1",
        f"random heads (mean of {N_RANDOM})",
        f"random masks (mean of {N_RANDOM})",
        "twice",
    )
    contexts = [examples, other_profiles(examples, 0), [without_profile(e) for e in examples]]
    for c, context in enumerate(contexts):
        plain = response_nll(model, characters, context).numpy()
        assert np.allclose(result.nll[:, c, 0], plain, atol=1e-5)
        with steer(model, heads[0], 0.5, mode="amplify"):
            steered = response_nll(model, characters, context).numpy()
        assert np.allclose(result.nll[:, c, 2], steered, atol=1e-5)
    random = []
    for i in range(N_RANDOM):
        with steer(model, heads[0].random_like(i), 0.5, mode="amplify"):
            random.append(response_nll(model, characters, examples).numpy())
    assert np.allclose(result.nll[:, 0, 4], np.mean(random, 0), atol=1e-5)
    rows = {row.method: row for row in result.rows()}
    steered = rows["steered"]
    change = result.nll[:, 0, 2] - result.nll[:, 0, 0]
    assert steered.change.mean == pytest.approx(change.mean())
    assert steered.change.low <= steered.change.mean <= steered.change.high
    specific = result.nll[:, 1, 2] - result.nll[:, 0, 2]
    assert steered.specificity.mean == pytest.approx(specific.mean())
    assert steered.own_wins.mean == pytest.approx((specific > 0).mean())
    assert steered.own_wins.low < steered.own_wins.mean < steered.own_wins.high
    assert rows["plain"].change.mean == 0
    assert np.isnan(rows[f"random heads (mean of {N_RANDOM})"].other.mean)
    assert result.difference("steered", "plain").mean == pytest.approx(change.mean())
    restored = Validation.from_dict(result.to_dict())
    assert np.array_equal(restored.nll, result.nll, equal_nan=True)
    assert restored.methods == result.methods


def test_validating_plain_decoding_says_only_that(characters):
    heads = [HeadWeights(WEIGHTS)] * 8
    result = validate(shared(), characters, people(), heads, PLAIN, progress=False)
    assert result.methods == ("plain", "plain, temperature 1")


def test_validation_shows_what_a_method_rules_out():
    nll = np.ones((4, 3, 2))
    nll[0, :, 1] = math.inf
    ids = tuple("abcd")
    plain, steered = Validation(PLAIN, ("plain", "steered"), nll, ids, ids).rows()
    assert plain.change.mean == 0 and str(steered.change) == "+inf"
    assert np.isnan([steered.change.low, steered.specificity.mean]).all()
    assert not steered.change.excludes_zero
