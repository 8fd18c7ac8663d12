"""Retrieval heads: the copy score, and decoding against the model without such heads (DeCoRe)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from support.models import SHAPE, SLIDING, shared, tiny
from support.reference import plain_logits
from support.steered import HARD, N_NEW, PROMPTS, assert_untouched, step_logits
from torch import nn

from prefheads.discovery import retrieval_scores
from prefheads.discovery.retrieval import needle_prompt
from prefheads.errors import DataError, SteeringError
from prefheads.evaluation.methods import Method
from prefheads.heads.weights import fingerprint
from prefheads.steering.context import steer

KINDS = ["llama", "mistral", "gemma2", "gemma3_text", "gpt_neox", "gpt2", "mixtral"]
LIMIT = 256


def naive_scores(model, prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy scores by a loop over heads and answer tokens."""
    model = copy.deepcopy(model)  # asked for weights, transformers leaves hooks of its own
    model.set_attn_implementation("eager")
    needle = prompt.needle.tolist()
    ids = prompt.ids.tolist() + needle
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    scores = torch.zeros(SHAPE)
    for layer in range(SHAPE[0]):
        for head in range(SHAPE[1]):
            for i, token in enumerate(needle):
                weights = out.attentions[layer][0, head, len(prompt.ids) + i - 1].tolist()
                place = weights.index(max(weights))
                if prompt.start <= place < prompt.end and ids[place] == token:
                    scores[layer, head] += 1 / len(needle)
    predicting = out.logits[0, len(prompt.ids) - 1 : -1]
    return scores, nn.functional.cross_entropy(predicting, prompt.needle)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_a_loop_over_tokens_and_heads(kind, characters) -> None:
    model = tiny(kind, sliding_window=150) if kind in SLIDING else shared(kind)
    before = plain_logits(model, PROMPTS[0])
    scores = retrieval_scores(model, characters, n_prompts=4, seed=5, progress=False)
    for i in range(4):
        values, nll = naive_scores(model, needle_prompt(characters, i, 5, LIMIT))
        assert (scores.values[i] - values).abs().max() < 1e-6
        assert (scores.nll[i] - nll).abs() < 1e-4
    assert scores.values.max() > 0
    assert_untouched(model, before)


def planted(distance: int):
    """A model whose head (1, 2) attends to the token so far back, whatever the tokens are.

    Its query and key are constant, so their product depends on the distance only, and all
    frequencies of the rotary embedding agree at this one.
    """
    model = tiny("qwen2", num_key_value_heads=4)
    attention, size = model.model.layers[1].self_attn, 8
    rows = slice(2 * size, 3 * size)
    angles = distance * model.model.rotary_emb.inv_freq
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[rows] = 0
        attention.q_proj.bias[rows] = 50 * torch.cat([angles.cos(), -angles.sin()])
        attention.k_proj.bias[rows] = torch.cat([torch.ones(4), torch.zeros(4)])
    return model


@pytest.mark.parametrize("seed", [0, 1])
def test_a_head_that_copies_is_found(seed, characters) -> None:
    prompt = needle_prompt(characters, 0, seed, LIMIT)
    model = planted(len(prompt.ids) - 1 - prompt.start)
    scores = retrieval_scores(model, characters, n_prompts=1, seed=seed, progress=False)
    (layer, head, first, _), (_, _, second, _) = scores.ranked()[:2]
    assert (layer, head) == (1, 2)
    assert first == 1
    assert second < 0.3
    assert scores.top(k=1).values.nonzero().tolist() == [[1, 2]]


def test_a_head_that_looks_beside_the_needle_has_not_copied(characters) -> None:
    prompt = needle_prompt(characters, 0, 0, LIMIT)
    model = planted(len(prompt.ids) - prompt.start)  # each time the token before
    scores = retrieval_scores(model, characters, n_prompts=1, progress=False)
    assert scores.mean[1, 2] < 0.2  # letters that happen to come twice


def test_prompts_hide_one_needle_at_many_depths_and_lengths(characters) -> None:
    needles, lengths, places = set(), [], []
    for i in range(15):
        prompt = needle_prompt(characters, i, 0, LIMIT)
        text = characters.decode(prompt.ids).replace("}", "\n")  # the unknown character
        needle = characters.decode(prompt.needle)
        assert text.count(needle) == 1
        assert needle.endswith(".")
        assert needle.split()[0] in text.splitlines()[-1]  # the question names its person
        assert len(prompt.ids) + len(prompt.needle) <= LIMIT
        needles.add(needle)
        lengths.append(len(prompt.ids))
        notes = text.splitlines()[:-2]
        places.append(notes.index(needle) / (len(notes) - 1))
    assert len(needles) == 15
    assert len(set(lengths)) > 3
    assert {0.0, 1.0} <= set(places)
    again = needle_prompt(characters, 3, 0, LIMIT)
    assert torch.equal(again.ids, needle_prompt(characters, 3, 0, LIMIT).ids)
    assert not torch.equal(again.ids, needle_prompt(characters, 3, 1, LIMIT).ids)


def test_a_chat_template_changes_the_prompt_not_the_needle(characters) -> None:
    chat = copy.deepcopy(characters)
    chat.chat_template = (
        "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    prompt, plain = needle_prompt(chat, 0, 0, 512), needle_prompt(characters, 0, 0, LIMIT)
    assert chat.decode(prompt.needle) == characters.decode(plain.needle)
    assert chat.decode(prompt.ids).startswith("<s>[user]")


def test_where_scores_come_from(characters, tmp_path) -> None:
    model = shared("llama")
    scores = retrieval_scores(model, characters, n_prompts=3, seed=2, progress=False)
    assert (scores.info.task, scores.info.method, scores.info.seed) == ("retrieval", "copy", 2)
    assert scores.info.fingerprint == fingerprint(model.config)
    assert scores.shape == (3, *SHAPE)
    again = retrieval_scores(model, characters, n_prompts=3, seed=2, progress=False)
    assert scores == again
    scores.save(tmp_path / "scores.safetensors")
    assert type(scores).load(tmp_path / "scores.safetensors", model) == scores


def test_refusals(characters) -> None:
    with pytest.raises(DataError, match="n_prompts"):
        retrieval_scores(shared("llama"), characters, n_prompts=0)
    short = tiny("llama", max_position_embeddings=160)
    with pytest.raises(DataError, match="too short"):
        retrieval_scores(short, characters, progress=False)
    model = shared("llama")
    with steer(model, HARD, 1.0), pytest.raises(SteeringError, match="already"):
        retrieval_scores(model, characters, n_prompts=1, progress=False)


# -- DeCoRe ------------------------------------------------------------------------------------


@contextmanager
def without_queries(model, heads) -> Iterator[None]:
    """The heads' queries are zero where the model's own projection makes them, as DeCoRe's authors
    have it: RoPE leaves them zero, and what is looked for is nothing."""

    def hook_for(layer):
        def hook(module, args, out):
            n = model.config.num_attention_heads
            query = out.reshape(*out.shape[:2], n, -1).clone()
            query[:, :, [h for at, h in heads if at == layer]] = 0
            return query.reshape(out.shape)

        return hook

    hooks = [
        layer.self_attn.q_proj.register_forward_hook(hook_for(i))
        for i, layer in enumerate(model.model.layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def decoded_as_its_authors_do(model, prompt, heads, cap, n_new):
    """Token by token, one text: all but the last token of the prompt is encoded as it is, the cache
    is copied, and from then on both models go on with their own."""
    encoded = model(input_ids=prompt[None, :-1], use_cache=True).past_key_values
    own, other = encoded, copy.deepcopy(encoded)
    last, tokens, scores = prompt[-1:], [], []
    for _ in range(n_new):
        log_p = model(input_ids=last[None], past_key_values=own).logits[0, -1].log_softmax(-1)
        with without_queries(model, heads):
            out = model(input_ids=last[None], past_key_values=other)
        log_masked = out.logits[0, -1].log_softmax(-1)
        strength = float(-(log_p.exp() * log_p).sum())
        strength = strength if cap is None else min(strength, cap)
        scores.append(((1 + strength) * log_p - strength * log_masked).log_softmax(-1))
        last = scores[-1].argmax()[None]
        tokens.append(int(last))
    return tokens, torch.stack(scores)


@pytest.mark.parametrize("cap", [None, 1.2])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "qwen2", "qwen3"])
def test_decore(kind, cap) -> None:
    model = shared(kind)
    heads = [tuple(head) for head in HARD.nonzero().tolist()]
    wanted = [decoded_as_its_authors_do(model, p, heads, cap, N_NEW) for p in PROMPTS]
    with steer(model, HARD, 1.0, target="query", schedule="entropy", cap=cap):
        new, logits = step_logits(model)
        alone = [step_logits(model, prompt) for prompt in PROMPTS]
    for row, (tokens, scores) in enumerate(wanted):
        assert new[row] == tokens == alone[row][0][0]
        for found in (logits[row], alone[row][1][0]):
            assert (found.log_softmax(-1) - scores).abs().max() < 1e-4
    with steer(model, HARD, 1.0, schedule="entropy", cap=cap, scope="all"):
        removed, _ = step_logits(model)  # zero ablation, everywhere: something else
    assert removed != new


def test_decore_is_the_default_of_the_method() -> None:
    setting = Method.parse("decore").setting(None)
    assert (setting.target, setting.schedule, setting.gamma, setting.cap) == (
        "query", "entropy", 1.0, None
    )  # fmt: skip
    assert Method.parse("decore").options["scope"] == "response"
    assert Method.parse("decore:target=head:scope=all").setting(None).target == "head"
