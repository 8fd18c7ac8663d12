"""The likelihood of every method, against steered and contrasted full passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.compared import METHODS, decoders

import prefheads as ph
from prefheads.data.encoding import encode
from prefheads.data.example import Example, other_profiles, without_profile
from prefheads.evaluation.likelihood import likelihood
from prefheads.scoring.scorer import token_nll
from prefheads.steering.combine import combine


def test_likelihood_is_that_of_the_steered_model(tiny_model, tweets, tweet_steerer) -> None:
    few = tweets[10:14]
    names = (*METHODS, "plain:temperature=2")
    made = decoders(names, tiny_model, few, tweet_steerer)
    found = likelihood(*tiny_model, few, made, progress=False)
    assert found.nll.shape == (4, 3, len(names)) and found.methods == names
    contexts = [few, other_profiles(few, 0), [without_profile(e) for e in few]]
    for i, decoder in enumerate(made):
        if decoder.method.kind in ("cad", "dola") or decoder.method.options["temperature"] != 1:
            continue
        how = decoder.setting
        for c, examples in enumerate(contexts):
            for n, example in enumerate(examples):
                weights = torch.zeros(3, 4) if decoder.weights is None else decoder.weights[n]
                mask = encode(tiny_model[1], example).profile_mask
                with ph.steer(
                    tiny_model[0],
                    weights,
                    how.gamma,
                    mode=how.mode,
                    target=how.target,
                    suppression=how.suppression,
                    scope=decoder.scope,
                    schedule=how.schedule,
                    profile_mask=mask,
                ):
                    nll = ph.response_nll(*tiny_model, [example])
                assert found.nll[n, c, i] == pytest.approx(float(nll), abs=1e-5)


def test_likelihood_of_baselines(tiny_model, tweets, tweet_steerer) -> None:
    model, tokenizer = tiny_model
    few = tweets[10:13]
    names = ("plain", "cad:gamma=0.7", "dola", "plain:temperature=2")
    found = likelihood(
        *tiny_model, few, decoders(names, tiny_model, few, tweet_steerer), progress=False
    )
    assert np.isnan(found.nll[:, :, 2]).all()

    def logits(example: Example) -> tuple[torch.Tensor, torch.Tensor]:
        e = encode(tokenizer, example)
        ids = torch.cat([e.prompt_ids, e.response_ids])[None]
        with torch.no_grad():
            return model(ids).logits[0, len(e.prompt_ids) - 1 : -1], e.response_ids

    for n, example in enumerate(few):
        own, targets = logits(example)
        bare, _ = logits(without_profile(example))
        expected = token_nll(combine(own, bare, 0.7), targets).mean()
        assert found.nll[n, 0, 1] == pytest.approx(float(expected), abs=1e-5)
        assert found.nll[n, 2, 1] == pytest.approx(float(token_nll(bare, targets).mean()), abs=1e-5)
        warm = token_nll(own / 2, targets).mean()
        assert found.nll[n, 0, 3] == pytest.approx(float(warm), abs=1e-5)
