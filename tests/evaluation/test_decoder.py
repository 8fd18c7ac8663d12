"""Methods made ready: the heads of each user, and what marks of records depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.compared import METHODS, decoders

from prefheads.errors import PrefheadsError
from prefheads.evaluation.decoder import Decoder, make_decoder
from prefheads.evaluation.methods import Method
from prefheads.heads.scores import HeadWeights
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.context import ScopeWarning


def test_maps_of_every_method(tiny_model, tweets, tweet_steerer: PreferenceSteerer) -> None:
    few = tweets[10:14]
    made = {d.method.name: d for d in decoders(METHODS, tiny_model, few, tweet_steerer)}
    top = tweet_steerer.scores["head"].top(fraction=0.04)
    assert [m.heads for m in made["dps"].maps] == [top.heads] * 4
    assert not made["plain"].maps and not made["cad"].maps and not made["dola"].maps
    assert made["decore"].scope == "response" and made["decore"].setting.schedule == "entropy"
    assert made["decore"].setting.target == "query"
    wide = decoders(
        ("dps:fraction=0.5", "random-heads:fraction=0.5"), tiny_model, few, tweet_steerer
    )
    own, control = (d.maps[0] for d in wide)
    assert control.n_active == own.n_active and control.heads != own.heads
    hard = made["dps-cluster:routing=hard"].maps[0]
    assert hard.values.max() == 1  # one cluster's own importance weights
    calibrated = made["calibrated"]
    assert calibrated.setting == tweet_steerer.setting


def test_a_method_without_its_heads_is_refused(tiny_model, tweets) -> None:
    for name in ("dps", "calibrated", "decore"):
        with pytest.raises(PrefheadsError, match="needs"):
            make_decoder(Method.parse(name), tiny_model[0], tweets)


def test_heads_of_another_scope_are_told(
    tiny_model, tweets, tweet_steerer: PreferenceSteerer
) -> None:
    with pytest.warns(ScopeWarning, match="scope='response' steer with scope='all'"):
        decoders(("dps:scope=all",), tiny_model, tweets[10:12], tweet_steerer)


def test_random_controls_follow_their_seed(tiny_model, tweets, tweet_steerer) -> None:
    """The option's where there is one, else the run's."""

    def drawn(name: str, seed: int) -> HeadWeights:
        method = Method.parse(f"{name}:fraction=0.25")
        return make_decoder(method, tiny_model[0], tweets[:1], tweet_steerer, seed=seed).maps[0]

    for kind in ("random-heads", "random-mask"):
        own = [drawn(kind, seed) for seed in range(5)]
        assert len({tuple(m.heads) for m in own}) > 1
        assert own == [drawn(kind, seed) for seed in range(5)]
        assert own == [drawn(f"{kind}:seed={seed}", 9) for seed in range(5)]


def test_marks_tell_all_that_acts_on_a_sample(tiny_model, tweets, tweet_steerer) -> None:
    names = ("plain", "plain:temperature=2", "cad", "cad:gamma=1", "dola", "dola:layers=low")
    names += ("dps", "dps:gamma=0.5", "dps:mode=amplify", "dps:fraction=0.5", "random-heads")
    few = tweets[10:12]
    made = {d.method.name: d for d in decoders(names, tiny_model, few, tweet_steerer)}
    assert len({d.marks(0) for d in made.values()}) == len(names)
    dps, own, other = made["dps"], made["dps"].maps[0], made["dps:fraction=0.5"].maps[0]
    marks = [replace(dps, maps=maps).marks(1) for maps in ((other, own), (own, other), (own, own))]
    assert marks[0] == marks[2] == dps.marks(0) != marks[1]
    nearly = HeadWeights(own.values * (1 - 1e-6), own.info)  # another number of threads
    assert replace(dps, maps=[nearly]).marks(0) == dps.marks(0)


def test_marks_are_those_of_records_of_before() -> None:
    """So that runs of other versions go on."""
    known = {
        "plain": "0828272a5dc8be21",
        "cad:gamma=1": "269c8df878553e7c",
        "dola": "c371c4b495cb5a1e",
        "dps:gamma=0.5": "0834bf1816c233ba",
        "decore:cap=2": "3a9dcd63b042ffdb",
        "random-heads:seed=3:of=dps-cluster:routing=hard": "b48d6828c97358c3",
    }
    few = HeadWeights.from_heads((3, 4), ((1, 2), (2, 0)))
    for name, marks in known.items():
        method = Method.parse(name)
        setting = method.setting(None)
        made = Decoder(method, setting, () if setting.plain else [few], "response")
        assert made.marks(0) == marks, name
