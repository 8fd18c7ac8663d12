"""Screened discovery: which heads are measured, and how it goes on after a kill."""

from __future__ import annotations

import json

import pytest
import torch
from support.estimates import estimate
from support.models import shared, tiny
from support.saved import save_model

from prefheads.data.encoding import encode
from prefheads.data.example import Example, other_profiles
from prefheads.discovery import discover, screen
from prefheads.discovery import exact as module
from prefheads.errors import ArtifactError, ModelError, SteeringError
from prefheads.heads.scores import HeadScores
from prefheads.scoring.scorer import Scorer

EXAMPLES = [
    Example("a", "u", ({"text": "Tea, no sugar!"},), "Say it: ", "Hot & plain."),
    Example("b", "v", ({"text": "LOUD"}, {"text": "wow"}), "Shout. Now: ", "HEY"),
    Example("c", "w", (), "Nothing known: ", "fine, I think so."),
    Example("d", "u", ({"text": "Tea again"},), "Again: ", "ok"),
]


N_CANDIDATES = 3  # of 12 heads


def run(examples=EXAMPLES, model=None, **options):
    from support.models import character_tokenizer

    options = {"progress": False, "method": "screen", "candidates": N_CANDIDATES / 12} | options
    return discover(model or shared(), character_tokenizer(), examples, **options)


def test_candidates_are_the_heads_of_highest_mean_estimate() -> None:
    estimates = torch.tensor([[[9.0, 0, 4], [3, 3, 0]], [[-9.0, 1, 4], [3, 3, 0]]])
    assert screen.choose_candidates(estimates, 0.5).tolist() == [2, 3, 4]
    assert screen.choose_candidates(estimates, 0.01).tolist() == [2]
    assert screen.choose_candidates(estimates, 1).tolist() == [0, 1, 2, 3, 4, 5]
    assert screen.choose_candidates(torch.zeros(2, 2, 3), 0.5).tolist() == [0, 1, 2]  # ties


@pytest.mark.filterwarnings("ignore:only .* heads have a positive score")
@pytest.mark.parametrize("reference", [None, "no-profile", "other-profile"])
@pytest.mark.parametrize("target", ["head", "profile", "query"])
@pytest.mark.parametrize("scope", ["response", "all"])
def test_candidates_have_their_exact_scores_and_others_none(scope, target, reference) -> None:
    how = {"scope": scope, "target": target, "reference": reference, "seed": 2}
    found, exact = run(**how), run(method="exact", **how)
    measured = (found.values != 0).any(0)
    assert measured.sum() == N_CANDIDATES
    assert (found.values - exact.values)[:, measured].abs().max() < 1e-5
    assert (found.nll - exact.nll).abs().max() < 1e-5
    assert (found.values[:, ~measured] == 0).all()
    kept = found.top(fraction=1).heads  # no more than the candidates that do good
    assert kept == [tuple(h) for h in (measured & (exact.mean > 0)).nonzero().tolist()]


@pytest.mark.parametrize("target", ["head", "profile", "query"])
def test_all_heads_as_candidates_is_exact_discovery(target) -> None:
    found, exact = run(candidates=1, target=target), run(method="exact", target=target)
    assert (found.values - exact.values).abs().max() < 1e-6
    assert found.top(fraction=0.25).heads == exact.top(fraction=0.25).heads


def test_screening_finds_the_strongest_heads() -> None:
    exact = run(method="exact")
    assert run(candidates=0.5).top(k=2).heads == exact.top(k=2).heads


def test_with_a_reference_candidates_are_ranked_by_the_difference(characters) -> None:
    def mean(examples):
        return sum(estimate(shared(), encode(characters, e))[0] for e in examples) / len(EXAMPLES)

    difference = mean(EXAMPLES) - mean(other_profiles(EXAMPLES))
    wanted = difference.flatten().argsort(descending=True)[:N_CANDIDATES].sort().values
    found = run(reference="other-profile").mean.flatten().nonzero()[:, 0]
    assert torch.equal(found, wanted)
    plain = run().mean.flatten().nonzero()[:, 0]
    assert not torch.equal(found, plain)


def test_scores_say_that_they_were_screened() -> None:
    info = run(scope="all", target="profile").info
    assert (info.method, info.scope, info.target) == ("screen", "all", "profile")


def test_scores_of_some_users_are_those_of_the_whole_run() -> None:
    """What clusters are made of: the same heads are measured on every example."""
    whole, exact = run(), run(method="exact")
    measured = (whole.values != 0).any(0)
    own, wanted = whole.select(users=["u"]), exact.select(users=["u"])
    assert (own.mean - wanted.mean)[measured].abs().max() < 1e-5
    assert all(measured[head] for head in own.soft(k=1).heads)


@pytest.mark.parametrize("room", [0, 2**30])
def test_prompts_are_encoded_once_while_there_is_room(room, monkeypatch) -> None:
    made = []

    class Counting(Scorer):
        def __init__(self, model, encoded, *rest):
            made.append(encoded.example_id)
            super().__init__(model, encoded, *rest)

    wanted = run()
    monkeypatch.setattr(module, "KEPT_BYTES", room)
    monkeypatch.setattr(module, "Scorer", Counting)
    assert run() == wanted
    assert made == list("abcd") * (1 if room else 2)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():  # screening works where gradients are switched off
        run(EXAMPLES[:1], model, target="profile")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


class Killed:
    """Notes which examples are screened and measured, and stops the run after so many steps."""

    def __init__(self, monkeypatch, after: int) -> None:
        self.screened: list[str] = []
        self.measured: list[str] = []
        screening, measuring = module.estimate_scores, module._pcs

        def count(done: list[str], scorer) -> None:
            if len(self.screened) + len(self.measured) == after:
                raise KeyboardInterrupt
            done.append(scorer.encoded.example_id)

        def counted_screening(scorer, *rest):
            count(self.screened, scorer)
            return screening(scorer, *rest)

        def counted_measuring(scorer, *rest):
            count(self.measured, scorer)
            return measuring(scorer, *rest)

        monkeypatch.setattr(module, "estimate_scores", counted_screening)
        monkeypatch.setattr(module, "_pcs", counted_measuring)


@pytest.mark.parametrize("after", range(9))
def test_a_killed_run_goes_on_where_it_stopped(after, tmp_path, monkeypatch) -> None:
    file = tmp_path / "run.jsonl"
    if after < 8:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            Killed(patch, after)
            run(checkpoint=file)
    else:
        run(checkpoint=file)
    with monkeypatch.context() as patch:
        second = Killed(patch, 99)
        found = run(checkpoint=file)
    assert second.screened == list("abcd")[after:]
    assert second.measured == list("abcd")[max(after - 4, 0) :]
    assert found == run()


@pytest.mark.parametrize(
    "change",
    [{"candidates": 0.5}, {"method": "exact"}, {"seed": 1}, {"target": "profile"}],
    ids=lambda change: next(iter(change)),
)
def test_the_checkpoint_of_another_run_is_refused(change, tmp_path) -> None:
    file = tmp_path / "run.jsonl"
    run(checkpoint=file)
    with pytest.raises(ArtifactError, match=r"run\.jsonl"):
        run(checkpoint=file, **change)


def test_both_halves_show_their_progress(capsys) -> None:
    run(EXAMPLES[:1], progress=True)
    shown = capsys.readouterr().err
    assert "screening" in shown and "PCS" in shown


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_a_share_of_candidates_out_of_range_is_refused(share) -> None:
    with pytest.raises(SteeringError, match="candidates") as caught:
        discover(None, None, EXAMPLES, method="screen", candidates=share)
    assert "\n" not in str(caught.value) and str(share) in str(caught.value)


def test_logits_that_are_not_finite_name_the_example(characters) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[characters.convert_tokens_to_ids("L")] = float("nan")
    with pytest.raises(ModelError, match=r"'b'.*finite") as caught:
        run(model=model)
    assert "\n" not in str(caught.value)


def test_a_model_without_gradients_is_refused_with_a_way_out() -> None:
    model = tiny("llama")
    forward = model.model.layers[1].mlp.forward
    model.model.layers[1].forward = torch.no_grad()(model.model.layers[1].forward)
    model.model.layers[1].mlp.forward = torch.no_grad()(forward)
    with pytest.raises(ModelError, match="'exact'") as caught:
        run(model=model)
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == "sdpa"


def test_the_command_line_screens(cli, tmp_path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "run"
    row = {"user_id": "u", "profile": [{"text": "Tea"}], "input": "Say: ", "output": "Hot"}
    data.write_text("".join(json.dumps(row | {"id": str(i)}) + "\n" for i in range(2)))
    model = save_model(tmp_path / "model")
    command = ("discover", "--model", model, "--data", data, "--out", out)
    assert cli(*command, "--method", "screen").code == 0
    scores = HeadScores.load(out / "scores.safetensors")
    assert scores.info.method == "screen"
    assert 0 < (scores.values != 0).any(0).sum() < 12
    refused = cli(*command, "--method", "exact")
    assert refused.code == 2 and "method" in refused.err
