"""Stock generation under steering, against plain loops of full forward passes."""

from __future__ import annotations

import pytest
import torch
from support.models import (
    ARCHITECTURES,
    SHAPE,
    shared,
    tiny,
)
from support.reference import (
    greedy,
    next_logits,
    plain_logits,
)
from support.steered import (
    BATCH,
    HARD,
    HOW,
    N_NEW,
    PROFILE_MASK,
    PROFILES,
    PROMPTS,
    SOFT,
    ZERO,
    assert_steered,
    assert_untouched,
    each_way,
    expected,
    generate,
    step_logits,
)
from transformers import DynamicCache

from prefheads.data.encoding import encode
from prefheads.data.example import Example
from prefheads.heads.weights import HeadWeights
from prefheads.steering.context import steer


@each_way
@pytest.mark.parametrize(
    ("kind", "attention"),
    [(kind, None) for kind in ARCHITECTURES] + [(k, "eager") for k in ("llama", "gemma3_text")],
)
def test_generation_equals_full_passes(kind, attention, how) -> None:
    model = shared(kind, attention)
    before = plain_logits(model, PROMPTS[0])
    plain = generate(model)
    with steer(model, SOFT, 1.5, suppression=0.8, profile_mask=PROFILE_MASK, **how):
        batch, logits = step_logits(model)
    with steer(model, HARD, 2.0, profile_mask=PROFILES[1], **how):
        (alone,), (alone_logits,) = step_logits(model, PROMPTS[1])
    for row in range(3):
        settings = {"suppression": 0.8, "profile": PROFILES[row], **how}
        assert_steered(model, PROMPTS[row], batch[row], logits[row], SOFT, 1.5, **settings)
    assert_steered(model, PROMPTS[1], alone, alone_logits, HARD, 2.0, profile=PROFILES[1], **how)
    assert batch != plain
    assert_untouched(model, before)


@pytest.mark.parametrize("how", [HOW[0], HOW[3]], ids=lambda how: "-".join(how.values()))
def test_greedy_equals_a_plain_loop(how) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
        new = generate(model)
    assert new == [expected(model, row, SOFT, 1.5, **how) for row in range(3)]


@each_way
def test_users_of_a_batch_have_their_own_heads_and_strength(how) -> None:
    model = shared("llama")
    gammas = torch.tensor([1.0, 2.0, 0.5])
    with steer(model, torch.stack([HARD, ZERO, SOFT]), gammas, profile_mask=PROFILE_MASK, **how):
        new, logits = step_logits(model)
    assert new[0] == expected(model, 0, HARD, 1.0, **how)
    assert new[2] == expected(model, 2, SOFT, 0.5, **how)
    plain, plain_steps = step_logits(model)
    assert new[1] == plain[1]
    assert (logits[1] - plain_steps[1]).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_one_map_with_a_strength_for_each_user(mode) -> None:
    model = shared("llama")
    with steer(model, SOFT, [0.0, 1.0, 2.0], mode=mode):
        new = generate(model)
    assert new[0] == generate(model)[0]
    assert new[1:] == [expected(model, row, SOFT, float(row), mode=mode) for row in (1, 2)]


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_heads_of_any_layer(layer, row) -> None:
    """The branches part at the first layer with a head in it."""
    model = shared("llama")
    weights = HeadWeights.from_heads(SHAPE, [(layer, 1), (layer, 2)])
    with steer(model, weights, 3.0):
        new = generate(model)[row]
    assert new == expected(model, row, weights.values, 3.0)


@each_way
def test_a_prompt_of_one_token(how) -> None:
    model, prompt = shared("llama"), torch.tensor([50])
    profile = torch.ones(1, dtype=torch.bool)
    with steer(model, SOFT, 1.0, profile_mask=profile, **how):
        new = generate(model, prompt)
    assert new == [greedy(next_logits(model, prompt, SOFT, 1.0, profile=profile, **how), N_NEW)]


@each_way
def test_input_embeddings_in_place_of_ids(how) -> None:
    model = shared("llama")
    embedded = model.get_input_embeddings()(BATCH["input_ids"])
    with torch.no_grad(), steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
        new = model.generate(
            inputs_embeds=embedded,
            attention_mask=BATCH["attention_mask"],
            max_new_tokens=N_NEW,
            do_sample=False,
        )
    assert new.tolist() == [expected(model, row, SOFT, 1.5, **how) for row in range(3)]


@each_way
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_static_cache_gives_the_same_tokens(kind, how) -> None:
    model = shared(kind)
    assert generate(model, cache_implementation="static") == generate(model)
    with steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
        static = generate(model, n_new=12, cache_implementation="static")
        assert static == generate(model, n_new=12)
    with steer(model, SOFT, 1.5, profile_mask=PROFILES[1][-5:], **how):
        static = generate(model, PROMPTS[1][-5:], n_new=12, cache_implementation="static")
        assert static == generate(model, PROMPTS[1][-5:], n_new=12)


@each_way
def test_a_cache_that_grows_its_layers_as_it_goes(how) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5, profile_mask=PROFILES[0], **how):
        new = generate(model, PROMPTS[0], past_key_values=DynamicCache())
    assert new == [expected(model, 0, SOFT, 1.5, **how)]


@each_way
def test_a_prompt_in_chunks(how) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
        new = generate(model, prefill_chunk_size=4)
    assert new == [expected(model, row, SOFT, 1.5, **how) for row in range(3)]


class PackedLinear(torch.nn.Module):
    """A linear layer whose weights are kept as 8-bit integers, as quantised models keep them."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.packed.to(x.dtype) * self.scale.to(x.dtype)).T


@each_way
def test_quantised_layers(how) -> None:
    model = tiny("llama")
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, PackedLinear(child))
    with steer(model, SOFT, 1.5, profile_mask=PROFILES[0], **how):
        (new,), (logits,) = step_logits(model, PROMPTS[0])
    assert_steered(model, PROMPTS[0], new, logits, SOFT, 1.5, profile=PROFILES[0], **how)


@each_way
def test_no_cache_is_needed(how) -> None:
    model = shared("llama")
    with steer(model, SOFT, 1.5, profile_mask=PROFILES[0], **how):
        new = generate(model, PROMPTS[0], use_cache=False)
    assert new == [expected(model, 0, SOFT, 1.5, **how)]


@pytest.mark.parametrize("target", ["head", "profile"])
@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_bfloat16_is_close(mode, target) -> None:
    model, full = tiny("llama").to(torch.bfloat16), shared("llama")
    with steer(model, SOFT, 0.5, mode=mode, target=target, profile_mask=PROFILES[0]):
        new, half = step_logits(model, PROMPTS[0])
    how = {"mode": mode, "target": target, "profile": PROFILES[0]}
    after = next_logits(full, PROMPTS[0], SOFT, 0.5, **how)
    logits = torch.stack([after(new[0][:step]) for step in range(N_NEW)])
    assert (half[0].float() - logits).abs().mean() < 0.05 * logits.std()


@pytest.mark.bundled
@each_way
def test_bundled_generation_equals_full_passes(bundled_model, how) -> None:
    model, tokenizer = bundled_model
    weights = torch.zeros(30, 9)
    weights[3, 1] = weights[14, 6] = weights[29, 0] = 1
    encoded = encode(tokenizer, Example("x", "u", ({"text": "Rain. Splendid."},), "Next: ", "a"))
    prompt, profile = encoded.prompt_ids, encoded.profile_mask
    with steer(model, weights, 1.0, profile_mask=profile, **how):
        new, logits = step_logits(model, prompt, n_new=3)
    after = next_logits(model, prompt, weights, 1.0, profile=profile, **how)
    for step in range(len(new[0])):
        assert (logits[0, step] - after(new[0][:step])).abs().max() < 1e-3
    assert new == [greedy(after, len(new[0]))]


# -- models that a library has wrapped ---------------------------------------------------------


@each_way
@pytest.mark.parametrize("offload", ["hooks", "cpu", "disk"])
def test_models_dispatched_by_accelerate(offload, how, tmp_path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = tiny("llama")
    wanted = [expected(model, row, SOFT, 1.5, **how) for row in range(3)]
    before = plain_logits(model, PROMPTS[0])
    if offload == "hooks":
        accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    elif offload == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    wrapped = model.forward
    with steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK, **how):
        assert generate(model) == wanted
    assert model.forward is wrapped
    assert torch.equal(plain_logits(model, PROMPTS[0]), before)
