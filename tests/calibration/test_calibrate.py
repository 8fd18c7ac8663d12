"""Choosing how to steer, and validating it, on tiny models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.models import shared, tiny
from support.reference import naive_nll
from transformers import PreTrainedModel

from prefheads.calibration.calibrate import (
    TEMPERATURES,
    Calibration,
    calibrate,
    choose,
    score_settings,
    sweep,
)
from prefheads.data.encoding import encode
from prefheads.data.example import Example
from prefheads.errors import DataError, ModelError, SteeringError
from prefheads.interventions.intercept import intercept
from prefheads.scoring.scorer import Scorer, response_nll, token_nll
from prefheads.steering.combine import combine
from prefheads.steering.context import steer
from prefheads.steering.setting import PLAIN, Setting

SHAPE = (3, 4)
WEIGHTS = torch.zeros(SHAPE)
WEIGHTS[1, 2] = WEIGHTS[2, 0] = 1.0
SOFT = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
SETTINGS = (
    PLAIN,
    Setting("hard", "contrast", "head", 0.5, 1.0),
    Setting("hard", "contrast", "head", 2.0, 0.3),
    Setting("soft", "contrast", "profile", 1.0, 1.0),
    Setting("soft", "amplify", "head", 0.4),
    Setting("hard", "amplify", "profile", 3.0),
)
MAPS = {"hard": WEIGHTS, "soft": SOFT}


def people(n: int = 4) -> list[Example]:
    words = ["tea and rain", "red kites", "old maps", "salt bread", "deep snow", "brass bells"]
    return [
        Example(f"{i}-{j}", f"user {i}", ({"text": words[i]},), f"about {j}", words[i][::-1])
        for i in range(n)
        for j in range(2)
    ]


def test_scores_equal_steering_for_every_setting(characters):
    model, example = shared(), people()[0]
    encoded = encode(characters, example)
    with intercept(model):
        nll, kl = score_settings(Scorer(model, encoded, "response"), MAPS, SETTINGS)
    for i, s in enumerate(SETTINGS):
        with steer(
            model,
            MAPS.get(s.heads, WEIGHTS),
            s.gamma,
            mode=s.mode,
            target=s.target,
            suppression=s.suppression,
        ):
            expected = response_nll(model, characters, [example])
        assert nll[i, 0] == pytest.approx(expected.item(), abs=1e-5), s
    assert kl[0] == 0 and (kl[1:] > 0).all()


def test_amplification_and_temperature_equal_a_naive_pass(characters):
    model = shared()
    encoded = encode(characters, people()[0])
    with intercept(model):
        scorer = Scorer(model, encoded, "response")
        nll, _ = score_settings(scorer, MAPS, (*SETTINGS[4:5], PLAIN), (1.0, 2.0))
        ((_, logits),) = scorer.logits(torch.ones(1, *SHAPE), "head")
    assert nll[0, 0] == pytest.approx(naive_nll(model, encoded, 1 + 0.4 * SOFT).item(), abs=1e-5)
    warm = token_nll(logits[0] / 2, encoded.response_ids).mean()
    assert nll[1, 1] == pytest.approx(warm.item(), abs=1e-6)


def test_contrast_is_equation_8_and_its_divergence_is_kl(characters):
    model = shared()
    encoded = encode(characters, people()[0])
    with intercept(model):
        scorer = Scorer(model, encoded, "response")
        ((_, logits),) = scorer.logits((1 - WEIGHTS)[None], "head")
        nll, kl = score_settings(scorer, MAPS, [SETTINGS[1]])
    steered = 1.5 * logits[0] - 0.5 * logits[1]
    assert torch.allclose(steered, combine(logits[0], logits[1], 0.5), atol=1e-5)
    expected = token_nll(steered, encoded.response_ids).mean().item()
    assert nll[0, 0] == pytest.approx(expected, abs=1e-5)
    p, q = logits[0].softmax(-1), steered.softmax(-1)
    direct = (p * (p / q).log()).sum(-1).mean()
    assert kl[0] == pytest.approx(direct.item(), abs=1e-5)


def gains(*per_setting: float, noise: float = 0.01, n: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array(per_setting) + rng.normal(0, noise, (n, len(per_setting))) * (
        np.array(per_setting) != 0
    )


def test_doing_nothing_wins_where_nothing_helps():
    assert choose(gains(0, -0.2, -0.1, noise=0.05), np.array([0, 1.0, 1.0])) == 0
    assert choose(np.zeros((10, 3)), np.array([0, 1.0, 1.0])) == 0


def test_a_gain_within_the_noise_is_not_worth_it():
    assert choose(gains(0, 0.01, noise=0.5), np.array([0, 1.0])) == 0


def test_the_best_wins_if_it_can_be_told_apart_and_the_weaker_if_not():
    far = gains(0, 0.1, 0.3)
    assert choose(far, np.array([0, 0.1, 0.9])) == 2
    rng = np.random.default_rng(1)
    near = np.array([0, 0.300, 0.301]) + rng.normal(0, 0.1, (40, 3)) * [0, 1, 1]
    assert choose(near, np.array([0, 0.1, 0.9])) == 1
    assert choose(near, np.array([0, 0.9, 0.1])) == 2


def test_specificity_is_raised_only_where_likelihood_is_not_harmed():
    gain, rise = gains(0, 0.1, -0.1), gains(0, 0.05, 0.4)
    assert choose(gain, np.array([0, 1.0, 1.0]), rise) == 1
    assert choose(gain, np.array([0, 1.0, 1.0])) == 1
    assert choose(gain, np.array([0, 1.0, 1.0]), gains(0, -0.1, -0.1)) == 0


@pytest.mark.parametrize("objective", ["likelihood", "specificity"])
def test_calibration_reports_the_whole_curve_and_repeats(characters, tmp_path, objective):
    model, examples = shared(), people()
    options = {"objective": objective, "progress": False}
    first = calibrate(model, characters, examples, MAPS, SETTINGS, **options)
    path = tmp_path / "calibration.jsonl"
    again = calibrate(model, characters, examples, MAPS, SETTINGS, checkpoint=path, **options)
    resumed = calibrate(model, characters, examples, MAPS, SETTINGS, checkpoint=path, **options)
    assert first == again == resumed
    assert first.settings == SETTINGS and first.change[0] == 0
    assert (first.n_examples, first.n_users) == (8, 4)
    assert first.plain_temperature in TEMPERATURES and first.temperature in TEMPERATURES
    nll, _ = sweep(model, characters, [examples], MAPS, SETTINGS, progress=False)
    own = nll[:, 0, :, 0]
    change = (own - own[:, :1]).mean(0)  # as many samples of each user, so means agree
    assert np.allclose(first.change, change, atol=1e-6)
    assert first.plain_nll == pytest.approx(own[:, 0].mean())
    assert Calibration.from_dict(first.to_dict()) == first
    assert (first.specificity is None) == (objective == "likelihood")


def test_maps_may_differ_between_samples(characters):
    model, examples = shared(), people()
    maps = torch.stack([WEIGHTS if i % 2 else SOFT for i in range(8)])
    setting = Setting("own", "amplify", "head", 0.5)
    nll, _ = sweep(model, characters, [examples], {"own": maps}, [setting], progress=False)
    for i in (0, 1):
        with steer(model, maps[i], 0.5, mode="amplify"):
            expected = response_nll(model, characters, [examples[i]]).item()
        assert nll[i, 0, 0, 0] == pytest.approx(expected, abs=1e-5)


def test_calibration_needs_samples_of_two_users(characters):
    with pytest.raises(DataError, match="no samples"):
        calibrate(shared(), characters, [], MAPS)
    with pytest.raises(DataError, match="two users"):
        calibrate(shared(), characters, people()[:2], MAPS)


def test_few_users_need_more_than_two_standard_errors():
    one = np.array([0.9, 1.0, 1.45])[:, None] * np.array([0.0, 1.0])
    assert choose(one, np.array([0, 1.0])) == 1  # far above
    wide = np.array([0.2, 1.0, 1.8])[:, None] * np.array([0.0, 1.0])  # 2.2 errors, of 4.3 needed
    assert choose(wide, np.array([0, 1.0])) == 0


def test_a_setting_without_its_map_is_refused_before_the_work(characters):
    with pytest.raises(SteeringError, match="no map for head set 'mine'"):
        calibrate(shared(), characters, people(), MAPS, [Setting("mine", gamma=1.0)])


def test_logits_that_are_not_finite_are_told_with_the_example(characters):
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="'0-0' are not finite"):
        calibrate(model, characters, people(), MAPS, SETTINGS, progress=False)


def ruling_out(*tokens: int) -> PreTrainedModel:
    """A model whose logits of these tokens are minus infinity."""
    model = tiny()
    head = torch.nn.Linear(*reversed(model.lm_head.weight.shape))
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()[list(tokens)] = -math.inf
    model.lm_head = head
    return model


def test_a_token_that_the_model_rules_out_adds_nothing_to_the_divergence(characters):
    model = ruling_out(0, 1)
    encoded = encode(characters, people()[0])
    with intercept(model):
        scorer = Scorer(model, encoded, "response")
        _, kl = score_settings(scorer, MAPS, SETTINGS)
        ((_, logits),) = scorer.logits(SETTINGS[4].gains(SOFT)[None], "head")
    p, q = logits[:, :, 2:].softmax(-1)  # of what is left
    assert kl[4] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), abs=1e-5)
    assert kl[0] == 0 and kl[1:].isfinite().all() and (kl[1:] > 0).all()
    found = calibrate(model, characters, people(), MAPS, SETTINGS, progress=False)
    assert np.isfinite([*found.change, *found.stderr, *found.divergence]).all()


def test_a_response_that_the_model_rules_out_is_told_with_the_example(characters):
    asked = people()
    token = encode(characters, asked[2]).response_ids[0].item()
    with pytest.raises(DataError, match="'0-0': the model rules out a token of the response"):
        calibrate(ruling_out(token), characters, asked, MAPS, SETTINGS, progress=False)


def test_a_setting_that_rules_out_what_was_written_is_not_chosen(characters, monkeypatch):
    def contrasted(self, personalised, generic):
        steered = personalised.clone()
        steered[..., :90] = -math.inf
        return steered

    monkeypatch.setattr(Setting, "contrasted", contrasted)
    for objective in ("likelihood", "specificity"):
        found = calibrate(
            shared(), characters, people(), MAPS, SETTINGS, objective=objective, progress=False
        )
        assert found.setting.mode == "amplify"
        assert found.change[1] == found.divergence[1] == math.inf
        assert np.isnan(found.stderr[1]) and np.isfinite(found.stderr[4])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_chosen(bad):
    far = np.array([0, 0.1, 0.9])
    one = gains(0, 0.1, 0.3)
    one[3, 2] = bad
    assert choose(one, far) == 1
    assert choose(gains(0, 0.1, 0.3), far, one) == 1
    assert choose(gains(0, 0.3, 0.3, noise=0), np.array([0, 0.1, bad])) == 1
    assert choose(gains(0, 0.3), np.array([0, bad])) == 0
