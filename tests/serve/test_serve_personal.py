"""What a request is made into: routing that is remembered, and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.served import HOW, TOPICS, make_steerer

from prefheads.data.chat import Turn
from prefheads.errors import SteeringError
from prefheads.serve.database import open_database
from prefheads.serve.engine import Sampling
from prefheads.serve.keys import Keys
from prefheads.serve.personal import NoProfile, Personaliser, Wish
from prefheads.serve.profiles import Profiles
from prefheads.steering.setting import Setting

WISH = Wish([Turn("user", "Hi")], True, Sampling(5), "ann", None, None)


class Counting:
    """An encoder that notes what it is given."""

    def __init__(self, encoder) -> None:
        self._encoder, self.seen = encoder, []

    def embed(self, profiles: Sequence[Sequence[dict[str, str]]]):
        self.seen += [item["text"] for profile in profiles for item in profile]
        return self._encoder.embed(profiles)


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    engine = open_database(str(tmp_path / "db"))
    made = Profiles(engine, 100, 100)
    made.key = Keys(engine).create("k")[0].id
    return made


def counted(steerer, profiles: Profiles) -> Personaliser:
    personaliser = Personaliser(steerer, profiles)
    personaliser._encoder = Counting(personaliser._encoder)
    return personaliser


def test_only_new_items_are_embedded(profiles) -> None:
    steerer = make_steerer()
    personaliser = counted(steerer, profiles)
    told: list[dict[str, str]] = []
    for i, topic in enumerate(TOPICS):
        told.append({"text": topic})
        items = [(str(i), {"text": topic})]
        if i == 0:
            profiles.put(profiles.key, "ann", items)
        else:
            profiles.append(profiles.key, "ann", items)
        for _ in range(2):
            clusters = personaliser.prepare(profiles.key, WISH).job.clusters
            assert clusters == pytest.approx(steerer.cluster_weights([told])[0], abs=1e-6)
    assert personaliser._encoder.seen == TOPICS

    profiles.delete_item(profiles.key, "ann", "1")
    clusters = personaliser.prepare(profiles.key, WISH).job.clusters
    assert clusters == pytest.approx(steerer.cluster_weights([told[::2]])[0], abs=1e-6)
    assert personaliser._encoder.seen == [*TOPICS, TOPICS[0], TOPICS[2]]

    known = profiles.get(profiles.key, "ann")
    other = replace(known, version=known.version)
    profiles.keep_vectors(other, "another encoder", np.ones(3).tobytes(), known.embedded)
    again = personaliser.prepare(profiles.key, WISH).job.clusters
    assert again == pytest.approx(clusters, abs=1e-9)


def test_what_is_off_needs_no_embedding(profiles) -> None:
    personaliser = counted(make_steerer(), profiles)
    profiles.put(profiles.key, "ann", [(None, {"text": "tea"})])
    for wish in (replace(WISH, mode="off"), replace(WISH, gamma=0.0), replace(WISH, user=None)):
        job = personaliser.prepare(profiles.key, wish).job
        assert job.setting.plain and job.clusters == ()
        assert bool(job.prompt.profile_mask.any()) == (wish.user is not None)
    assert personaliser._encoder.seen == []


def test_settings(profiles) -> None:
    profiles.put(profiles.key, "ann", [(None, {"text": "tea"})])

    def setting(how: Setting, **wish) -> Setting:
        personaliser = Personaliser(make_steerer(how), profiles)
        return personaliser.prepare(profiles.key, replace(WISH, **wish)).job.setting

    assert setting(HOW) == HOW
    assert setting(HOW, gamma=0.5) == replace(HOW, gamma=0.5)
    assert setting(HOW, mode="amplify") == replace(HOW, mode="amplify")
    entropy = replace(HOW, schedule="entropy", cap=1.0)
    assert setting(entropy) == entropy
    assert setting(entropy, mode="amplify") == replace(HOW, mode="amplify")
    with pytest.raises(SteeringError, match="give gamma"):
        setting(Setting(), mode="contrast")
    with pytest.raises(NoProfile):
        setting(HOW, user="ben")
