"""Methods as they are typed, and the heads that each works with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.compared import METHODS, decoders

from prefheads.errors import DataError, PrefheadsError
from prefheads.evaluation.decoder import make_decoder
from prefheads.evaluation.methods import METHODS as REGISTRY
from prefheads.evaluation.methods import Method
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.context import ScopeWarning


@pytest.mark.parametrize(
    "text, part",
    [
        ("dsp", "plain, cad"),
        ("dps:gama=1", "gamma"),
        ("dps:gamma", "name=value"),
        ("dps:gamma=much", "number"),
        ("dps:gamma=-1", "out of range"),
        ("dps:gamma=inf", "out of range"),
        ("dps:fraction=0", "out of range"),
        ("dps:suppression=2", "out of range"),
        ("plain:gamma=1", "has no gamma"),
        ("plain:temperature=0", "out of range"),
        ("dps-cluster:routing=medium", "hard, soft"),
        ("random-heads:of=plain", "dps"),
        ("decore:mode=amplify", "mode=contrast"),
    ],
)
def test_bad_methods_are_told_in_a_line(text: str, part: str) -> None:
    with pytest.raises(DataError, match=part) as error:
        Method.parse(text)
    assert "\n" not in str(error.value)


def test_options_take_the_place_of_defaults() -> None:
    method = Method.parse("dps: gamma=0.5 :temperature=0.7")
    assert method.name == "dps:gamma=0.5:temperature=0.7"
    assert (method.options["gamma"], method.options["fraction"]) == (0.5, 0.04)
    chosen = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}
    assert method.generate_options == chosen | {"num_beams": 1, "repetition_penalty": 1.0}
    control = Method.parse("random-heads:of=decore:cap=2")
    assert control.needs_retrieval_heads and not control.needs_steerer
    assert (control.options["schedule"], control.options["cap"]) == ("entropy", 2.0)
    assert Method.parse("random-mask:of=calibrated").needs_steerer
    assert all(Method.parse(kind).options["temperature"] == 1 for kind in REGISTRY.all())


def test_a_share_of_heads_is_named_as_it_is() -> None:
    names = {"dps": "top 4%", "dps:fraction=0.005": "top 0.5%", "dps:fraction=0.015": "top 1.5%"}
    assert {text: Method.parse(text).setting(None).heads for text in names} == names


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


def test_retrieval_heads_are_measured_once_a_model(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefheads.evaluation import run

    plan = run.Plan((Method.parse("decore"),), seed=3, progress=False)
    scores = run.retrieval_scores(*tiny_model, n_prompts=2, seed=3, progress=False)
    calls = []

    def few(*_: object, seed: int, progress: bool) -> HeadScores:
        calls.append(seed)
        return scores

    monkeypatch.setattr(run, "retrieval_scores", few)
    for _ in range(2):  # the second is another run's, in the same folder
        heads = run.RetrievalHeads(*tiny_model, tmp_path / "heads.safetensors", plan)
        found = [heads(fraction).heads for fraction in (0.09, 0.17)]
        assert found == [scores.top(k=k).heads for k in (1, 2)]
    assert calls == [3]
