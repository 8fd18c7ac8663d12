"""Methods as they are typed, and the heads that each works with."""

from __future__ import annotations

import pytest

from prefheads.errors import DataError
from prefheads.evaluation.methods import METHODS as REGISTRY
from prefheads.evaluation.methods import Method


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
