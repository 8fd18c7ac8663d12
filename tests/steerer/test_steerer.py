"""Algorithm 1 from end to end, on a tiny model with the bundled encoder."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.models import shared, tiny
from support.people import people

import prefheads as ph
from prefheads.data.encoding import encode
from prefheads.data.example import Example, spread
from prefheads.errors import ArtifactError, DataError, PrefheadsError, SteeringError
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.setting import Setting
from prefheads.users import cluster_heads, mix, route

SETTINGS = [
    Setting(name, "amplify", "head", 0.3) for name in ("top 4% by head PCS", "top 8% by head PCS")
]


def fit(model=None, tokenizer=None, **options) -> PreferenceSteerer:
    defaults = {"n_clusters": 2, "min_samples": 1, "targets": ("head",), "progress": False}
    defaults |= {"settings": SETTINGS}
    return PreferenceSteerer.fit(model, tokenizer, people(), **defaults | options)


@pytest.fixture(scope="module")
def steerer(characters) -> PreferenceSteerer:
    return fit(shared(), characters)


def test_users_are_split_and_clustered_by_topic(steerer):
    parts = [set(steerer.users[name]) for name in ("discovery", "calibration", "test")]
    assert sum(map(len, parts)) == 12 and not set.intersection(*parts)
    assert parts[0] == set(steerer.clusters.assignment)
    kinds = {user[:4]: cluster for user, cluster in steerer.clusters.assignment.items()}
    assert all(kinds[u[:4]] == c for u, c in steerer.clusters.assignment.items())
    assert set(steerer.scores["head"].user_ids) == parts[0]


def test_cluster_maps_come_from_the_scores_of_their_users_alone(steerer):
    name = steerer.setting.heads or "top 4% by head PCS"
    fraction = 0.04 if "4%" in name else 0.08
    expected = cluster_heads(steerer.scores["head"], steerer.clusters, fraction=fraction)
    assert steerer.maps == expected
    assert steerer.shared == steerer.scores["head"].soft(fraction=fraction)


def test_the_same_seed_gives_the_same_steerer(steerer, characters):
    again = fit(shared(), characters)
    assert again.maps == steerer.maps and again.calibration == steerer.calibration
    assert again.users == steerer.users


def test_a_new_user_is_routed_and_generation_equals_steering_by_hand(steerer, characters):
    profile = [{"text": "garlic in the pan"}]
    (heads,) = steerer.heads_for([profile], "soft")
    embedding = steerer._embedder.embed([profile])[0]
    weights = route(embedding, steerer.clusters.centroids, "soft", steerer.temperature)
    assert heads == mix(weights, steerer.maps)
    (hard,) = steerer.heads_for([profile], "hard")
    assert hard.values.equal(steerer.maps[int(weights.argmax())].values)

    text = steerer.generate("say it", profile, gamma=0.8, mode="amplify", max_new_tokens=6)
    encoded = encode(characters, Example("x", "x", tuple(profile), "say it", None))
    with ph.steer(shared(), heads, 0.8, mode="amplify"):
        ids = shared().generate(
            input_ids=encoded.prompt_ids[None],
            attention_mask=torch.ones_like(encoded.prompt_ids)[None],
            max_new_tokens=6,
            do_sample=False,
        )
    new = ids[0, len(encoded.prompt_ids) :]
    assert text == characters.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize(("mode", "target"), [("contrast", "head"), ("amplify", "profile")])
def test_a_batch_of_users_equals_one_by_one(steerer, mode, target):
    prompts = ["say it", "a longer thing to say", "no"]
    profiles = [[{"text": "garlic"}], [{"text": "a sail"}], [{"text": "bread"}, {"text": "oil"}]]
    options = {"gamma": 1.0, "mode": mode, "target": target, "max_new_tokens": 5}
    together = steerer.generate(prompts, profiles, **options)
    alone = [steerer.generate(p, own, **options) for p, own in zip(prompts, profiles, strict=True)]
    assert together == alone


def test_gamma_zero_is_plain(steerer, characters):
    profile = [{"text": "garlic"}]
    encoded = encode(characters, Example("x", "x", tuple(profile), "say", None))
    ids = shared().generate(
        input_ids=encoded.prompt_ids[None],
        attention_mask=torch.ones_like(encoded.prompt_ids)[None],
        max_new_tokens=5,
        do_sample=False,
    )
    plain = characters.decode(ids[0, len(encoded.prompt_ids) :], skip_special_tokens=True).strip()
    assert steerer.generate("say", profile, gamma=0, max_new_tokens=5) == plain


def test_saved_and_loaded_it_is_the_same(steerer, characters, tmp_path):
    steerer.save(tmp_path)
    loaded = PreferenceSteerer.load(tmp_path, shared(), characters)
    assert loaded.maps == steerer.maps and loaded.shared == steerer.shared
    assert loaded.calibration == steerer.calibration and loaded.users == steerer.users
    assert loaded.scores == steerer.scores
    assert np.array_equal(loaded.clusters.centroids, steerer.clusters.centroids)
    profile = [{"text": "garlic"}]
    options = {"gamma": 1.0, "mode": "contrast", "max_new_tokens": 4}
    assert loaded.generate("a", profile, **options) == steerer.generate("a", profile, **options)


def test_a_run_of_another_model_and_damaged_runs_are_refused(steerer, characters, tmp_path):
    steerer.save(tmp_path)
    other = tiny("llama", num_hidden_layers=4)
    with pytest.raises(ArtifactError, match="fitted for"):
        PreferenceSteerer.load(tmp_path, other, characters)
    with pytest.raises(ArtifactError, match=r"steerer\.json is missing"):
        PreferenceSteerer.load(tmp_path / "nowhere", shared(), characters)
    data = json.loads((tmp_path / "steerer.json").read_text())
    del data["calibration"]
    (tmp_path / "steerer.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="damaged"):
        PreferenceSteerer.load(tmp_path, shared(), characters)


def test_a_killed_fit_goes_on_and_ends_the_same(steerer, characters, tmp_path, monkeypatch):
    calls = []

    def stop(*args, **kwargs):
        calls.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prefheads.steerer.core.calibrate", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(shared(), characters, run=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("prefheads.discovery.exact._pcs", stop)  # discovery must not run again
        again = fit(shared(), characters, run=tmp_path)
    assert len(calls) == 1
    assert again.maps == steerer.maps and again.calibration == steerer.calibration


def test_validation_leaves_out_users_seen_in_fitting(steerer):
    everyone = people()
    result = steerer.validate(everyone, progress=False)
    assert set(result.user_ids) == set(steerer.users["test"])
    seen = [e for e in everyone if e.user_id in steerer.users["discovery"]]
    with pytest.raises(DataError, match="all users took part"):
        steerer.validate(seen, progress=False)


def test_too_few_users_and_empty_profiles_are_refused(steerer, characters):
    with pytest.raises(DataError, match="clusters"):
        fit(shared(), characters, n_clusters=40)
    with pytest.raises(DataError):
        PreferenceSteerer.fit(shared(), characters, people()[:2], progress=False)
    with pytest.raises(DataError):
        steerer.generate("say", [])


def test_spread_takes_turns_between_users_and_is_seeded():
    examples = people()
    some = spread(examples, 12)
    assert len({e.user_id for e in some}) == 12
    assert spread(examples, 15, seed=3) == spread(examples, 15, seed=3)
    assert [e for e in examples if e in spread(examples, 15)] == spread(examples, 15)
    assert spread(examples, None) == examples


def test_a_strength_by_hand_uses_the_form_its_maps_were_chosen_with(steerer, monkeypatch):
    best = Setting(SETTINGS[0].heads, "contrast", "profile", 2.0, 0.5)
    calibration = replace(
        steerer.calibration, settings=(Setting(), best), change=(0.0, 0.1), chosen=0
    )
    plain = replace(steerer, calibration=calibration)
    assert plain.setting.plain and plain.form == replace(best, gamma=0.0)
    profile = [{"text": "garlic"}]
    by_hand = plain.generate("say", profile, gamma=1.0, max_new_tokens=5)
    spelled = {"mode": "contrast", "target": "profile", "suppression": 0.5}
    assert by_hand == steerer.generate("say", profile, gamma=1.0, max_new_tokens=5, **spelled)
    chosen = replace(steerer, calibration=replace(calibration, chosen=1))
    assert chosen.form == best


def test_a_head_set_that_does_not_exist_is_refused_before_discovery(characters, monkeypatch):
    monkeypatch.setattr(
        "prefheads.steerer.core.discover", lambda *a, **k: pytest.fail("discovered")
    )
    with pytest.raises(SteeringError, match="top 8% by head PCS"):
        fit(shared(), characters, settings=[Setting("mine", gamma=1.0)])


def test_people_without_a_scored_sample_are_clustered_too(characters):
    some = fit(shared(), characters, discovery_limit=4)
    assert len(some.scores["head"].user_ids) == 4
    assert set(some.clusters.assignment) == set(some.users["discovery"])


@pytest.mark.parametrize(
    "fractions", [(), (1.0,), (0.5, 0.4), (0.7, 0.7), (1.2, -0.2), (0.25,) * 4, (0.5, float("nan"))]
)
def test_fractions_without_calibration_users_are_refused_first(fractions, tmp_path):
    with pytest.raises(DataError, match="fractions"):
        fit(fractions=fractions, run=tmp_path / "run")
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize("name", ["sentence_transformers", "sklearn.cluster"])
def test_a_missing_library_is_told_before_discovery(characters, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(
        "prefheads.steerer.core.discover", lambda *a, **k: pytest.fail("discovered")
    )
    with pytest.raises(PrefheadsError, match=rf"{name} is not installed.*prefheads\[cluster\]"):
        fit(shared(), characters)
