"""What heads do: attention to the profile and logit effects are those of the obvious way."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from support.models import SHAPE, random_encoded, shared, tiny
from support.reference import attentions, gained_logits, output_projection, plain_logits

from prefheads.data.encoding import Encoded
from prefheads.data.example import Example
from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores
from prefheads.report.measure import effects
from prefheads.report.measure.effects import Effect, HeadRoles, head_effects, profile_attention

SAMPLES = [
    random_encoded(),
    replace(random_encoded(19, 3, slice(2, 9), 1), user_id="another", example_id="second"),
]
HEADS = {"top": [(0, 1), (2, 3)], "random": [(1, 0)]}
KINDS = pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])


def ids(e: Encoded) -> torch.Tensor:
    return torch.cat([e.prompt_ids, e.response_ids])


def predicting(e: Encoded) -> slice:
    return slice(len(e.prompt_ids) - 1, len(e.prompt_ids) + len(e.response_ids) - 1)


@KINDS
def test_attention_is_the_share_of_the_models_own_weights(kind: str) -> None:
    model = tiny(kind, "eager")
    found = profile_attention(model, SAMPLES, progress=False)
    for i, e in enumerate(SAMPLES):
        with torch.no_grad():
            out = model(input_ids=ids(e)[None], output_attentions=True, use_cache=False)
        for layer in range(SHAPE[0]):
            weights = out.attentions[layer][0][:, predicting(e)]
            share = weights[:, :, : len(e.prompt_ids)][:, :, e.profile_mask].sum(-1).mean(-1)
            assert torch.allclose(found.values[i, layer], share, atol=1e-5)
        loss = torch.nn.functional.cross_entropy(out.logits[0, predicting(e)], e.response_ids)
        assert found.nll[i] == pytest.approx(loss.item(), abs=1e-4)
    assert found.user_ids == ("someone", "another") and found.values.max() <= 1


def test_even_share_is_that_of_the_tokens_seen() -> None:
    e = SAMPLES[0]  # 5 of the profile; 17 to 21 tokens are seen
    expected = sum(5 / n for n in range(17, 22)) / 5
    assert float(effects._even_share(e)) == pytest.approx(expected)


@KINDS
@pytest.mark.parametrize("target", ["head", "profile"])
@pytest.mark.parametrize("scope", ["response", "all"])
def test_effects_are_those_of_full_passes(
    kind: str, target: str, scope: str, characters: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "FLOOR", 0.0)
    model = shared(kind)
    found = head_effects(model, characters, SAMPLES, {target: HEADS}, scope, progress=False)
    assert [(e.head, e.group) for e in found[target]] == [
        ((0, 1), "top"), ((2, 3), "top"), ((1, 0), "random")
    ]  # fmt: skip
    for effect in found[target]:
        gains = torch.ones(SHAPE)
        gains[effect.head] = 0
        change, kl, switched = torch.zeros(97), [], []
        for e in SAMPLES:
            p = plain_logits(model, ids(e))[predicting(e)].log_softmax(-1)
            q = gained_logits(
                model, ids(e), len(e.prompt_ids), gains, target, scope, e.profile_mask
            )[predicting(e)].log_softmax(-1)
            change += (p - q).mean(0) / len(SAMPLES)
            kl.append(float((p.exp() * (p - q)).sum(-1).mean()))
            switched.append(float((p.argmax(-1) != q.argmax(-1)).float().mean()))
        assert effect.divergence == pytest.approx(kl, abs=1e-5)
        assert effect.switched == pytest.approx(sum(switched) / 2)
        shifts = [s.change for s in effect.raised]
        assert shifts == sorted(shifts, reverse=True) and effect.raised[0].change > 0
        by_token = {characters.decode([i]): c for i, c in enumerate(change.tolist())}
        for shift in (*effect.raised, *effect.lowered):
            assert shift.change == pytest.approx(by_token[shift.token], abs=1e-4)
        assert effect.raised[0].change == pytest.approx(max(by_token.values()), abs=1e-4)
        assert effect.lowered[0].change == pytest.approx(min(by_token.values()), abs=1e-4)


def test_unlikely_tokens_are_no_finding(
    characters: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for floor in (0.0, 0.05, 1.1):  # no token has a probability above 1
        monkeypatch.setattr(effects, "FLOOR", floor)
        (found,) = head_effects(
            shared(), characters, SAMPLES, {"head": {"top": [(0, 1)]}}, progress=False
        )["head"]
        counts.append(len(found.raised) + len(found.lowered))
    assert counts[0] == 2 * effects.N_TOKENS > counts[1] > counts[2] == 0


def test_a_head_without_output_moves_nothing(characters: object) -> None:
    model = tiny()
    projection = output_projection(attentions(model)[1])
    width = projection.weight.shape[1] // SHAPE[1]
    with torch.no_grad():
        projection.weight[:, :width] = 0  # head 0 of layer 1
    idle, busy = head_effects(
        model, characters, SAMPLES, {"head": {"top": [(1, 0), (1, 1)]}}, progress=False
    )["head"]
    assert idle.divergence == pytest.approx([0, 0], abs=1e-6) and idle.switched == 0
    assert max(busy.divergence) > 1e-3
    assert all(s.change < 1e-4 for s in idle.raised)


def test_tokens_that_the_model_rules_out_move_nothing(characters: object) -> None:
    model = tiny()
    heads = {"head": {"top": [(0, 1)]}}
    (free,) = head_effects(model, characters, SAMPLES, heads, progress=False)["head"]
    head = torch.nn.Linear(*reversed(model.lm_head.weight.shape))
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()[:3] = float("-inf")  # of no sample
    model.lm_head = head
    (found,) = head_effects(model, characters, SAMPLES, heads, progress=False)["head"]
    assert found.divergence == pytest.approx(free.divergence, rel=0.5)
    assert all(d > 0 for d in found.divergence)


def test_roles_survive_json(characters: object) -> None:
    examples = [Example(f"e{i}", f"u{i}", ({"text": "abc"},), "say", "yes") for i in range(2)]
    found = effects.measure_roles(shared(), characters, examples, {"head": HEADS}, progress=False)
    again = HeadRoles.from_dict(found.attention, json.loads(json.dumps(found.to_dict())))
    assert again == found and 0 < found.even < 1
    assert isinstance(found.attention, HeadScores)
    effect = found.effects["head"][0]
    assert Effect.from_dict(json.loads(json.dumps(asdict(effect)))) == effect


def test_a_sample_without_profile_is_refused(characters: object) -> None:
    with pytest.raises(DataError, match="no profile"):
        effects.measure_roles(
            shared(), characters, [Example("e", "u", (), "say", "yes")], {}, progress=False
        )
