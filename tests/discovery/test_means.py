"""Mean ablation, against modules hooked by hand where heads are projected."""

from __future__ import annotations

import pytest
import torch
from support.models import SHAPE, character_tokenizer, shared

from prefheads.data.encoding import encode
from prefheads.data.example import Example
from prefheads.discovery import discover
from prefheads.discovery.exact import mean_outputs
from prefheads.errors import SteeringError
from prefheads.interventions.intercept import intercept
from prefheads.scoring.scorer import token_nll

EXAMPLES = [
    Example("a", "u", ({"text": "Tea, no sugar!"},), "Say it: ", "Hot & plain."),
    Example("b", "v", ({"text": "LOUD"}, {"text": "wow"}), "Shout. Now: ", "HEY"),
    Example("c", "w", ({"text": "hm"},), "Nothing known: ", "fine, I think."),
]
FAMILIES = ("llama", "mistral", "qwen3", "gemma3_text")


def run(kind, **options):
    options = {"progress": False, "ablation": "mean"} | options
    return discover(shared(kind), character_tokenizer(), EXAMPLES, **options)


def projected(model, encoded, change=None):
    """What enters each layer's output projection (L, T, H, d), and the NLL of the response.

    Args:
        change: ``(layer, f)``: that layer's projection gets ``f`` of it.
    """
    layers = [m for name, m in model.named_modules() if name.endswith("o_proj")]
    seen = {}

    def hook(index):
        def before(module, args):
            heads = args[0].reshape(*args[0].shape[:2], SHAPE[1], -1)
            if change is not None and change[0] == index:
                heads = change[1](heads)
            seen[index] = heads[0]
            return (heads.reshape(args[0].shape),)

        return before

    handles = [m.register_forward_pre_hook(hook(i)) for i, m in enumerate(layers)]
    ids = torch.cat([encoded.prompt_ids, encoded.response_ids[:-1]])[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(encoded.prompt_ids) - 1 :]
    for handle in handles:
        handle.remove()
    return torch.stack([seen[i] for i in range(SHAPE[0])]), token_nll(
        logits, encoded.response_ids
    ).mean()


@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_scores_equal_mean_ablation_by_hand(kind, scope) -> None:
    model, tokenizer = shared(kind), character_tokenizer()
    encoded = [encode(tokenizer, e) for e in EXAMPLES]
    starts = [len(e.prompt_ids) - 1 if scope == "response" else 0 for e in encoded]
    clean = [projected(model, e) for e in encoded]
    outputs = torch.cat([x[:, s:] for (x, _), s in zip(clean, starts, strict=True)], 1)
    means = outputs.mean(1)  # (L, H, d)
    with intercept(model):
        found = mean_outputs(model, encoded, scope, progress=False)
    assert (torch.stack(found) - means).abs().max() < 1e-5
    scores = run(kind, scope=scope)
    assert scores.info.ablation == "mean"
    wanted = torch.zeros(len(encoded), *SHAPE)
    for i, (e, start) in enumerate(zip(encoded, starts, strict=True)):
        for layer in range(SHAPE[0]):
            for head in range(SHAPE[1]):

                def ablate(x, layer=layer, head=head, start=start):
                    x = x.clone()
                    x[:, start:, head] = means[layer, head]
                    return x

                wanted[i, layer, head] = projected(model, e, (layer, ablate))[1] - clean[i][1]
    assert (scores.values - wanted).abs().max() < 1e-5
    assert wanted.abs().max() > 1e-3
    zero = run(kind, scope=scope, ablation="zero")
    assert (scores.values - zero.values).abs().max() > 1e-3
    assert torch.allclose(scores.nll, zero.nll)


def test_a_killed_run_goes_on_with_the_same_means(tmp_path, monkeypatch) -> None:
    from prefheads.discovery import exact

    whole, path = run("llama"), tmp_path / "unfinished.jsonl"
    pcs, calls = exact._pcs, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pcs(*args)

    monkeypatch.setattr(exact, "_pcs", killed)
    with pytest.raises(KeyboardInterrupt):
        run("llama", checkpoint=path)
    again = run("llama", checkpoint=path)
    assert torch.equal(again.values, whole.values)


@pytest.mark.parametrize("how", [{"target": "profile"}, {"method": "screen"}])
def test_what_mean_ablation_does_not_go_with_is_refused(how) -> None:
    with pytest.raises(SteeringError, match="goes with target='head' and method='exact'"):
        run("llama", **how)


def test_an_unknown_ablation_is_refused() -> None:
    with pytest.raises(SteeringError, match="unknown ablation 'median'"):
        run("llama", ablation="median")
