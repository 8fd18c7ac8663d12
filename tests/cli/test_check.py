"""The self-test: right on models that are right, and it sees what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from support.families import tiny_family
from support.models import character_tokenizer, tiny

import prefheads as ph
from prefheads.errors import ModelError
from prefheads.interventions.branching import BranchedForward
from prefheads.interventions.shared_prompt import RecordedPrompt
from prefheads.selftest.check import check
from prefheads.steering.setting import Steering


def wrong(found: ph.Check) -> list[str]:
    return [finding.what for finding in found.findings if not finding.right]


@pytest.mark.parametrize(
    ("kind", "attention"), [("llama", "sdpa"), ("qwen2", "sdpa"), ("gemma3_text", "eager")]
)
def test_right_models_pass(kind, attention) -> None:
    found = check(tiny(kind, attention), character_tokenizer(), progress=False)
    assert found.right and not wrong(found)
    assert len(found.findings) > 25
    assert all(f.difference is not None for f in found.findings)
    assert max(f.difference for f in found.findings) < 5e-5
    assert (found.shape, found.dtype, found.attention) == ((3, 4), "float32", attention)
    assert found.noise < 1e-5


def test_half_precision_passes_within_its_noise() -> None:
    found = check(tiny().bfloat16(), character_tokenizer(), progress=False)
    assert found.right and found.noise > 1e-4


def test_a_mask_that_is_not_the_call_s_own_is_seen(monkeypatch) -> None:
    """The fault of masks made for a whole call: the last token looks at empty slots."""
    late = RecordedPrompt._late

    def blind(self, mask, end):
        begin, rows = late(self, mask, end)
        return begin, None if rows is None else torch.ones_like(rows)

    monkeypatch.setattr(RecordedPrompt, "_late", blind)
    found = check(tiny(), character_tokenizer(), progress=False)
    assert any("contrast head, response, dynamic, padded" in what for what in wrong(found))
    assert not any("amplify" in what for what in wrong(found))


def test_gains_that_are_too_small_are_seen(monkeypatch) -> None:
    scaled = BranchedForward._scaled
    monkeypatch.setattr(
        BranchedForward,
        "_scaled",
        lambda self, out, gain, *means: scaled(self, out, gain**0.9, *means),
    )
    rows = Steering.rows
    monkeypatch.setattr(Steering, "rows", lambda self, x, n: rows(self, x.flip(0), n))
    found = check(tiny(), character_tokenizer(), progress=False)
    assert any(what.startswith("full passes: contrast head") for what in wrong(found))
    assert any(what.startswith("full passes: amplify head") for what in wrong(found))


def test_what_is_left_is_seen(monkeypatch) -> None:
    model = tiny()
    run = RecordedPrompt.attend

    def leave(self, call):
        call.module.prefheads_step = None
        return run(self, call)

    monkeypatch.setattr(RecordedPrompt, "attend", leave)
    (left,) = [
        f for f in check(model, character_tokenizer(), progress=False).findings if "left" in f.what
    ]
    assert not left.right and "self_attn" in left.note


def test_models_that_are_refused_are_refused() -> None:
    with pytest.raises(ModelError, match="together"):
        check(tiny_family("bitnet"), character_tokenizer(), progress=False)


def test_the_command(cli, tiny_folder, monkeypatch) -> None:
    shown = cli("check", "--model", tiny_folder)
    assert shown.code == 0
    assert "All right." in shown.out and "left on the model" in shown.out
    found = json.loads(cli("check", "--model", tiny_folder, "--json").out)
    assert found["right"] and found["shape"] == [3, 4]
    assert {"what", "difference", "limit", "note"} == set(found["findings"][0])
    scaled = BranchedForward._scaled
    monkeypatch.setattr(
        BranchedForward,
        "_scaled",
        lambda self, out, gain, *means: scaled(self, out, gain * 1.1, *means),
    )
    off = cli("check", "--model", tiny_folder)
    assert off.code == 1 and "WRONG" in off.out


def test_bad_input(cli, tiny_folder) -> None:
    for options in (("--model", "/no/such/model"), ("--model", tiny_folder, "--attention", "no")):
        result = cli("check", *options)
        assert (result.code, result.out) == (2, "")
        assert len(result.err.splitlines()) == 1
