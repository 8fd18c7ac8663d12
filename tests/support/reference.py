"""Slow, obvious references: one full forward pass for everything, no cache, no batching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.pytorch_utils import Conv1D

from prefheads.data.encoding import Encoded

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
def gains_on_attention(
    model: PreTrainedModel, gains: Tensor, start: int, profile: Tensor | None
) -> Iterator[None]:
    """Attention written out: the weights on profile keys are multiplied before normalising; or,
    without a profile, the products of queries and keys.

    A head that is left with nothing to look at reads nothing.
    gains: (n_layers, n_heads); profile: (batch, n_keys) bool. Queries from start on.
    """

    def attention(module, query, key, value, mask, scaling=None, softcap=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = query @ key.transpose(2, 3) * scale
        gain = gains[module.layer_idx].view(1, -1, 1, 1).to(scores.dtype)
        if profile is None:
            scores = torch.cat([scores[:, :, :start], gain * scores[:, :, start:]], 2)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores + mask
        weight = (scores - scores.amax(-1, keepdim=True)).exp()
        factor = torch.ones_like(weight)
        if profile is not None:
            n = weight.shape[-1]
            factor[:, :, start:] = torch.where(profile[:, None, None, :n], gain, 1.0)
        weight = weight * factor
        weight = (weight / weight.sum(-1, keepdim=True)).nan_to_num(0)
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
def gained(
    model: PreTrainedModel, gains: Tensor, target: str, start: int, profile: Tensor
) -> Iterator[None]:
    if target == "head":
        with gains_before_projection(model, gains, start):
            yield
    else:
        with gains_on_attention(model, gains, start, profile if target == "profile" else None):
            yield


@torch.no_grad()
def plain_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits (n, vocab) of one sequence (n,)."""
    return model(input_ids=ids[None], use_cache=False).logits[0].float()


def gained_logits(
    model: PreTrainedModel,
    ids: Tensor,
    n_prompt: int,
    gains: Tensor,
    target: str,
    scope: str,
    profile: Tensor | None,
) -> Tensor:
    """Logits (n, vocab) of one sequence under gains (n_layers, n_heads); profile: (n_prompt,)."""
    columns = torch.zeros(1, len(ids), dtype=torch.bool)
    if profile is not None:
        columns[0, :n_prompt] = profile
    with gained(model, gains, target, n_prompt - 1 if scope == "response" else 0, columns):
        return plain_logits(model, ids)


def response_loss(logits: Tensor, encoded: Encoded) -> Tensor:
    """Mean NLL of the response under the logits (n, vocab) of prompt and response.

    In double precision: torch's float32 log-softmax over a whole vocabulary can be 2e-5 off.
    """
    predicting = logits[len(encoded.prompt_ids) - 1 : -1].double()
    return nn.functional.cross_entropy(predicting, encoded.response_ids).float()


def naive_nll(
    model: PreTrainedModel,
    encoded: Encoded,
    gains: Tensor,
    target: str = "head",
    scope: str = "response",
) -> Tensor:
    """Mean response NLL by one full forward pass under gains (n_layers, n_heads)."""
    ids = torch.cat([encoded.prompt_ids, encoded.response_ids])
    n = len(encoded.prompt_ids)
    logits = gained_logits(model, ids, n, gains, target, scope, encoded.profile_mask)
    return response_loss(logits, encoded)


def steered_logits(
    model: PreTrainedModel,
    ids: Tensor,
    n_prompt: int,
    weights: Tensor,
    gamma: float,
    *,
    mode: str = "contrast",
    target: str = "head",
    scope: str = "response",
    suppression: float = 1.0,
    profile: Tensor | None = None,
) -> Tensor:
    """Eq. 8 by two full passes, or amplification by one. Logits (n, vocab) of a sequence (n,).

    Only those from the last prompt token on are steered in scope "response".
    """
    gains = 1 + gamma * weights if mode == "amplify" else 1 - suppression * weights
    changed = gained_logits(model, ids, n_prompt, gains, target, scope, profile)
    if mode == "amplify":
        return changed
    return (1 + gamma) * plain_logits(model, ids) - gamma * changed


def next_logits(
    model: PreTrainedModel, prompt: Tensor, weights: Tensor, gamma: float, **how: object
) -> Callable[[list[int]], Tensor]:
    """A function that gives the steered logits (vocab,) after the prompt and some new tokens."""

    def after(new: list[int]) -> Tensor:
        ids = torch.cat([prompt, torch.tensor(new, dtype=torch.long)])
        return steered_logits(model, ids, len(prompt), weights, gamma, **how)[-1]

    return after


def greedy(after: Callable[[list[int]], Tensor], n_new: int) -> list[int]:
    """Greedy decoding in a plain loop."""
    new: list[int] = []
    for _ in range(n_new):
        new.append(int(after(new).argmax()))
    return new


def beam_search(
    after: Callable[[list[int]], Tensor], n_new: int, n_beams: int
) -> list[tuple[float, list[int]]]:
    """Beams of a fixed length, best first: (sum of log-probabilities, tokens)."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(n_new):
        grown = [
            (score + log_p, [*tokens, token])
            for score, tokens in beams
            for token, log_p in enumerate(after(tokens).log_softmax(-1).tolist())
        ]
        beams = sorted(grown, reverse=True)[:n_beams]
    return beams
