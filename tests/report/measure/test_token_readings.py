"""Texts read token by token: probabilities are those of full passes, plain and steered."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from support.models import SHAPE, random_encoded, shared
from support.reference import plain_logits, steered_logits
from support.saved import byte_tokenizer
from support.steered import each_way

from prefheads.data.encoding import pad_batch
from prefheads.report.measure.tokens import PromptTexts, Readings, pieces, trace
from prefheads.steering.context import steer
from prefheads.steering.generation import complete

WEIGHTS = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
GAMMA = 1.5


def steering(model, e, **how):
    return partial(steer, model, WEIGHTS, GAMMA, profile_mask=e.profile_mask, **how)


@each_way
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_probabilities_are_those_of_full_passes(kind, how, characters) -> None:
    model, e = shared(kind), random_encoded()
    tokens = trace(model, characters, e, steering(model, e, **how))
    ids, n = torch.cat([e.prompt_ids, e.response_ids]), len(e.prompt_ids)
    after = slice(n - 1, len(ids) - 1)
    plain = plain_logits(model, ids)[after].softmax(-1)
    steered = steered_logits(model, ids, n, WEIGHTS, GAMMA, profile=e.profile_mask, **how)
    steered = steered[after].softmax(-1)
    for i, (token, wanted) in enumerate(zip(tokens, e.response_ids.tolist(), strict=True)):
        assert token.plain == pytest.approx(float(plain[i, wanted]), abs=1e-5)
        assert token.steered == pytest.approx(float(steered[i, wanted]), abs=1e-5)
        assert token.plain_rank == 1 + int((plain[i] > plain[i, wanted]).sum())
        assert token.steered_first == characters.decode([int(steered[i].argmax())])
        assert token.changed == (plain[i].argmax() != steered[i].argmax())
    assert any(t.changed for t in tokens) or how["target"] == "profile"


def test_nothing_changes_without_steering(characters) -> None:
    tokens = trace(shared(), characters, random_encoded(), nullcontext)
    assert all(t.plain == t.steered and not t.changed for t in tokens)


def test_a_greedy_text_is_the_likeliest_token_by_token(characters) -> None:
    model, e = shared(), random_encoded()
    batch = pad_batch([e], 0)
    how = steering(model, e, mode="amplify")
    for side in ("plain", "steered"):
        with how() if side == "steered" else nullcontext():
            (done,) = complete(model, characters, batch, max_new_tokens=8, do_sample=False)
        written = torch.tensor(characters(done.text, add_special_tokens=False)["input_ids"])
        if characters.decode(written) != done.text or len(written) != 8:
            continue  # special tokens, which the text does not hold
        tokens = trace(model, characters, replace(e, response_ids=written), how)
        assert [getattr(t, f"{side}_rank") for t in tokens] == [1] * 8


@pytest.mark.parametrize("text", ["plain words", "naïve café", "smile 😀 on", "\n tabs\t"])
def test_pieces_are_the_whole_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == text and len(parts) == len(ids)
    assert "\ufffd" not in "".join(parts)


def test_readings_survive_json(characters) -> None:
    tokens = trace(shared(), characters, random_encoded(), nullcontext)
    one = PromptTexts("u", "say", {"plain": tokens, "steered": tokens[:2], "written": ()})
    found = Readings("dps", "contrast", 1, 2, (one,))
    assert Readings.from_dict(json.loads(json.dumps(asdict(found)))) == found
    assert one.differs and not replace(one, texts={"plain": tokens, "steered": tokens}).differs
