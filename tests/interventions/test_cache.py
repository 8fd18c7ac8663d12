"""The KV cache of two branches: one copy of the prompt where that is possible, twice the rows
elsewhere, and always what two stock caches would hold."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from support.calls import attention_call
from support.models import shared, tiny
from support.steered import HARD, N_NEW, PROFILE_MASK, PROMPTS, SOFT, each_way, generate
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from prefheads.errors import SteeringError
from prefheads.interventions import cache as branches
from prefheads.interventions.cache import BranchedLayer, CachedPrompt, fork_cache
from prefheads.steering.context import steer

N = 5  # tokens of the prompt
PLAIN = {"mode": "contrast", "target": "head", "scope": "response"}


def drawn(generator: torch.Generator, rows: int, n: int) -> tuple[Tensor, Tensor]:
    keys, values = torch.randn(2, rows, 2, n, 4, generator=generator)
    return keys, values


def both(cache: DynamicCache) -> tuple[Tensor, Tensor]:
    """All keys and values of both branches."""
    layer = cache.layers[0]
    if not isinstance(layer, BranchedLayer):
        return layer.keys, layer.values
    prompt = (torch.cat([x, x]) for x in (layer.keys, layer.values))
    own = layer.own_keys, layer.own_values
    keys, values = (torch.cat(x, 2) for x in zip(prompt, own, strict=True))
    return keys, values


@pytest.mark.parametrize("share", [True, False])
def test_a_forked_layer_holds_what_a_stock_layer_of_both_holds(share, monkeypatch) -> None:
    """Also after crops, reordering, selection and repetition; what is shared seldom moves."""
    monkeypatch.setattr(branches, "ROOM", 3)
    generator = torch.Generator().manual_seed(0)
    stock, ours = DynamicCache(), DynamicCache()
    first = drawn(generator, 2, N)
    ours.update(*first, 0)
    stock.update(*(torch.cat([x, x]) for x in first), 0)
    fork_cache(ours, 0, 2, share=share)
    assert isinstance(ours.layers[0], BranchedLayer) == share
    fork_cache(ours, 0, 2, share=share)  # once is enough
    ours = copy.deepcopy(ours)
    where, rows = set(), 4
    for step in range(20):
        new = drawn(generator, rows, 1 + step % 2)
        ours.update(*new, 0), stock.update(*new, 0)
        layer = ours.layers[0]
        where.add(layer.own_keys.data_ptr() if share else 0)
        if step in (4, 9):
            ours.crop(-2), stock.crop(-2)
        if step == 7:
            ours.reorder_cache(torch.tensor([1, 0]))
            stock.reorder_cache(torch.tensor([1, 0, 3, 2]))
        if step == 11 and share:
            ours.batch_repeat_interleave(2), stock.batch_repeat_interleave(2)
            rows = 8
        if step == 13:
            ours.batch_select_indices(torch.tensor([1]))
            stock.batch_select_indices(torch.tensor([1, 1 + rows // 2]))
            rows = 2
        for found, wanted in zip(both(ours), both(stock), strict=True):
            assert torch.equal(found, wanted)
        assert ours.get_seq_length() == stock.get_seq_length()
        assert ours.get_mask_sizes(1, 0) == stock.get_mask_sizes(1, 0)
    assert len(where) < 14


def test_cropping_reaches_into_the_prompt_and_a_reset_forgets_it() -> None:
    generator = torch.Generator().manual_seed(0)
    cache = DynamicCache()
    prompt = drawn(generator, 2, N)
    cache.update(*prompt, 0)
    fork_cache(cache, 0, 2, share=True)
    cache.update(*drawn(generator, 4, 3), 0)
    layer = cache.layers[0]
    layer.crop(6)  # older releases of transformers name what is left
    assert cache.get_seq_length() == 6 and layer.own_keys.shape[2] == 1
    cache.crop(-2)
    assert cache.get_seq_length() == 4 and torch.equal(layer.keys, prompt[0][:, :, :4])
    cache.reset()
    assert cache.get_seq_length() == 0
    new = drawn(generator, 4, 2)
    assert torch.equal(cache.update(*new, 0)[0], new[0])


def test_the_prompt_is_held_once() -> None:
    """Below the fork one row a text, above it new tokens for two; no copy of the prompt."""
    model, keys = shared("llama"), []

    class Watched(DynamicCache):
        def update(self, key, value, layer_idx, *args, **kwargs):
            keys.append(key.shape[2])
            return super().update(key, value, layer_idx, *args, **kwargs)

    cache = Watched()
    with steer(model, HARD, 1.5):
        generate(model, past_key_values=cache, n_new=4)
    assert keys[:3] == [17, 17, 17] and set(keys[3:]) == {1}  # encoded once, then token by token
    below, *above = cache.layers
    assert len(below.keys) == 3 and below.keys.shape[2] == 16 + 4
    for layer in above:
        assert isinstance(layer, BranchedLayer)
        assert layer.keys.shape[0] == 3 and layer.keys.shape[2] == 16
        assert layer.own_keys.shape[0] == 6 and layer.own_keys.shape[2] == 4


@each_way
@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3"])
def test_one_copy_gives_the_logits_of_two(kind, how, monkeypatch) -> None:
    model, seen = shared(kind), []
    options = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 6}
    options |= {"do_sample": False, "input_ids": torch.stack([PROMPTS[0], PROMPTS[0].flip(0)])}
    for share in (True, False):
        monkeypatch.setattr(
            "prefheads.steering.answer.SteeredForward._shares", lambda *_, s=share: s
        )
        with steer(model, SOFT, 1.5, profile_mask=PROFILE_MASK[:2], **how):
            seen.append(torch.stack(model.generate(**options).logits))
    assert (seen[0] - seen[1]).abs().max() < 1e-4


def test_layers_that_cannot_share_hold_twice_the_rows() -> None:
    """Sliding windows; attention other than sdpa; gradients."""
    for model in (shared("mistral"), shared("llama", "eager")):
        cache = DynamicCache(config=model.config)
        with steer(model, SOFT, 1.5):
            generate(model, past_key_values=cache)
        assert not any(isinstance(layer, BranchedLayer) for layer in cache.layers)
        assert all(len(layer.keys) == 6 for layer in cache.layers)
    model, cache = tiny(), DynamicCache()
    with steer(model, SOFT, 1.5):
        model(input_ids=PROMPTS[0][None], past_key_values=cache, logits_to_keep=1)
    assert not any(isinstance(layer, BranchedLayer) for layer in cache.layers)


def test_layers_that_are_not_forked_share_nothing() -> None:
    cache, call = DynamicCache(), attention_call(*torch.empty(3, 1, 2, 1, 4))
    assert CachedPrompt(cache).prompt_kv(call) is None
    cache.update(*drawn(torch.Generator(), 1, 2), 0)
    assert CachedPrompt(cache).prompt_kv(call) is None


@pytest.mark.parametrize("share", [True, False])
def test_a_cache_goes_with_its_generation(share) -> None:
    """No cycle of references keeps keys and values until Python looks for such."""
    cache = DynamicCache()
    cache.update(*drawn(torch.Generator(), 2, N), 0)
    fork_cache(cache, 0, 2, share=share)
    layer = weakref.ref(cache.layers[0])
    del cache
    assert layer() is None


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("mode", ["contrast", "amplify"])
def test_the_cache_of_another_steering_is_refused(kind, mode) -> None:
    model, cache = shared(kind), DynamicCache(config=shared(kind).config)
    with steer(model, HARD, 1.5):
        generate(model, PROMPTS[0], past_key_values=cache)
    longer = torch.cat([PROMPTS[0], torch.arange(5, 5 + N_NEW)])
    with pytest.raises(SteeringError, match="another steering"), steer(model, SOFT, 1, mode=mode):
        generate(model, longer, past_key_values=cache)


def test_an_unsteered_call_on_a_forked_cache_is_refused() -> None:
    model, cache = shared("llama"), DynamicCache()
    with steer(model, HARD, 1.5):
        generate(model, PROMPTS[0], past_key_values=cache)
    with pytest.raises(SteeringError, match="fresh cache"):
        model(input_ids=PROMPTS[0][None, :1], past_key_values=cache)


def test_a_filled_layer_of_another_kind_is_refused() -> None:
    """A quantised one, for example, whose numbers are not what it seems to hold."""

    class OtherLayer(DynamicLayer):
        pass

    cache = DynamicCache()
    cache.update(*drawn(torch.Generator(), 2, N), 0)
    cache.layers[0].__class__ = OtherLayer
    with pytest.raises(SteeringError, match="filled OtherLayer"):
        fork_cache(cache, 0, 2, share=True)


@pytest.mark.parametrize("share", [True, False])
def test_what_a_graph_or_inference_mode_holds_is_not_written_into(share) -> None:
    generator, cache = torch.Generator().manual_seed(0), DynamicCache()
    prompt = drawn(generator, 2, N)
    with torch.inference_mode():
        cache.update(*(x.clone() for x in prompt), 0)
        fork_cache(cache, 0, 2, share=share)
        cache.update(*drawn(generator, 4, 1), 0)
    for _ in range(3):
        cache.update(*drawn(generator, 4, 1), 0)
    keys, _ = drawn(generator, 4, 1)
    keys.requires_grad_()
    held, _ = cache.update(keys, keys, 0)
    cache.update(*drawn(generator, 4, 1), 0)
    held.square().sum().backward()
    assert torch.allclose(keys.grad, 2 * keys)
    assert cache.get_seq_length() == N + 6
