"""Attention of rows that share prompts: the keys and values of a prompt are read once for all.

Rows of a prompt lie side by side in the query axis, and each sees the prompt and its own tokens.
Attention to the two is computed separately and merged by the log-sum-exp (LSE) of their scores,
which is exact, and no row's queries meet another row's keys. That is done for the two branches of a
generation, which have few queries and many keys, and for many branches of one text where torch has
a kernel that returns the LSE. Elsewhere the rows of one prompt go through the backend as one row
under a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer

from prefheads.interventions.hooks import AttentionCall, AttentionHook, AttentionOutput

Once = Callable[[Callable[[], Any]], Any]
Part = Callable[[Tensor, tuple[Tensor, Tensor], Tensor | None, float], tuple[Tensor, Tensor]]
LSE_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"  # private to torch
FEW = 16  # queries, or keys, of a row up to which plain torch computes them


class SharedPrompt(Protocol):
    """Prompts that rows share: row ``r`` goes on from prompt ``r`` modulo their number.

    Attributes:
        per_row: Whether each row has masks and positions of its own.
    """

    per_row: bool

    def prompt_kv(self, call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the prompts in a layer, ``(prompts, kv_heads, n_prompt, d)``; None if
        rows do not share them there."""

    def mask(self, call: AttentionCall) -> Tensor | None:
        """The mask of a layer, for the prompt's keys and the new ones."""


class NewTokensCache(Cache):
    """A cache for passes whose attention gets the prompt of ``n_past`` tokens from elsewhere: it
    returns new keys and values as they are, and keeps them."""

    def __init__(self, n_past: int, n_layers: int) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(n_layers)])
        self.n_past = n_past
        self.new: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, (rows, kv_heads, n, d)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new keys and values unchanged."""
        self.new[layer_idx] = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the prompt."""
        return self.n_past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Tokens that a mask is to cover, and the first of them."""
        return self.n_past + query_length, 0


class RecordedPrompt(AttentionHook):
    """Records, in a clean run of a whole text, what branches need that run its last tokens only:
    the hidden states that entered each layer, and the keys and values that attention read.

    Args:
        start: The first position of the call that branches run.
        n_past: Tokens that the cache holds before the call.
        first: The first layer in which there are branches.
        per_row: Whether rows have masks of their own; not so where all branches are of one text.

    Attributes:
        layer_inputs: What entered each layer at the positions that branches run, ``(B, n, d)``.
    """

    def __init__(
        self, start: int, n_past: int = 0, first: int = 0, *, per_row: bool = False
    ) -> None:
        self.start, self.n_past, self.first, self.per_row = start, n_past, first, per_row
        self.layer_inputs: dict[int, Tensor] = {}
        self._read: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._masks: dict[int, tuple[Tensor, int, Tensor]] = {}

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Record the layer's input."""
        if index >= self.first:
            # Copied, so that the rest of a long prompt does not stay in memory.
            self.layer_inputs[index] = hidden[:, self.start :].clone() if self.start else hidden
        return hidden, rest

    def attend(self, call: AttentionCall) -> AttentionOutput:
        """Record the prompt's keys and values, without the room that a cache has after them, and
        the mask of the positions that branches run."""
        out, weights = call.run()
        n_query = call.query.shape[2]
        if self.start and call.layer >= self.first:
            end = min(call.key.shape[2], self.n_past + n_query)
            begin, late = self._late(call.mask, end)
            prompt = slice(begin, end - (n_query - self.start))
            self._read[call.layer] = call.key[:, :, prompt], call.value[:, :, prompt], late
        return out, weights

    def _late(self, mask: Tensor | None, end: int) -> tuple[int, Tensor | None]:
        """The mask of the positions that branches run, and the first key that one of them sees: in
        a layer with a sliding window few keys of many."""
        if mask is None:
            return 0, None
        if id(mask) not in self._masks:
            late = mask[..., self.start :, :end]
            seen = late if late.dtype == torch.bool else late > torch.finfo(late.dtype).min / 2
            first = int(seen.flatten(0, -2).any(0).int().argmax())
            begin = min(first, end - late.shape[-2])
            # The mask is kept too, so that its id stays taken: layers may have masks of their own.
            self._masks[id(mask)] = mask, begin, late[..., begin:]
        return self._masks[id(mask)][1:]

    def cache(self, n_layers: int) -> NewTokensCache:
        """A new cache for a pass that goes on from the prompt."""
        return NewTokensCache(self.n_past + self.start, n_layers)

    def prompt_kv(self, call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        """Keys and values before those positions in a layer, ``(B, kv_heads, n, d)``."""
        return self._read[call.layer][:2] if self.start else None

    def mask(self, call: AttentionCall) -> Tensor | None:
        """The mask of those positions in a layer, for all keys up to the last of them."""
        return self._read[call.layer][2] if self.start else call.mask

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        read = [x for keys, values, _ in self._read.values() for x in (keys, values)]
        return sum(x.nbytes for x in [*read, *self.layer_inputs.values()])


def attend_shared(
    call: AttentionCall, prompt_kv: tuple[Tensor, Tensor], per_row: bool, once: Once
) -> AttentionOutput:
    """Run the attention of rows that share prompts ``(rows, T, heads, d)``.

    Args:
        call: Of the rows' own tokens, the last T and maybe some before; its mask also covers the
            prompt's keys.
        prompt_kv: Of :meth:`SharedPrompt.prompt_kv`; of one prompt where not ``per_row``.
        once: Computes what follows from the mask and the shape alone, or remembers it.
    """
    query, mask = call.query, call.mask
    rows, _, n_query, width = query.shape
    n_prompts, _, past, _ = prompt_kv[0].shape
    n_key = past + call.key.shape[2]
    lse_kernel = _lse_kernel(call)
    if past and (n_query <= FEW and _is_plain(call) if per_row else lse_kernel):
        masks = once(lambda: _split_mask(mask, query, call.key.shape[1], n_prompts, past, n_key))
        scale = call.kwargs.get("scaling") or width**-0.5
        return _merge_parts(call, masks, prompt_kv, scale, lse_kernel or attention_and_lse), None
    if per_row:
        repeated = (p.repeat(rows // n_prompts, 1, 1, 1) for p in prompt_kv)
        keys, values = (torch.cat(x, 2) for x in zip(repeated, (call.key, call.value), strict=True))
        if mask is None and n_query > 1:  # which would stand for a text that begins here
            mask = once(lambda: as_bias(None, query, n_key - n_query, n_key))
        return call.replace(key=keys, value=values, mask=mask).run()
    folded = once(lambda: _fold_mask(mask, query, n_key, past))
    keys, values = (
        torch.cat([p, _fold(x, 1)], 2)
        for p, x in zip(prompt_kv, (call.key, call.value), strict=True)
    )
    one_row = call.replace(query=_fold(query, 1), key=keys, value=values, mask=folded)
    out, weights = one_row.run()
    return out.reshape(rows, n_query, *out.shape[2:]).contiguous(), weights


def as_bias(mask: Tensor | None, query: Tensor, past: int, n_key: int) -> Tensor:
    """An attention mask of any form as an additive bias ``(1 or batch, 1 or heads, n_query,
    n_key)``; None means causal, ``past`` keys coming before the queries'."""
    low = torch.finfo(query.dtype).min
    if mask is None:
        seen = torch.ones(query.shape[2], n_key, dtype=torch.bool, device=query.device)
        mask = seen.tril(past)[None, None]
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, low)
    # Minus infinity, which others may have written, leaves no softmax where a row sees nothing.
    return mask[..., :n_key].to(query.dtype).clamp_min(low)


def _is_plain(call: AttentionCall) -> bool:
    """Whether the attention is sdpa's, with nothing done to its scores or its softmax."""
    others = ("softcap", "position_bias", "cache", "s_aux")
    plain = call.function is AttentionInterface()["sdpa"]
    return plain and all(call.kwargs.get(k) is None for k in others)


def _split_mask(
    mask: Tensor | None, query: Tensor, groups: int, n_prompts: int, past: int, n_key: int
) -> tuple[Tensor | None, Tensor | None]:
    """The mask of the prompts' keys ``(n_prompts, groups, queries, past)`` and of the own ones
    ``(rows or 1, groups or 1, heads / groups * T, n)``, None where all are seen."""
    rows, heads, n_query, _ = query.shape
    if mask is None and n_query == 1:
        return None, None
    bias = as_bias(mask, query, n_key - n_query, n_key)
    before, own = bias[..., :past], bias[..., past:]
    sharing = heads // groups
    own = own.repeat(1, 1, sharing, 1) if own.shape[1] == 1 else _side_by_side(own, groups)
    seen_before = None
    if _hides(before):
        before = _side_by_side(before.expand(rows, heads, -1, -1), groups)
        seen_before = _fold(before, n_prompts)
    return seen_before, own if _hides(own) else None


def _hides(bias: Tensor) -> bool:
    """Whether a bias does anything; to ask an accelerator costs more than to add it."""
    return bias.device.type != "cpu" or bool(bias.any())


def _side_by_side(x: Tensor, groups: int) -> Tensor:
    """``(rows, heads, n, ...)`` as ``(rows, groups, heads / groups * n, ...)``."""
    return x.reshape(len(x), groups, -1, *x.shape[3:])


def _merge_parts(
    call: AttentionCall,
    masks: tuple[Tensor | None, Tensor | None],
    prompt_kv: tuple[Tensor, Tensor],
    scale: float,
    attend: Part,
) -> Tensor:
    """Attention to the prompt and to a row's own tokens, merged by their LSE: with
    ``s = sigmoid(lse_prompt - lse_own)`` it is ``s * out_prompt + (1 - s) * out_own``."""
    rows, heads, n_query, _ = call.query.shape
    dtype = call.query.dtype
    fine = torch.promote_types(dtype, torch.float32)
    # Heads that share keys lie side by side, as do the rows of a prompt.
    query = _side_by_side(call.query, call.key.shape[1])
    before, lse_before = attend(_fold(query, len(prompt_kv[0])), prompt_kv, masks[0], scale)
    if rows > FEW >= call.key.shape[2]:  # many small products, at which the kernel is slow
        attend = attention_and_lse
    own, lse_own = attend(query, (call.key, call.value), masks[1], scale)
    share = (_unfold(lse_before.unsqueeze(-1), rows) - lse_own.unsqueeze(-1)).sigmoid()
    out = torch.lerp(own.to(fine), _unfold(before, rows).to(fine), share)
    return out.reshape(rows, heads, n_query, -1).transpose(1, 2).to(dtype).contiguous()


def _lse_kernel(call: AttentionCall) -> Part | None:
    """The kernel of torch that computes a call's attention and returns its LSE too, if this version
    of torch has one: sdpa's on a CPU, without gradients."""
    kernel = getattr(torch.ops.aten, LSE_KERNEL, None)
    on_cpu = call.query.device.type == "cpu" and not torch.is_grad_enabled()
    square = call.value.shape[3] == call.query.shape[3]
    if kernel is None or not (on_cpu and square and _is_plain(call)):
        return None

    def attend(
        query: Tensor, kv: tuple[Tensor, Tensor], mask: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = kernel(query, *kv, attn_mask=mask, scale=scale)
        return out

    return attend


def attention_and_lse(
    query: Tensor, kv: tuple[Tensor, Tensor], mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention in plain torch: queries ``(rows, groups, queries, d)``, keys and values ``(rows,
    groups, n, d)`` and an additive mask to outputs and the log-sum-exp of the scores."""
    fine = torch.promote_types(query.dtype, torch.float32)
    scores = ((query * scale) @ kv[0].transpose(2, 3)).to(fine)  # float16 ends at 65504
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp_()
    return weights.to(query.dtype) @ kv[1], lse


def _fold_mask(mask: Tensor | None, query: Tensor, n_key: int, past: int) -> Tensor:
    """Mask ``(1, heads, rows * T, past + rows * T)``: a row sees the prompt and its own tokens."""
    rows, _, n_query, _ = query.shape
    bias = as_bias(mask, query, n_key - n_query, n_key).expand(rows, -1, -1, -1)
    heads = bias.shape[1]
    folded = query.new_full(
        (heads, rows, n_query, past + rows * n_query), torch.finfo(query.dtype).min
    )
    folded[..., :past] = bias[..., :past].transpose(0, 1)
    own = folded[..., past:].unflatten(-1, (rows, n_query)).diagonal(dim1=1, dim2=3)
    own.copy_(bias[..., past:].permute(1, 2, 3, 0))
    return folded.reshape(1, heads, rows * n_query, -1)


def _fold(x: Tensor, n_prompts: int) -> Tensor:
    """``(rows, heads, n, d)`` with the rows of a prompt side by side:
    ``(n_prompts, heads, rows / n_prompts * n, d)``."""
    _, heads, n, d = x.shape
    split = x.reshape(-1, n_prompts, heads, n, d)
    return split.permute(1, 2, 0, 3, 4).reshape(n_prompts, heads, -1, d)


def _unfold(x: Tensor, rows: int) -> Tensor:
    """The reverse of :func:`_fold`."""
    n_prompts, heads, _, d = x.shape
    split = x.reshape(n_prompts, heads, rows // n_prompts, -1, d)
    return split.permute(2, 0, 1, 3, 4).reshape(rows, heads, -1, d)
