"""Finding heads and intercepting attention: which models and backends, and what is left behind."""

from __future__ import annotations

import threading

import pytest
import torch
from support.models import ARCHITECTURES, BACKENDS, BASE, SHAPE, random_ids, shared, tiny
from support.reference import attentions, plain_logits
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaModel,
)

from prefheads.errors import ModelError, SteeringError
from prefheads.interventions import intercept as attention
from prefheads.interventions import masks
from prefheads.interventions.intercept import attention_backend, head_layout, intercept
from prefheads.interventions.masks import as_bias, masked_backend
from prefheads.scoring.scorer import Scorer
from prefheads.steering.context import steer

IDS = random_ids(12)


@pytest.mark.parametrize(("kind", "backend"), BACKENDS)
def test_heads_are_found(kind, backend) -> None:
    model = shared(kind, backend)
    layout = head_layout(model)
    assert layout.shape == SHAPE
    for index, layer in enumerate(layout.layers):
        assert attentions(model)[index] in set(layer.modules())
        assert attentions(model)[(index + 1) % 3] not in set(layer.modules())
    assert attention_backend(model) == backend
    assert model.config._attn_implementation == backend


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_interception_alone_changes_nothing(kind) -> None:
    model = shared(kind)
    plain = plain_logits(model, IDS)
    with intercept(model):
        assert torch.equal(plain_logits(model, IDS), plain)
    assert torch.equal(plain_logits(model, IDS), plain)


def test_the_probe_runs_once(monkeypatch) -> None:
    model = tiny("llama")
    probed = []
    probe = attention.probe_layout
    monkeypatch.setattr(attention, "probe_layout", lambda m: probed.append(m) or probe(m))
    assert head_layout(model) is head_layout(model)
    assert probed == [model]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_an_error(error) -> None:
    model = tiny("llama")
    plain = plain_logits(model, IDS)
    with pytest.raises(error), intercept(model):
        raise error
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert torch.equal(plain_logits(model, IDS), plain)
    with intercept(model):
        pass


def test_one_interception_at_a_time() -> None:
    model, refused = shared("llama"), []

    def elsewhere() -> None:
        try:
            with intercept(model):
                pass
        except SteeringError as error:
            refused.append(error)

    with intercept(model):
        with pytest.raises(SteeringError, match="already"), intercept(model):
            pass
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(refused) == 1
    elsewhere()
    assert len(refused) == 1


def test_a_backend_can_be_chosen_for_the_block() -> None:
    model = shared("llama", "eager")
    plain = plain_logits(model, IDS)
    with intercept(model, "sdpa"):
        assert attention_backend(model) == "sdpa"
        assert (plain_logits(model, IDS) - plain).abs().max() < 1e-4
    assert model.config._attn_implementation == "eager"


def test_other_models_of_the_same_kind_are_not_touched() -> None:
    one, other = tiny("llama", seed=1), tiny("llama", seed=2)
    plain = plain_logits(other, IDS)
    with steer(one, torch.ones(SHAPE), 3.0):
        assert torch.equal(plain_logits(other, IDS), plain)
        assert other.config._attn_implementation == "sdpa"


# -- models that cannot be handled ------------------------------------------------------------


def of_kind(kind: str, **changes):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **changes)).eval()


def t5():
    config = AutoConfig.for_model(
        "t5", vocab_size=97, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8
    )
    return AutoModelForSeq2SeqLM.from_config(config)


UNFIT = {
    "no model": lambda: torch.nn.Linear(2, 2),
    "none": lambda: None,
    "encoder-decoder": t5,
    "no language model": lambda: LlamaModel(tiny("llama").config),
    "state space": lambda: of_kind("mamba", vocab_size=97, hidden_size=32, num_hidden_layers=2),
    "mpt": lambda: of_kind("mpt", vocab_size=97, d_model=32, n_heads=4, n_layers=2),
    "bloom": lambda: of_kind("bloom", vocab_size=97, hidden_size=32, n_layer=2, n_head=4),
    "rows tied to the input": lambda: of_kind(
        "gpt_bigcode", vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64
    ),
    "rwkv": lambda: of_kind("rwkv", vocab_size=97, hidden_size=32, num_hidden_layers=2),
    "some layers without heads": lambda: of_kind(
        "recurrent_gemma",
        **{k: v for k, v in BASE.items() if k not in ("num_key_value_heads", "pad_token_id")},
    ),
    "encoder": lambda: of_kind("bert", **BASE),
    "a norm over heads": lambda: of_kind("bitnet", **BASE),
    "a norm over differences of heads": lambda: of_kind("diffllama", **BASE),
}


def settings(model) -> str | None:
    """Everything in a model's config, the choice of attention in its parts included."""
    return repr(vars(model.config)) if hasattr(model, "config") else None


@pytest.mark.parametrize("name", UNFIT)
def test_models_without_reachable_heads_are_refused(name) -> None:
    model = UNFIT[name]()
    state = settings(model)
    with pytest.raises(ModelError) as caught:
        head_layout(model)
    assert "\n" not in str(caught.value)
    with (
        pytest.raises(ModelError),
        steer(model, torch.ones(SHAPE), 1.0),
    ):
        pytest.fail("the block was entered")
    assert settings(model) == state


def test_layers_with_different_numbers_of_heads_are_refused() -> None:
    model = tiny("llama")
    wide = tiny("llama", num_attention_heads=8, head_dim=8).model.layers[1].self_attn
    wide.config = model.config
    model.model.layers[1].self_attn = wide
    with pytest.raises(ModelError, match="equally many heads"):
        head_layout(model)


def test_a_vector_that_is_not_one_a_head_is_refused(monkeypatch) -> None:
    model = tiny("llama")
    sdpa = AttentionInterface()["sdpa"]

    def merged(*args, **kwargs):
        out, weights = sdpa(*args, **kwargs)
        return out.flatten(2), weights

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", merged)
    with pytest.raises(ModelError, match="one vector a head"):
        head_layout(model)


@pytest.mark.parametrize("backend", ["flash_attention_2", "flash_attention_3", "some-kernel"])
def test_backends_that_take_no_bias_are_refused_for_the_profile(backend, monkeypatch) -> None:
    model = shared("llama")
    head_layout(model)
    monkeypatch.setattr(masks, "attention_backend", lambda _: backend)
    profile = torch.ones(1, 12, dtype=torch.bool)
    with (
        pytest.raises(ModelError, match=f"{backend}.*sdpa") as caught,
        steer(model, torch.ones(SHAPE), 1.0, target="profile", profile_mask=profile),
    ):
        pytest.fail("the block was entered")
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == "sdpa"


def test_flex_attention_has_an_exact_stand_in(monkeypatch) -> None:
    monkeypatch.setattr(masks, "attention_backend", lambda _: "flex_attention")
    assert masked_backend(shared("llama")) == "sdpa"
    assert masked_backend(shared("gemma2")) == "eager"  # has a soft cap
    monkeypatch.undo()
    assert masked_backend(shared("llama")) == "sdpa"
    assert masked_backend(shared("llama", "eager")) == "eager"


# -- masks ------------------------------------------------------------------------------------


def test_every_form_of_mask_becomes_the_same_bias() -> None:
    query, low = torch.zeros(1, 4, 2, 8), torch.finfo(torch.float32).min
    seen = torch.tensor([[True, True, True, False], [True, True, True, True]])[None, None]
    additive = torch.zeros(1, 1, 2, 4).masked_fill(~seen, low)
    for mask in (None, seen, additive, torch.nn.functional.pad(additive, (0, 3))):
        assert torch.equal(as_bias(mask, query, 2, 4), additive)
    half = as_bias(seen, query.bfloat16(), 2, 4)
    assert half.dtype == torch.bfloat16
    assert half.min() == torch.finfo(torch.bfloat16).min


def test_without_a_mask_spare_keys_at_the_end_are_not_seen() -> None:
    bias = as_bias(None, torch.zeros(1, 1, 2, 8), 1, 6)[0, 0]
    assert (bias == 0).tolist() == [[True, True, *[False] * 4], [True, True, True, *[False] * 3]]


def test_scoring_needs_no_mask_of_the_model_s_own() -> None:
    """A prompt without padding comes without a mask in sdpa; eager always writes one."""
    from support.models import random_encoded

    encoded, gains = random_encoded(), torch.rand(5, *SHAPE)
    found = []
    for backend in ("sdpa", "eager"):
        model = shared("llama", backend)
        with intercept(model, masked_backend(model)):
            found.append(Scorer(model, encoded, "response").nll(gains, "profile")[1])
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_two_threads_that_begin_with_a_new_model_are_right_or_refused() -> None:
    """The first use of a model probes it, which must not meet another thread's steering."""
    weights = torch.zeros(SHAPE)
    weights[1, 1] = 1
    for trial in range(12):
        model = tiny("llama", seed=trial)
        plain = model(IDS[None]).logits
        with torch.no_grad(), steer(tiny("llama", seed=trial), weights, 5.0) as steering:
            expected = steering.model(IDS[None], logits_to_keep=1).logits
        barrier, seen = threading.Barrier(2), []

        def work(model=model, barrier=barrier, seen=seen) -> None:
            barrier.wait()
            try:
                with torch.no_grad(), steer(model, weights, 5.0):
                    seen.append(model(IDS[None], logits_to_keep=1).logits)
            except SteeringError as refused:
                seen.append(refused)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results = [s for s in seen if isinstance(s, torch.Tensor)]
        assert len(seen) == 2 and results
        assert all(torch.allclose(logits, expected, atol=1e-5) for logits in results)
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model(IDS[None]).logits, plain)
