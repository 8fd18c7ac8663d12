"""Steering on every family: what comes out, against full passes in which nothing is shared.

A cell is one way to steer one family. Its logits are compared, relative to the largest, with those
of full passes of single texts, without a cache, in which the attention function itself is replaced
by one with gains.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache as remembered
from typing import Any
from unittest.mock import patch

import torch
from support.families import tiny_family
from support.models import left_padded, random_encoded, random_ids
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from prefheads.errors import PrefheadsError
from prefheads.interventions.intercept import head_layout, intercept, masked_backend
from prefheads.scoring.scorer import Scorer
from prefheads.steering.context import steer

N_NEW = 4
LENGTHS = (20, 13, 17)  # of prompts, longer and shorter than two windows
PROMPTS = [random_ids(n, seed=n) for n in LENGTHS]
PROFILES = [torch.arange(n).ge(n - 9) & torch.arange(n).lt(n - 3) for n in LENGTHS]
GAMMAS = (1.5, 0.7, 1.0)
EXACT = 5e-4  # of the largest logit, in float32
# A model whose own cached, padded or static decoding is farther than this from its full passes
# cannot tell right from wrong: there steering by next to nothing must be that decoding.
OWN = 2e-3


@dataclass(frozen=True)
class Cell:
    """One way to steer one family."""

    kind: str
    attention: str
    cache: str
    mode: str
    target: str
    scope: str
    batch: bool

    def __str__(self) -> str:
        return "-".join(map(str, list(asdict(self).values())[:-1])) + ("-batch" * self.batch)


WAYS = [
    dict(zip(("attention", "cache", "mode", "target", "scope", "batch"), way, strict=True))
    for way in itertools.product(
        ("sdpa", "eager"),
        ("dynamic", "static"),
        ("contrast", "amplify"),
        ("head", "profile"),
        ("response", "all"),
        (True, False),
    )
]
PAPER = {
    "cache": "dynamic",
    "mode": "contrast",
    "target": "head",
    "scope": "response",
    "batch": True,
}


class Unavailable(Exception):
    """Transformers does not offer this itself."""


class Refused(Exception):
    """The project says in one line why not."""


@remembered
def model_of(kind: str, attention: str | None) -> PreTrainedModel:
    try:
        return tiny_family(kind, attention)
    except ValueError as error:
        raise Unavailable(str(error)) from None


def default_attention(kind: str) -> str:
    """sdpa where the family has it."""
    try:
        model_of(kind, "sdpa")
    except Unavailable:
        return "eager"
    return "sdpa"


def shape_of(model: PreTrainedModel) -> tuple[int, int]:
    try:
        return head_layout(model).shape
    except PrefheadsError as error:
        assert "\n" not in str(error)
        raise Refused(str(error)) from None


def maps_of(model: PreTrainedModel, batch: bool) -> Tensor:
    """Maps (B, L, H): soft, sparse, and one that begins in the middle."""
    n_layers, n_heads = shape_of(model)
    maps = torch.rand(3, n_layers, n_heads, generator=torch.Generator().manual_seed(3))
    maps[1] *= maps[1] > 0.7
    maps[2, : n_layers // 2] = 0
    return maps if batch else maps[:1]


# -- references --------------------------------------------------------------------------------


def full_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits (n, vocab) of one text, at the positions that generate() gives its tokens."""
    options: dict[str, Any] = {"input_ids": ids[None], "use_cache": False}
    options["attention_mask"] = torch.ones_like(ids[None])
    if "position_ids" in inspect.signature(model.forward).parameters:
        options["position_ids"] = torch.arange(len(ids))[None]
    with torch.no_grad():
        return model(**options).logits[0].float()


@contextmanager
def gained(
    model: PreTrainedModel, gains: Tensor, target: str, start: int, profile: Tensor
) -> Iterator[None]:
    """Attention with gains (L, H) at queries from start on; profile: (n,) bool, of all keys."""
    layers = {module: i for i, module in enumerate(head_layout(model).attentions)}
    stock = AttentionInterface.get_interface

    def get_interface(self, name, default):
        inner = stock(self, name, default)

        def attention(module, query, key, value, attention_mask, **kwargs):
            if module not in layers:
                return inner(module, query, key, value, attention_mask, **kwargs)
            gain = gains[layers[module]]
            if target == "query":
                query = query.clone()
                query[:, :, start:] *= gain[:, None, None].to(query.dtype)
                return inner(module, query, key, value, attention_mask, **kwargs)
            out, weights = inner(module, query, key, value, attention_mask, **kwargs)
            if target == "head":
                out = out.clone()
                out[:, start:] *= gain[:, None].to(out.dtype)
                return out.contiguous(), weights
            n = query.shape[2]
            seen = torch.zeros(1, 1, n, n)
            low = torch.finfo(torch.float32).min
            if attention_mask is None:
                seen = seen.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), low)
            elif attention_mask.dtype == torch.bool:
                seen = seen.masked_fill(~attention_mask, low)
            else:
                seen = attention_mask.clamp_min(low)
            log_gain = torch.where(profile, gain.log()[None, :, None, None], 0.0)
            log_gain = log_gain.expand(-1, -1, n, -1).clone()
            log_gain[:, :, :start] = 0
            late, _ = inner(module, query, key, value, (seen + log_gain).clamp_min(low), **kwargs)
            sees = seen > low / 2
            blind = sees.any(-1) & ~(sees & log_gain.isfinite()).any(-1)
            late = late.masked_fill(blind.expand(-1, query.shape[1], -1).mT[..., None], 0)
            return torch.cat([out[:, :start], late[:, start:]], 1), weights

        return attention

    with patch.object(AttentionInterface, "get_interface", get_interface):
        yield


def wanted_logits(
    model: PreTrainedModel, row: int, ids: Tensor, weights: Tensor, gamma: float, cell: Cell
) -> Tensor:
    """Steered logits (n_new, vocab) that predict the tokens after a prompt."""
    n = LENGTHS[row]
    gains = 1 + gamma * weights if cell.mode == "amplify" else 1 - weights
    profile = torch.cat([PROFILES[row], torch.zeros(len(ids) - n, dtype=torch.bool)])
    start = n - 1 if cell.scope == "response" else 0
    with gained(model, gains, cell.target, start, profile):
        changed = full_logits(model, ids)[n - 1 :]
    if cell.mode == "amplify":
        return changed
    return (1 + gamma) * full_logits(model, ids)[n - 1 :] - gamma * changed


# -- what comes out ----------------------------------------------------------------------------


def generated(model: PreTrainedModel, cell: Cell, **options: Any) -> tuple[Tensor, Tensor]:
    """New tokens (B, n_new), and their logits (B, n_new, vocab) before processors."""
    rows = PROMPTS if cell.batch else PROMPTS[:1]
    inputs = {"input_ids": left_padded(rows)}
    inputs["attention_mask"] = left_padded([torch.ones_like(p) for p in rows])
    if cell.cache == "static":
        options |= {"cache_implementation": "static", "disable_compile": True}
    out = model.generate(
        **inputs,
        max_new_tokens=N_NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1).float()


def text(row: int, new: Tensor) -> Tensor:
    return torch.cat([PROMPTS[row], new[:-1]])


def gap(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@remembered
def own_gap(kind: str, attention: str, cache: str, batch: bool) -> float:
    """How far the model's own decoding is from its full passes."""
    model = model_of(kind, attention)
    cell = Cell(kind, attention, cache, "amplify", "head", "all", batch)
    try:
        new, logits = generated(model, cell)
    except Exception as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from None
    rows = (
        gap(x, full_logits(model, text(i, new[i]))[LENGTHS[i] - 1 :]) for i, x in enumerate(logits)
    )
    return max(rows)


def error_of(cell: Cell) -> float:
    """How far the steered logits of a cell are from the right ones, relative to the largest.

    Raises:
        Unavailable: Transformers does not do it without steering.
        Refused: The project refuses it.
    """
    model = model_of(cell.kind, cell.attention)
    maps = maps_of(model, cell.batch)
    own = own_gap(cell.kind, cell.attention, cell.cache, cell.batch)
    gammas = torch.tensor(GAMMAS[: len(maps)])
    profile = left_padded(PROFILES if cell.batch else PROFILES[:1], False)
    how = {"mode": cell.mode, "target": cell.target, "scope": cell.scope, "profile_mask": profile}
    tiny = torch.full_like(gammas, 1e-6)
    try:
        if own > OWN:
            _, wanted = generated(model, cell)
            with steer(model, maps, tiny, **how):
                _, logits = generated(model, cell)
            return gap(logits[:, 0], wanted[:, 0])
        with steer(model, maps, gammas, **how):
            new, logits = generated(model, cell)
    except PrefheadsError as error:
        assert "\n" not in str(error)
        raise Refused(str(error)) from None
    rows = (
        wanted_logits(model, i, text(i, new[i]), maps[i], GAMMAS[i], cell) for i in range(len(maps))
    )
    return max(gap(x, wanted) for x, wanted in zip(logits, rows, strict=True))


def limit_of(cell: Cell) -> float:
    """What rounding explains: that of the model's own decoding, amplified by the contrast."""
    own = own_gap(cell.kind, cell.attention, cell.cache, cell.batch)
    return OWN if own > OWN else max(EXACT, 10 * own)


def pcs_error(kind: str, attention: str, target: str, scope: str) -> float:
    """How far the NLL under ablations and other gains is from that of full passes, in nats."""
    model = model_of(kind, attention)
    n_layers, n_heads = shape_of(model)
    encoded = random_encoded(20, 5, slice(11, 17))
    gains = torch.ones(5, n_layers, n_heads)
    gains[0, 0, 1] = gains[1, n_layers - 1, 0] = gains[2, 1, 2] = 0
    gains[3] = torch.rand(n_layers, n_heads, generator=torch.Generator().manual_seed(1)) * 2
    ids = torch.cat([encoded.prompt_ids, encoded.response_ids])
    profile = torch.cat([encoded.profile_mask, torch.zeros(5, dtype=torch.bool)])
    try:
        with intercept(model, masked_backend(model)):
            _, found = Scorer(model, encoded, scope).nll(gains, target)
    except PrefheadsError as error:
        assert "\n" not in str(error)
        raise Refused(str(error)) from None
    wanted = []
    for gain in gains:
        with gained(model, gain, target, 19 if scope == "response" else 0, profile):
            logits = full_logits(model, ids)[19:-1].double()
        wanted.append(torch.nn.functional.cross_entropy(logits, encoded.response_ids).float())
    return float((found - torch.stack(wanted)).abs().max())
