"""Slow, obvious references: one full forward pass for everything, no cache, no batching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.pytorch_utils import Conv1D

OUTPUT_PROJECTIONS = ("o_proj", "dense", "c_proj")


def attentions(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Attention modules by layer: those that have an output projection and a layer index."""
    return {
        m.layer_idx: m
        for m in model.modules()
        if hasattr(m, "layer_idx") and any(hasattr(m, name) for name in OUTPUT_PROJECTIONS)
    }


def output_projection(attention: nn.Module) -> nn.Linear | Conv1D:
    return next(getattr(attention, n) for n in OUTPUT_PROJECTIONS if hasattr(attention, n))


@contextmanager
def gains_before_projection(model: PreTrainedModel, gains: Tensor, start: int) -> Iterator[None]:
    """Multiply each head's slice of the output projection's input, at positions from start on.

    gains: (n_layers, n_heads).
    """

    def hook_for(layer: int):
        def hook(module, args):
            x = args[0]
            per_head = x.reshape(*x.shape[:2], gains.shape[1], -1).clone()
            per_head[:, start:] *= gains[layer][:, None].to(x.dtype)
            return (per_head.reshape(x.shape),)

        return hook

    hooks = [
        output_projection(a).register_forward_pre_hook(hook_for(layer))
        for layer, a in attentions(model).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def gains_on_profile(
    model: PreTrainedModel, gains: Tensor, start: int, profile: Tensor
) -> Iterator[None]:
    """Attention written out: the weights on profile keys are multiplied before normalising.

    gains: (n_layers, n_heads); profile: (batch, n_keys) bool. Queries from start on.
    """

    def attention(module, query, key, value, mask, scaling=None, softcap=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = query @ key.transpose(2, 3) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores + mask
        weight = (scores - scores.amax(-1, keepdim=True)).exp()
        factor = torch.ones_like(weight)
        n = weight.shape[-1]
        gain = gains[module.layer_idx].view(1, -1, 1, 1).to(weight.dtype)
        factor[:, :, start:] = torch.where(profile[:, None, None, :n], gain, 1.0)
        weight = weight * factor
        weight = weight / weight.sum(-1, keepdim=True)
        return (weight @ value).transpose(1, 2), weight

    AttentionInterface.register("reference", attention)
    AttentionMaskInterface.register("reference", AttentionMaskInterface()["eager"])
    old = model.config._attn_implementation
    model.set_attn_implementation("reference")
    try:
        yield
    finally:
        model.set_attn_implementation(old)


@contextmanager
def gained(model, gains, target, start, profile):
    if target == "head":
        with gains_before_projection(model, gains, start):
            yield
    else:
        with gains_on_profile(model, gains, start, profile):
            yield


@torch.no_grad()
def naive_nll(model, encoded, gains, target="head", scope="response") -> Tensor:
    """Mean response NLL by one full forward pass under gains (n_layers, n_heads)."""
    n = len(encoded.prompt_ids)
    ids = torch.cat([encoded.prompt_ids, encoded.response_ids])
    profile = torch.zeros(1, len(ids), dtype=torch.bool)
    profile[0, :n] = encoded.profile_mask
    start = n - 1 if scope == "response" else 0
    with gained(model, gains, target, start, profile):
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
    return nn.functional.cross_entropy(logits[n - 1 : -1], encoded.response_ids)


@torch.no_grad()
def two_pass_logits(model, ids, gains, gamma, mode, target, start, profile) -> Tensor:
    """Combined next-token logits (vocab,) of one unpadded sequence, by full forward passes."""
    with gained(model, gains, target, start, profile):
        changed = model(input_ids=ids[None], use_cache=False).logits[0, -1].float()
    if mode == "amplify":
        return changed
    plain = model(input_ids=ids[None], use_cache=False).logits[0, -1].float()
    return (1 + gamma) * plain - gamma * changed


def two_pass_greedy(
    model, prompt, weights, gamma, n_new, *, mode="contrast", target="head", scope="response",
    suppression=1.0, profile=None,
) -> list[int]:
    """Greedy decoding of one unpadded prompt (P,) in a plain loop without any cache."""
    gains = 1 + gamma * weights if mode == "amplify" else 1 - suppression * weights
    start = len(prompt) - 1 if scope == "response" else 0
    ids, new = prompt, []
    for _ in range(n_new):
        columns = torch.zeros(1, len(ids), dtype=torch.bool)
        if profile is not None:
            columns[0, : len(prompt)] = profile
        logits = two_pass_logits(model, ids, gains, gamma, mode, target, start, columns)
        new.append(int(logits.argmax()))
        ids = torch.cat([ids, torch.tensor(new[-1:])])
    return new
