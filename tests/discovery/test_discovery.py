"""Discovery: Preference Contribution Scores against ablation by hand, and runs that are killed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.models import SHAPE, shared, tiny
from support.reference import naive_nll

from prefheads.data.encoding import encode
from prefheads.data.example import Example, other_profiles, without_profile
from prefheads.discovery import discover
from prefheads.discovery import exact as module
from prefheads.errors import ArtifactError, DataError, ModelError, PrefheadsError, SteeringError
from prefheads.heads.weights import fingerprint

EXAMPLES = [
    Example("a", "u", ({"text": "Tea, no sugar!"},), "Say it: ", "Hot & plain."),
    Example("b", "v", ({"text": "LOUD"}, {"text": "wow"}), "Shout. Now: ", "HEY"),
    Example("c", "w", ({"text": "hm"},), "Nothing known: ", "fine, I think."),
    Example("d", "u", ({"text": "Tea again"},), "Again: ", "ok"),
    Example("e", "v", ({"text": "NO"},), "Or: ", "YES"),
    Example("f", "w", ({"text": "well"},), "And: ", "ah"),
]


def run(examples=EXAMPLES, model=None, **options):
    from support.models import character_tokenizer

    options = {"progress": False} | options
    return discover(model or shared(), character_tokenizer(), examples, **options)


def naive_pcs(tokenizer, example, target="head", scope="response", end_of_turn=False):
    """Eq. 4 head by head: NLL with the head's gain at zero, minus the plain NLL."""
    encoded = encode(tokenizer, example, end_of_turn=end_of_turn)
    plain = naive_nll(shared(), encoded, torch.ones(SHAPE), target, scope)
    scores = torch.zeros(SHAPE)
    for layer in range(SHAPE[0]):
        for head in range(SHAPE[1]):
            gains = torch.ones(SHAPE)
            gains[layer, head] = 0
            scores[layer, head] = naive_nll(shared(), encoded, gains, target, scope) - plain
    return scores, plain


@pytest.mark.parametrize("end_of_turn", [False, True])
@pytest.mark.parametrize("target", ["head", "profile", "query"])
@pytest.mark.parametrize("scope", ["response", "all"])
def test_scores_equal_ablation_by_hand(scope, target, end_of_turn, characters) -> None:
    scores = run(EXAMPLES[:2], scope=scope, target=target, end_of_turn=end_of_turn)
    assert scores.shape == (2, *SHAPE)
    for i in range(2):
        wanted, plain = naive_pcs(characters, EXAMPLES[i], target, scope, end_of_turn)
        assert (scores.values[i] - wanted).abs().max() < 1e-5
        assert (scores.nll[i] - plain).abs() < 1e-5
        assert wanted.abs().max() > 1e-2


@pytest.mark.parametrize("target", ["head", "profile", "query"])
@pytest.mark.parametrize("scope", ["response", "all"])
def test_references_are_differences_of_scores(scope, target, characters) -> None:
    how = {"scope": scope, "target": target}
    plain = run(**how)
    without = run([without_profile(e) for e in EXAMPLES], **how)
    other = run(other_profiles(EXAMPLES, seed=3), **how)
    no_profile = run(reference="no-profile", **how)
    other_profile = run(reference="other-profile", seed=3, **how)
    assert (no_profile.values - (plain.values - without.values)).abs().max() < 1e-5
    assert (other_profile.values - (plain.values - other.values)).abs().max() < 1e-5
    assert (other.values - plain.values).abs().max() > 1e-2
    for scores in (no_profile, other_profile):  # the likelihood stays that of the own profile
        assert (scores.nll - plain.nll).abs().max() < 1e-6
    difference, _ = naive_pcs(characters, without_profile(EXAMPLES[0]), **how)
    wanted = naive_pcs(characters, EXAMPLES[0], **how)[0] - difference
    assert (no_profile.values[0] - wanted).abs().max() < 1e-5


def test_scores_say_how_they_were_measured() -> None:
    scores = run(scope="all", target="profile", reference="other-profile", seed=7)
    info = scores.info
    assert (info.scope, info.target, info.reference) == ("all", "profile", "other-profile")
    assert (info.method, info.seed, info.n_examples) == ("exact", 7, 6)
    assert info.fingerprint == fingerprint(shared().config)
    assert scores.example_ids == ("a", "b", "c", "d", "e", "f")
    assert scores.user_ids == ("u", "v", "w", "u", "v", "w")


@pytest.mark.parametrize("tokens", [1, 50, 5000])
def test_tokens_per_pass_do_not_matter(tokens) -> None:
    found, wanted = run(EXAMPLES[:2], tokens_per_pass=tokens), run(EXAMPLES[:2])
    assert (found.values - wanted.values).abs().max() < 1e-5


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(EXAMPLES[:1], model, target="profile")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


class Killed:
    """Counts the examples that are measured, and stops the run after some of them."""

    def __init__(self, monkeypatch, after: int, error: BaseException) -> None:
        self.measured: list[str] = []
        measure = module._pcs

        def counting(scorer, *rest):
            if len(self.measured) == after:
                raise error
            self.measured.append(scorer.encoded.example_id)
            return measure(scorer, *rest)

        monkeypatch.setattr(module, "_pcs", counting)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("power cut")])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_killed_run_goes_on_where_it_stopped(after, error, tmp_path, monkeypatch) -> None:
    wanted = run()
    file = tmp_path / "run.jsonl"
    with monkeypatch.context() as patch:
        Killed(patch, after, error)
        with pytest.raises(type(error)):
            run(checkpoint=file)
    with monkeypatch.context() as patch:
        second = Killed(patch, 99, error)
        found = run(checkpoint=file)
    assert second.measured == ["a", "b", "c", "d", "e", "f"][after:]
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.nll, wanted.nll)
    assert found == wanted


def test_a_killed_run_with_a_reference_goes_on_too(tmp_path, monkeypatch) -> None:
    options = {"reference": "other-profile", "checkpoint": tmp_path / "run.jsonl"}
    with monkeypatch.context() as patch:
        Killed(patch, 3, KeyboardInterrupt())  # in the middle of the second example
        with pytest.raises(KeyboardInterrupt):
            run(**options)
    with monkeypatch.context() as patch:
        second = Killed(patch, 99, KeyboardInterrupt())
        found = run(**options)
    assert len(second.measured) == 10
    assert found == run(reference="other-profile")


def test_a_finished_run_measures_nothing_again(tmp_path, monkeypatch) -> None:
    file = tmp_path / "run.jsonl"
    wanted = run(checkpoint=file)
    again = Killed(monkeypatch, 0, AssertionError("measured again"))
    assert run(checkpoint=file) == wanted
    assert again.measured == []


@pytest.mark.parametrize(
    "change",
    [
        {"scope": "all"},
        {"target": "profile"},
        {"reference": "no-profile"},
        {"end_of_turn": True},
        {"examples": EXAMPLES[:5]},
        {"examples": EXAMPLES[::-1]},
        {"examples": [*EXAMPLES[:5], replace(EXAMPLES[5], output="oh")]},
        {"model": tiny("llama", num_hidden_layers=2)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_checkpoint_of_another_run_is_refused(change, tmp_path) -> None:
    file = tmp_path / "run.jsonl"
    run(checkpoint=file)
    content = file.read_bytes()
    with pytest.raises(ArtifactError, match=r"run\.jsonl") as caught:
        run(**({"checkpoint": file} | change))
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == content


def test_a_damaged_checkpoint_is_refused(tmp_path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_bytes(b"not this")
    with pytest.raises(ArtifactError, match=r"run\.jsonl"):
        run(checkpoint=file)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("scope", "prompt"),
        ("target", "value"),
        ("reference", "none"),
        ("method", "guess"),
    ],
)
def test_bad_options_are_refused_before_any_work(option, value) -> None:
    with pytest.raises(SteeringError, match=option) as caught:
        discover(None, None, EXAMPLES, progress=False, **{option: value})
    assert "\n" not in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([], {}, "no examples"),
        ([EXAMPLES[0], replace(EXAMPLES[1], id="mute", output=None)], {}, "'mute'"),
        ([EXAMPLES[0], replace(EXAMPLES[1], id="mute", output="")], {}, "'mute'"),
        ([replace(EXAMPLES[0], id="long", input="x" * 300)], {}, "'long'"),
        ([EXAMPLES[0], EXAMPLES[3]], {"reference": "other-profile"}, "two users"),
    ],
    ids=["none", "no-output", "empty-output", "too-long", "one-user"],
)
def test_bad_examples_are_refused_before_any_work(examples, options, message, monkeypatch) -> None:
    Killed(monkeypatch, 0, AssertionError("work was done"))
    with pytest.raises(DataError, match=message) as caught:
        run(examples, **options)
    assert "\n" not in str(caught.value)


def test_logits_that_are_not_finite_name_the_example(characters, tmp_path) -> None:
    """Only the second example holds the poisoned token."""
    model, file = tiny("llama"), tmp_path / "run.jsonl"
    with torch.no_grad():
        model.model.embed_tokens.weight[characters.convert_tokens_to_ids("L")] = float("nan")
    with pytest.raises(ModelError, match="'b'") as caught:
        run(EXAMPLES[:3], model, checkpoint=file)
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == "sdpa"


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear") as caught:
        run(model=torch.nn.Linear(2, 2))
    assert isinstance(caught.value, PrefheadsError)


def test_progress_is_shown_on_demand(capsys) -> None:
    run(EXAMPLES[:1])
    assert capsys.readouterr().err == ""
    run(EXAMPLES[:1], progress=True)
    assert "PCS, target head: 1 of 1 examples" in capsys.readouterr().err


@pytest.mark.bundled
def test_bundled_scores_equal_ablation_by_hand(bundled_model) -> None:
    model, tokenizer = bundled_model
    example = Example("x", "u", ({"text": "Rain. Splendid."},), "Next note: ", "Wet. Superb.")
    scores = discover(model, tokenizer, [example], progress=False)
    encoded = encode(tokenizer, example)
    plain = naive_nll(model, encoded, torch.ones(30, 9))
    for layer, head in [(0, 4), (13, 1), (29, 8)]:
        gains = torch.ones(30, 9)
        gains[layer, head] = 0
        wanted = naive_nll(model, encoded, gains) - plain
        assert (scores.values[0, layer, head] - wanted).abs() < 1e-5
