"""What steering and discovery leave behind, and the states in which they may find a model: a
trainer's, inference mode, other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from support.families import tiny_family
from support.matrix import gap
from support.models import random_ids, shared, tiny
from support.reference import steered_logits
from support.states import registries, steps_of
from support.steered import EXAMPLES, PROMPTS, SOFT, generate, step_logits
from transformers import modeling_utils

from prefheads import discover, response_from, response_nll, steer
from prefheads.errors import DataError, ModelError
from prefheads.interventions.intercept import head_layout

EXACT = 5e-5  # of the largest logit
both_modes = pytest.mark.parametrize("mode", ["contrast", "amplify"])


# -- what a model is told of its attention -----------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@both_modes
def test_a_model_knows_its_attention_by_the_same_name(attention, mode) -> None:
    model = shared("llama", attention)
    for target in ("head", "profile"):
        profile = torch.ones(17).bool()
        with steer(model, SOFT, 1.5, mode=mode, target=target, profile_mask=profile):
            assert model.config._attn_implementation == attention
            names = {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}
            assert names == {attention}
            generate(model, PROMPTS[0], n_new=2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa"])
@both_modes
def test_models_that_choose_by_that_name_are_as_they_were(kind, attention, mode) -> None:
    """They attend to chosen tokens only, which they do in another way for each attention."""
    model = tiny_family(kind, attention)
    prompt = random_ids(20, seed=1)
    plain = steps_of(model, prompt)
    weights = torch.ones(head_layout(model).shape)
    with steer(model, weights, 1e-6, scope="all", mode=mode):
        assert gap(steps_of(model, prompt), plain) < EXACT
    with steer(model, weights, 1.0, scope="all", mode=mode):
        assert gap(steps_of(model, prompt), plain) > 0.01


@both_modes
@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("minimax_m3_vl_text", "sdpa"),
        ("minimax_m3_vl_text", "eager"),
        ("deepseek_v4", "eager"),
        ("falcon_h1", "sdpa"),
        ("falcon_h1", "eager"),
    ],
)
def test_nothing_of_it_stays_in_a_registry(kind, attention, mode) -> None:
    model, prompt = tiny_family(kind, attention), random_ids(20, seed=1)
    before, beams = registries(), {"num_beams": 3, "max_new_tokens": 4}
    plain = model.generate(prompt[None], **beams)
    weights = torch.ones(head_layout(model).shape)
    for target in ("head",) if kind == "deepseek_v4" else ("head", "profile"):
        how = {"mode": mode, "target": target, "profile_mask": torch.ones(20).bool()}
        with steer(model, weights, 1.0, **how):
            model.generate(prompt[None], **beams)
        assert registries() == before
        with pytest.raises(KeyError), steer(model, weights, 1.0, **how):
            model.generate(prompt[None], **beams)
            raise KeyError
        assert registries() == before
    assert model.generate(prompt[None], **beams).equal(plain)


def test_attention_of_one_s_own_in_a_registry_stays_there(monkeypatch) -> None:
    functions, seen = modeling_utils.ALL_ATTENTION_FUNCTIONS, []
    sdpa = functions["sdpa"]

    def own(*args, **kwargs):
        seen.append(1)
        return sdpa(*args, **kwargs)

    monkeypatch.setitem(functions._local_mapping, "sdpa", own)
    model, before = shared("llama"), registries()
    with steer(model, SOFT, 1.5, mode="amplify"):
        logits = steps_of(model, n_new=1)
    assert seen and registries() == before
    wanted = steered_logits(model, PROMPTS[0], 17, SOFT, 1.5, mode="amplify")
    assert gap(logits, wanted[-1:]) < EXACT


@pytest.mark.parametrize("pair", [("sdpa", "eager"), ("sdpa", "sdpa"), ("eager", "eager")])
@both_modes
def test_two_models_in_two_threads_that_end_one_after_the_other(pair, mode) -> None:
    models = [tiny("llama", attention, seed=i) for i, attention in enumerate(pair)]
    gammas, steps, before = (1.5, 0.7), [], registries()
    begin, left = threading.Barrier(2, timeout=60), threading.Event()

    def work(i: int) -> None:
        with steer(models[i], SOFT, gammas[i], mode=mode):
            begin.wait()
            steps.extend((i, *step_logits(models[i], PROMPTS[i])) for _ in range(3))
            if i:
                left.wait(60)
                steps.append((i, *step_logits(models[i], PROMPTS[i])))
        left.set()

    in_threads([lambda: work(0), lambda: work(1)])
    assert len(steps) == 7
    for i, (new,), (logits,) in steps:
        n, ids = len(PROMPTS[i]), torch.cat([PROMPTS[i], torch.tensor(new[:-1])])
        wanted = steered_logits(models[i], ids, n, SOFT, gammas[i], mode=mode)
        assert gap(logits, wanted[n - 1 :]) < EXACT
    assert registries() == before


def in_threads(work: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=w) for w in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


# -- training mode -----------------------------------------------------------------------------


def flags(model) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.fixture(params=["llama", "gpt2", "gemma3_text"])
def in_training(request):
    """A model as a trainer leaves it, with one part that was kept from training."""
    dropout = {} if request.param == "gpt2" else {"attention_dropout": 0.5}
    model = tiny(request.param, **dropout)
    model.gradient_checkpointing_enable()
    model.train()
    model.get_output_embeddings().eval()
    return model


@pytest.mark.parametrize("target", ["head", "profile"])
@pytest.mark.parametrize("scope", ["response", "all"])
def test_heads_found_in_training_mode_are_those_of_evaluation(
    in_training, scope, target, characters
) -> None:
    model, before = in_training, flags(in_training)
    how = {"scope": scope, "target": target, "progress": False}
    found = [discover(model, characters, EXAMPLES, **how) for _ in range(2)]
    screened = discover(model, characters, EXAMPLES, method="screen", candidates=1, **how)
    assert flags(model) == before and any(before) and not all(before)
    wanted = discover(model.eval(), characters, EXAMPLES, **how)
    assert torch.equal(found[0].values, found[1].values)
    for scores in (*found, screened):
        assert (scores.values - wanted.values).abs().max() < 1e-5
        assert (scores.nll - wanted.nll).abs().max() < 1e-5


@both_modes
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_steering_in_training_mode_is_that_of_evaluation(
    in_training, gamma, mode, characters
) -> None:
    model, before = in_training, flags(in_training)
    plain = response_nll(model, characters, EXAMPLES)
    assert flags(model) == before
    with steer(model, SOFT, gamma, mode=mode):
        steps = steps_of(model)
        nll = response_nll(model, characters, EXAMPLES)
    assert flags(model) == before
    model.eval()
    assert (plain - response_nll(model, characters, EXAMPLES)).abs().max() < 1e-5
    with steer(model, SOFT, gamma, mode=mode):
        assert gap(steps, steps_of(model)) < EXACT
        assert (nll - response_nll(model, characters, EXAMPLES)).abs().max() < 1e-5


def test_training_goes_on_after_an_error(in_training, characters) -> None:
    model, before = in_training, flags(in_training)
    with pytest.raises(KeyError), steer(model, SOFT, 1.5):
        assert not any(flags(model))
        raise KeyError
    assert flags(model) == before

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    hook = model.get_output_embeddings().register_forward_pre_hook(interrupt)
    for work in (discover, response_nll):
        with pytest.raises(KeyboardInterrupt):
            work(model, characters, EXAMPLES)
        assert flags(model) == before
    hook.remove()
    assert not any(m._forward_pre_hooks for m in model.modules())


# -- inference mode ----------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["response", "all"])
def test_discovery_in_inference_mode(scope, characters) -> None:
    how = {"scope": scope, "progress": False}
    wanted = discover(shared("llama"), characters, EXAMPLES, **how)
    for model in (shared("llama"), tiny("llama")):  # looked at before, and not
        with torch.inference_mode():
            found = discover(model, characters, EXAMPLES, **how)
        assert (found.values - wanted.values).abs().max() < 1e-5
        assert (found.nll - wanted.nll).abs().max() < 1e-5


def test_screening_in_inference_mode(characters) -> None:
    """Where the model itself was made in it, there are no gradients."""
    how = {"method": "screen", "candidates": 0.25, "progress": False}
    wanted = discover(shared("llama"), characters, EXAMPLES, **how)
    model = tiny("llama")
    with torch.inference_mode():
        found = discover(model, characters, EXAMPLES, **how)
        born = tiny("llama")
        with pytest.raises(ModelError, match="'exact'") as caught:
            discover(born, characters, EXAMPLES, **how)
        exact = discover(born, characters, EXAMPLES, progress=False)
    assert "\n" not in str(caught.value)
    measured = wanted.values != 0
    for scores in (found, exact):
        assert (scores.values - wanted.values)[measured].abs().max() < 1e-5


@both_modes
@pytest.mark.parametrize("target", ["head", "profile"])
def test_steering_in_inference_mode(target, mode, characters) -> None:
    how = {"mode": mode, "target": target, "profile_mask": torch.arange(17) < 9}
    model = tiny("llama")
    with torch.inference_mode():
        with steer(model, SOFT, 1.5, **how):
            (new,), (logits,) = step_logits(model, PROMPTS[0])
            with response_from(9):
                whole = model(input_ids=PROMPTS[0][None]).logits[0]
        with steer(model, SOFT, 1.5, mode=mode):
            nll = response_nll(model, characters, EXAMPLES)
    how["profile"] = how.pop("profile_mask")
    ids = torch.cat([PROMPTS[0], torch.tensor(new[:-1])])
    assert gap(logits, steered_logits(model, ids, 17, SOFT, 1.5, **how)[16:]) < EXACT
    how["profile"] = how["profile"][:9]
    assert gap(whole, steered_logits(model, PROMPTS[0], 9, SOFT, 1.5, **how)) < EXACT
    with steer(model, SOFT, 1.5, mode=mode):  # the same model, outside of it
        assert (nll - response_nll(model, characters, EXAMPLES)).abs().max() < 1e-5


@both_modes
@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("target", ["head", "profile"])
def test_a_block_in_which_inference_mode_comes_and_goes(target, scope, mode) -> None:
    model, ids, profile = tiny("llama"), PROMPTS[0][None], torch.arange(17) < 9
    how = {"mode": mode, "target": target, "scope": scope}
    with steer(model, SOFT, 1.5, profile_mask=profile, **how):
        with torch.inference_mode():
            steps_of(model)
            cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
            model(input_ids=ids[:, :1], past_key_values=cache)
        with torch.no_grad():
            after = model(input_ids=ids[:, 1:2], past_key_values=cache).logits[0]
        logits = model(input_ids=ids, logits_to_keep=1).logits[0]  # keeps track of gradients
    assert logits.requires_grad
    text = torch.cat([PROMPTS[0], PROMPTS[0][:2]])
    wanted = steered_logits(model, text, 17, SOFT, 1.5, profile=profile, **how)
    assert gap(logits.detach(), wanted[16:17]) < EXACT
    assert gap(after, wanted[18:]) < EXACT


# -- examples that come one by one -------------------------------------------------------------


@pytest.mark.parametrize("reference", [None, "other-profile"])
@pytest.mark.parametrize("method", ["exact", "screen"])
def test_examples_may_come_from_an_iterator(method, reference, characters) -> None:
    model, examples = shared("llama"), [e for e in EXAMPLES if e.profile]
    how = {"method": method, "reference": reference, "candidates": 0.5, "progress": False}
    wanted = discover(model, characters, examples, **how)
    for some in (iter(examples), (e for e in examples), tuple(examples)):
        found = discover(model, characters, some, **how)
        assert torch.equal(found.values, wanted.values)
        assert found.example_ids == wanted.example_ids and found.info == wanted.info
    with pytest.raises(DataError, match="no examples"):
        discover(model, characters, iter(()), **how)
