"""Screened discovery: its estimates against finite differences, and what is measured of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from models import ARCHITECTURES, SHAPE, random_encoded, shared, tiny
from reference import attentions, gained, naive_nll, output_projection
from saved import save_model

from prefheads.attention import intercept
from prefheads.discovery import discover, screen
from prefheads.discovery import exact as module
from prefheads.encoding import encode
from prefheads.errors import ArtifactError, ModelError, SteeringError
from prefheads.examples import Example, other_profiles
from prefheads.heads import HeadScores
from prefheads.masks import masked_backend
from prefheads.scoring import Scorer

EXAMPLES = [
    Example("a", "u", ({"text": "Tea, no sugar!"},), "Say it: ", "Hot & plain."),
    Example("b", "v", ({"text": "LOUD"}, {"text": "wow"}), "Shout. Now: ", "HEY"),
    Example("c", "w", (), "Nothing known: ", "fine, I think so."),
    Example("d", "u", ({"text": "Tea again"},), "Again: ", "ok"),
]
HEADS = [(0, 2), (1, 0), (1, 3), (2, 2)]
N_CANDIDATES = 3  # of 12 heads


def run(examples=EXAMPLES, model=None, **options):
    from models import character_tokenizer

    options = {"progress": False, "method": "screen", "candidates": N_CANDIDATES / 12} | options
    return discover(model or shared(), character_tokenizer(), examples, **options)


def estimate(model, encoded, target="head", scope="response"):
    with intercept(model, masked_backend(model)) as layout:
        return screen.estimate_scores(Scorer(model, encoded, scope), layout, target)


# -- by hand: a head between its own output and its ablated one --


@contextmanager
def projected(model, layer: int, change) -> Iterator[None]:
    """Passes the input (1, n, heads, d) of one output projection through a function."""

    def hook(_, args):
        x = args[0]
        return (change(x.reshape(*x.shape[:2], SHAPE[1], -1)).reshape(x.shape),)

    handle = output_projection(attentions(model)[layer]).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def log_p(model, encoded) -> torch.Tensor:
    """Log-probabilities of all tokens where the response is predicted, (T, vocab)."""
    ids = torch.cat([encoded.prompt_ids, encoded.response_ids])
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits[len(encoded.prompt_ids) - 1 : -1].double().log_softmax(-1)


def dialled(model, encoded, target, scope, layer, head):
    """Log-probabilities as a function of the dial of one head: 0 ablated, 1 unchanged."""
    n = len(encoded.prompt_ids)
    start = n - 1 if scope == "response" else 0
    columns = torch.zeros(1, n + len(encoded.response_ids), dtype=torch.bool)
    columns[0, :n] = encoded.profile_mask
    gains = torch.ones(SHAPE)
    gains[layer, head] = 0
    outputs = []

    def keep(x):
        outputs.append(x.clone())
        return x

    with projected(model, layer, keep):
        log_p(model, encoded)
        with gained(model, gains, target, start, columns):
            log_p(model, encoded)
    own, cut = outputs
    if target == "head":  # that hook acts on what this one has kept
        cut = own.clone()
        cut[:, start:, head] = 0

    def at(dial: float) -> torch.Tensor:
        with projected(model, layer, lambda _: cut + dial * (own - cut)):
            return log_p(model, encoded)

    return at


def precise(kind):
    """A model in which finite differences are accurate."""
    model = tiny(kind)
    if kind == "mixtral":
        model.set_experts_implementation("eager")
    return model.double()


@pytest.mark.parametrize("target", ["head", "profile"])
@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_estimates_equal_finite_differences(kind, scope, target, monkeypatch) -> None:
    """- dNLL/dt + mean over y of (d log p(y)/dt)^2 / 2T in a head's dial t, for given y."""
    model, encoded = precise(kind), random_encoded()
    drawn = torch.stack([random_encoded(seed=s).response_ids for s in range(screen.DRAWS)])
    monkeypatch.setattr(screen, "_draw", lambda logits, key: drawn)
    found, nll = estimate(model, encoded, target, scope)
    assert (nll - naive_nll(model, encoded, torch.ones(SHAPE))).abs() < 1e-5
    n, wanted = len(encoded.response_ids), []
    for layer, head in HEADS:
        at = dialled(model, encoded, target, scope, layer, head)
        near, far = ((at(1 + h) - at(1 - h)) / (2 * h) for h in (0.0025, 0.005))
        slope = (4 * near - far) / 3  # no smaller step: norms work in float32
        gold, *others = (slope[torch.arange(n), y].sum() for y in (encoded.response_ids, *drawn))
        wanted.append(gold / n + torch.stack(others).square().mean() / (2 * n))
    by_hand = torch.stack(wanted)
    difference = by_hand - torch.stack([found[head] for head in HEADS])
    assert (difference.abs() / (1 + by_hand.abs())).max() < 5e-4
    assert by_hand.abs().max() > 0.03


@pytest.mark.parametrize("target", ["head", "profile"])
def test_the_line_of_the_dial_ends_at_ablation(target) -> None:
    """What the finite differences above run along is what ablation measures."""
    model, encoded = precise("llama"), random_encoded()
    for layer, head in HEADS:
        gains = torch.ones(SHAPE)
        gains[layer, head] = 0
        at = dialled(model, encoded, target, "response", layer, head)
        for dial, gain in ((0, gains), (1, torch.ones(SHAPE))):
            nll = -at(dial)[torch.arange(5), encoded.response_ids].mean()
            assert (nll - naive_nll(model, encoded, gain, target)).abs() < 1e-5


def test_responses_are_drawn_from_the_model_and_fixed_by_the_key() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.0, 0.0, 1.0, 0.0]])
    logits = p.log().repeat(10_000, 1)
    drawn = screen._draw(logits, "0:a")
    assert drawn.shape == (screen.DRAWS, 20_000)
    for y in drawn:
        share = torch.bincount(y[::2], minlength=4) / 10_000
        assert (share - p[0]).abs().max() < 0.02 and share[3] == 0
        assert (y[1::2] == 2).all()
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(screen._draw(logits, "0:a"), drawn)
    assert not torch.equal(screen._draw(logits, "0:b"), drawn)
    assert not torch.equal(screen._draw(logits, "1:a"), drawn)


@pytest.mark.parametrize("scope", ["response", "all"])
def test_the_graph_of_one_layer_at_a_time_is_in_memory(scope) -> None:
    """What a model of four times the layers keeps for the backward pass is not more."""

    def most_kept(n_layers: int) -> int:
        alive, most = 0, 0

        class Kept:
            def __init__(self, tensor):
                nonlocal alive, most
                self.tensor = tensor.detach()
                alive += 1
                most = max(most, alive)

            def __del__(self):
                nonlocal alive
                alive -= 1

        model = tiny(num_hidden_layers=n_layers)
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            estimate(model, random_encoded(), scope=scope)
        return most

    assert most_kept(8) <= most_kept(2) + 2


def test_candidates_are_the_heads_of_highest_mean_estimate() -> None:
    estimates = torch.tensor([[[9.0, 0, 4], [3, 3, 0]], [[-9.0, 1, 4], [3, 3, 0]]])
    assert screen.choose_candidates(estimates, 0.5).tolist() == [2, 3, 4]
    assert screen.choose_candidates(estimates, 0.01).tolist() == [2]
    assert screen.choose_candidates(estimates, 1).tolist() == [0, 1, 2, 3, 4, 5]
    assert screen.choose_candidates(torch.zeros(2, 2, 3), 0.5).tolist() == [0, 1, 2]  # ties


# -- screened discovery --


@pytest.mark.filterwarnings("ignore:only .* heads have a positive score")
@pytest.mark.parametrize("reference", [None, "no-profile", "other-profile"])
@pytest.mark.parametrize("target", ["head", "profile"])
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


@pytest.mark.parametrize("target", ["head", "profile"])
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

        def count(done: list[str], encoded) -> None:
            if len(self.screened) + len(self.measured) == after:
                raise KeyboardInterrupt
            done.append(encoded.example_id)

        def counted_screening(scorer, *rest):
            count(self.screened, scorer.encoded)
            return screening(scorer, *rest)

        def counted_measuring(scorers, layout, encoded, *rest):
            count(self.measured, encoded)
            return measuring(scorers, layout, encoded, *rest)

        monkeypatch.setattr(module, "estimate_scores", counted_screening)
        monkeypatch.setattr(module, "_pcs", counted_measuring)


@pytest.mark.parametrize("after", range(9))
def test_a_killed_run_goes_on_where_it_stopped(after, tmp_path, monkeypatch) -> None:
    file = tmp_path / "run.safetensors"
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
    file = tmp_path / "run.safetensors"
    run(checkpoint=file)
    with pytest.raises(ArtifactError, match=r"run\.safetensors"):
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
