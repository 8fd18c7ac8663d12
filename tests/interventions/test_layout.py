"""Where a model keeps its heads: found, named by the user, or refused in one line."""

from __future__ import annotations

import inspect

import peft
import pytest
import torch
from support.families import tiny_family
from support.full_passes import WAYS, ablated, assert_right
from support.models import BACKENDS, BASE, SHAPE, shared, tiny
from support.reference import attentions
from support.steered import EXAMPLES, SOFT
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaModel,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from prefheads import discover, set_layers
from prefheads.errors import ModelError
from prefheads.interventions import intercept as attention
from prefheads.interventions.hooks import attention_backend
from prefheads.interventions.intercept import head_layout
from prefheads.steering.context import steer


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


def test_the_probe_runs_once(monkeypatch) -> None:
    model = tiny("llama")
    probed = []
    probe = attention.probe_layout
    monkeypatch.setattr(attention, "probe_layout", lambda m: probed.append(m) or probe(m))
    assert head_layout(model) is head_layout(model)
    assert probed == [model]


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


# -- layers that are not marked --


def unmarked(kind: str):
    """A model whose code does not say which modules are its layers."""
    model = tiny(kind)
    stock = {"llama": LlamaDecoderLayer, "gpt2": GPT2Block}[kind]
    foreign = type("Block", (nn.Module,), {"forward": inspect.unwrap(stock.forward)})
    for module in model.modules():
        if type(module) is stock:
            module.__class__ = foreign
    return model


@pytest.mark.parametrize(("kind", "path"), [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_layers_that_are_not_marked_can_be_named(kind, path, characters) -> None:
    model = unmarked(kind)
    for call in (
        lambda: steer(model, SOFT, 1.0).__enter__(),
        lambda: discover(model, characters, EXAMPLES, progress=False),
    ):
        with pytest.raises(ModelError, match=r"prefheads\.set_layers") as caught:
            call()
        assert "\n" not in str(caught.value)
    for wrong in ("no.such.path", path + ".0", path + ".7", "lm_head", "", [], [nn.Linear(2, 2)]):
        with pytest.raises(ModelError) as caught:
            set_layers(model, wrong)
        assert "\n" not in str(caught.value)
    for layers in (path, list(model.get_submodule(path))):
        set_layers(model, layers)
        for mode, target in WAYS:
            assert_right(model, mode=mode, target=target)
        scores = discover(model, characters, EXAMPLES[:1], progress=False)
        assert (scores.values[0] - ablated(model, characters)).abs().max() < 1e-5


def test_layers_may_be_named_anew() -> None:
    model = unmarked("llama")
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    set_layers(peft.get_peft_model(model, config), "model.layers")
    assert_right(model)
    set_layers(model, [layer.mlp for layer in model.model.layers])
    with pytest.raises(ModelError, match="does not mark"):
        head_layout(model)
    set_layers(model, [model.model])
    with pytest.raises(ModelError, match="several attentions"):
        head_layout(model)
    with pytest.raises(ModelError, match="in one another"):
        set_layers(model, [model.model, *model.model.layers])


def test_a_family_that_does_not_mark_its_layers(characters) -> None:
    model = tiny_family("ctrl")
    with pytest.raises(ModelError, match=r"prefheads\.set_layers"):
        head_layout(model)
    set_layers(model, "transformer.h")
    weights = torch.rand(4, 4, generator=torch.Generator().manual_seed(3))
    for mode, target in WAYS:
        assert_right(model, weights, mode=mode, target=target)


def test_attention_that_is_out_of_reach_stays_so() -> None:
    model = tiny_family("bloom")
    set_layers(model, "transformer.h")
    with pytest.raises(ModelError, match="no attention heads behind"):
        head_layout(model)
