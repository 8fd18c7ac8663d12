"""Models that others have changed: linear layers with weights of their own making, and PEFT's
adapters."""

from __future__ import annotations

import peft
import pytest
import torch
from support.full_passes import EXACT, WAYS, ablated, assert_right
from support.matrix import gap
from support.models import shared, tiny
from support.people import people
from support.reference import plain_logits, steered_logits
from support.steered import (
    BATCH,
    EXAMPLES,
    PROFILE_MASK,
    PROFILES,
    PROMPTS,
    SOFT,
    assert_untouched,
    step_logits,
)
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers.generation.streamers import BaseStreamer

from prefheads import discover, response_nll, steer
from prefheads.errors import ModelError, SteeringError
from prefheads.interventions.intercept import intercept
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.cad import context_contrast
from prefheads.steering.dola import layer_contrast
from prefheads.steering.setting import Setting

both_modes = pytest.mark.parametrize("mode", ["contrast", "amplify"])
each_mode_and_target = pytest.mark.parametrize(("mode", "target"), WAYS)


# -- linear layers -----------------------------------------------------------------------------


def pruned(layer: nn.Linear) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.4)


def pruned_bias(layer: nn.Linear) -> None:
    layer.bias = nn.Parameter(torch.linspace(-1, 1, layer.out_features))
    prune.l1_unstructured(layer, "bias", amount=0.4)


KINDS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "weight norm by a hook": nn.utils.weight_norm,
    "pruned": pruned,
    "pruned bias": pruned_bias,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("where", [("q_proj",), ("o_proj",), ("gate_proj", "down_proj", "lm_head")])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_whose_weights_are_made_when_they_run(kind, where, characters) -> None:
    model = tiny("llama")
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in where:
            KINDS[kind](module)
    before = plain_logits(model, PROMPTS[0])
    assert gap(before, plain_logits(tiny("llama"), PROMPTS[0])) > 0.01 or "norm" in kind
    for mode, target in WAYS:
        assert_right(model, mode=mode, target=target)
    assert torch.equal(plain_logits(model, PROMPTS[0]), before)
    for method in ("exact", "screen"):
        scores = discover(
            model, characters, EXAMPLES[:1], method=method, candidates=1, progress=False
        )
        wanted = ablated(model, characters)
        assert (scores.values[0] - wanted).abs().max() < 1e-5


# -- PEFT --------------------------------------------------------------------------------------


def adapted(*names: str, **options):
    """A model with random LoRA adapters."""
    model = tiny("llama")
    targets = ["q_proj", "o_proj", "down_proj", "lm_head"]
    for name in names or ("default",):
        config = peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **options
        )
        if isinstance(model, peft.PeftModel):
            model.add_adapter(name, config)
        else:
            model = peft.get_peft_model(model, config, adapter_name=name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


@each_mode_and_target
def test_a_model_with_adapters_is_steered_as_it_is(mode, target) -> None:
    model = adapted()
    inner = model.base_model.model
    before = plain_logits(inner, PROMPTS[0])
    assert gap(before, plain_logits(shared("llama"), PROMPTS[0])) > 0.1
    assert_right(inner, caller=model, mode=mode, target=target)
    assert_right(inner, mode=mode, target=target)
    assert_untouched(inner, before)
    assert torch.equal(plain_logits(model, PROMPTS[0]), before)


def test_what_is_measured_is_the_model_with_its_adapters(characters) -> None:
    model = adapted()
    inner = model.base_model.model
    for method in ("exact", "screen"):
        how = {"method": method, "candidates": 0.5, "progress": False}
        found = discover(model, characters, EXAMPLES, **how)
        wanted = discover(inner, characters, EXAMPLES, **how)
        assert torch.equal(found.values, wanted.values) and found.info == wanted.info
    assert (found.values[0] - ablated(inner, characters))[found.values[0] != 0].abs().max() < 1e-5
    plain = response_nll(model, characters, EXAMPLES)
    assert torch.equal(plain, response_nll(inner, characters, EXAMPLES))
    with steer(model, SOFT, 1.5):
        steered = response_nll(model, characters, EXAMPLES)
        assert torch.equal(steered, response_nll(inner, characters, EXAMPLES))
    assert (steered - plain).abs().min() > 1e-3
    with steer(inner, SOFT, 1.5), pytest.raises(SteeringError, match="already"):
        discover(model, characters, EXAMPLES, progress=False)
    with steer(inner, SOFT, 1.5), pytest.raises(SteeringError, match="already"), intercept(model):
        pytest.fail("the block was entered")


def test_a_steerer_of_a_model_with_adapters(characters) -> None:
    model = adapted()
    inner = model.base_model.model
    settings = [Setting("top 8% by head PCS", "amplify", "head", 0.5)]
    options = {"settings": settings, "targets": ("head",), "min_samples": 1, "progress": False}
    examples = people()
    found, wanted = (
        PreferenceSteerer.fit(m, characters, iter(examples), 2, **options) for m in (model, inner)
    )
    assert torch.equal(found.scores["head"].values, wanted.scores["head"].values)
    assert found.calibration == wanted.calibration
    how = {"gamma": 0.8, "max_new_tokens": 6, "do_sample": False}
    for mode in ("contrast", "amplify"):
        texts = [
            s.generate("note 1", ({"text": "onions"},), mode=mode, **how) for s in (found, wanted)
        ]
        assert texts[0] == texts[1]


def test_other_contrasts_of_a_model_with_adapters() -> None:
    model, bare = adapted(), PROMPTS[1][None]
    inner = model.base_model.model
    plain = step_logits(model, PROMPTS[0])[1]
    for contrast in (
        lambda m: context_contrast(m, bare, torch.ones_like(bare)),
        lambda m: layer_contrast(m, plausibility=None),
    ):
        steps = []
        for m in (model, inner):
            with contrast(m):
                steps.append(step_logits(m, PROMPTS[0])[1])
        assert torch.equal(*steps) and gap(steps[0][:, 0], plain[:, 0]) > 0.01


def test_prompt_tuning_is_refused(characters) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny("llama"), config)
    for call in (
        lambda: steer(model, SOFT, 1.0).__enter__(),
        lambda: discover(model, characters, EXAMPLES, progress=False),
        lambda: response_nll(model, characters, EXAMPLES),
    ):
        with pytest.raises(ModelError, match="prompt and prefix tuning") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_adapters_of_each_row_are_amplified_and_not_contrasted() -> None:
    model, names = adapted("first", "second"), ["second", "__base__", "first"]
    inner = model.base_model.model
    how = {"adapter_names": names, "max_new_tokens": 4, "do_sample": False}
    plain, put = model.generate(**BATCH, **how), []

    class Recorder(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            put.append(value)

        def end(self) -> None:
            pass

    one = {name: x[:1] for name, x in BATCH.items()} | how | {"adapter_names": names[:1]}
    with steer(model, SOFT, 1.5), pytest.raises(SteeringError, match="adapter_names") as caught:
        model.generate(**one, streamer=Recorder())
    assert "\n" not in str(caught.value) and len(put) == 1  # the prompt
    for target in ("head", "profile"):
        with steer(model, SOFT, 1.5, mode="amplify", target=target, profile_mask=PROFILE_MASK):
            out = model.generate(**BATCH, **how, output_logits=True, return_dict_in_generate=True)
        for row, name in enumerate(names):
            if name != "__base__":
                model.set_adapter(name)
            alone = shared("llama") if name == "__base__" else inner
            new, n = out.sequences[row, 17:], len(PROMPTS[row])
            wanted = steered_logits(
                alone,
                torch.cat([PROMPTS[row], new[:-1]]),
                n,
                SOFT,
                1.5,
                mode="amplify",
                target=target,
                profile=PROFILES[row],
            )
            assert gap(torch.stack(out.logits, 1)[row], wanted[n - 1 :]) < EXACT
    assert torch.equal(model.generate(**BATCH, **how), plain)
