"""Attention of rows that share prompts: the keys and values of a prompt are read once for all.

Rows of a prompt lie side by side in the query axis, and each sees the prompt and its own tokens.
Where the backend tells the normaliser of its softmax, the two parts are computed apart and merged:
exact, and no row's queries meet another row's keys. Elsewhere rows of one prompt go through the
backend as one row under a mask; and the two branches of a generation, few queries and many keys,
have the prompt's part computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache
from transformers.cache_utils import DynamicLayer

from prefheads.interventions.hooks import AttentionFunction, Observer, layer_index
from prefheads.interventions.masks import as_bias

Once = Callable[[Callable[[], Any]], Any]
FEW = 16  # queries, or keys, of a row up to which they are computed in plain torch


class Prompt(Protocol):
    """Prompts that rows share: row ``r`` goes on from prompt ``r`` modulo their number.

    Attributes:
        apart: Whether each row has masks and positions of its own.
    """

    apart: bool

    def held(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the prompts in a layer, ``(prompts, kv_heads, n_prompt, d)``; None if
        rows do not share them there.

        Args:
            index: Of the layer.
            key: Of the rows, ``(rows, kv_heads, n, d)``; ``value`` alike.
        """

    def mask(self, index: int, mask: Tensor | None) -> Tensor | None:
        """The mask of a layer, from the one that the model made for this pass."""


class NewOnly(Cache):
    """A cache in a pass whose attention is given the prompt otherwise: it tells how many tokens
    that has, gives back new keys and values as they are, and keeps them.

    Args:
        n_past: Tokens of the prompt.
        n_layers: Of the model.

    Attributes:
        new: Keys and values of the pass by layer, ``(rows, kv_heads, n, d)``.
    """

    def __init__(self, n_past: int, n_layers: int) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(n_layers)])
        self.n_past = n_past
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

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


class Clean(Observer):
    """The clean run: the model as it is on a whole text, and what that leaves for branches which
    take off from it. They run its last tokens only, on the keys and values that attention read.

    Args:
        start: First position of the call that branches run.
        n_past: Tokens that the cache holds before the call.
        first: First layer in which there are branches.

    Attributes:
        apart: Whether rows have masks of their own; not so where all branches are of one text.
        inputs: What entered each layer at these positions, ``(B, n, d)``.
    """

    def __init__(self, start: int, n_past: int = 0, first: int = 0, *, apart: bool = False) -> None:
        self.start, self.n_past, self.first, self.apart = start, n_past, first, apart
        self.inputs: dict[int, Tensor] = {}
        self._read: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._masks: dict[int, tuple[Tensor, int, Tensor]] = {}

    def enter_layer(self, index: int, hidden: Tensor, rest: Any) -> tuple[Tensor, Any]:
        """Keep what enters."""
        if index >= self.first:
            # Copied, so that the rest of a long prompt does not stay in memory.
            self.inputs[index] = hidden[:, self.start :].clone() if self.start else hidden
        return hidden, rest

    def attend(
        self,
        inner: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Keep what is read: the prompt without padding of a cache after it, and the mask of the
        positions that branches run."""
        out, weights = inner(module, query, key, value, mask, **kwargs)
        layer, n_query = layer_index(module), query.shape[2]
        if self.start and layer >= self.first:
            end = min(key.shape[2], self.n_past + n_query)
            begin, late = self._late(mask, end)
            held = slice(begin, end - (n_query - self.start))
            self._read[layer] = key[:, :, held], value[:, :, held], late
        return out, weights

    def _late(self, mask: Tensor | None, end: int) -> tuple[int, Tensor | None]:
        """The mask of the positions that branches run, and the first key that one of them sees: in
        a layer with a window few of many."""
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

    def held(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values before those positions in a layer, ``(B, kv_heads, n, d)``."""
        return self._read[index][:2] if self.start else None

    def mask(self, index: int, mask: Tensor | None) -> Tensor | None:
        """The mask of those positions in a layer, for all keys up to the last of them."""
        return self._read[index][2] if self.start else mask

    @property
    def nbytes(self) -> int:
        """Of what it leaves."""
        read = [x for keys, values, _ in self._read.values() for x in (keys, values)]
        return sum(x.nbytes for x in [*read, *self.inputs.values()])


def attend_shared(
    inner: AttentionFunction,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    prompt: tuple[Tensor, Tensor],
    apart: bool,
    once: Once,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The attention function ``inner`` for rows of shared prompts.

    Args:
        query: ``(rows, heads, T, d)``.
        key: Of the rows' own tokens, the last T and maybe some before, ``(rows, groups, n, d)``
            with their number of heads; ``value`` alike.
        mask: Of any form, ``(1 or rows, 1 or heads, T, n_prompt + n)``.
        prompt: Keys and values of :meth:`Prompt.held`; of one prompt where not ``apart``.
        apart: See :class:`Prompt`.
        once: Computes what follows from the mask and the shape alone, or remembers it.

    Returns:
        ``(rows, T, heads, d)``, and what ``inner`` returns beside it.
    """
    rows, _, n_query, _ = query.shape
    n_prompts, _, past, _ = prompt[0].shape
    n_key = past + key.shape[2]
    told = value.shape[3] == query.shape[3] and _tells_normaliser(inner, query, kwargs)
    if past and (n_query <= FEW and _is_plain(inner, kwargs) if apart else told):
        seen = once(lambda: _split_mask(mask, query, key.shape[1], n_prompts, past, n_key))
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return _in_two_parts(query, key, value, seen, prompt, scale, told), None
    if apart:
        repeated = (p.repeat(rows // n_prompts, 1, 1, 1) for p in prompt)
        keys, values = (torch.cat(x, 2) for x in zip(repeated, (key, value), strict=True))
        if mask is None and n_query > 1:  # which would stand for a text that begins here
            mask = once(lambda: as_bias(None, query, n_key - n_query, n_key))
        return inner(module, query, keys, values, mask, **kwargs)
    folded = once(lambda: _fold_mask(mask, query, n_key, past))
    keys, values = (
        torch.cat([p, _fold(x, 1)], 2) for p, x in zip(prompt, (key, value), strict=True)
    )
    out, weights = inner(module, _fold(query, 1), keys, values, folded, **kwargs)
    return out.reshape(rows, n_query, *out.shape[2:]).contiguous(), weights


# -- in two parts --


def _is_plain(inner: AttentionFunction, kwargs: dict[str, Any]) -> bool:
    """Whether the attention is sdpa's, with nothing done to its scores or its softmax."""
    others = ("softcap", "position_bias", "cache", "s_aux")
    return inner is AttentionInterface()["sdpa"] and all(kwargs.get(k) is None for k in others)


def _tells_normaliser(inner: AttentionFunction, query: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the attention's kernel returns the normaliser: sdpa's on a CPU, without gradient."""
    on_cpu = query.device.type == "cpu" and not torch.is_grad_enabled()
    return on_cpu and _is_plain(inner, kwargs)


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
    """Whether a bias does anything; elsewhere than on a CPU it costs less than to ask."""
    return bias.device.type != "cpu" or bool(bias.any())


def _side_by_side(x: Tensor, groups: int) -> Tensor:
    """``(rows, heads, n, ...)`` as ``(rows, groups, heads / groups * n, ...)``."""
    return x.reshape(len(x), groups, -1, *x.shape[3:])


def _in_two_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: tuple[Tensor | None, Tensor | None],
    prompt: tuple[Tensor, Tensor],
    scale: float,
    told: bool,
) -> Tensor:
    (rows, heads, n_query, _), fine = query.shape, torch.promote_types(query.dtype, torch.float32)
    # Heads that share keys lie side by side, as do the rows of a prompt.
    query = _side_by_side(query, key.shape[1])
    part = _told if told else _computed
    before, log_before = part(_fold(query, len(prompt[0])), prompt, masks[0], scale)
    if rows > FEW >= key.shape[2]:  # many small products are not what the kernel is made for
        part = _computed
    own, log_own = part(query, (key, value), masks[1], scale)
    share = (_unfold(log_before.unsqueeze(-1), rows) - log_own.unsqueeze(-1)).sigmoid()
    out = torch.lerp(own.to(fine), _unfold(before, rows).to(fine), share)
    return out.reshape(rows, heads, n_query, -1).transpose(1, 2).to(query.dtype).contiguous()


def _told(
    query: Tensor, seen: tuple[Tensor, Tensor], mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention by a CPU's kernel, shaped as ``query`` ``(rows, groups, queries, d)``, and its
    logarithmic normaliser ``(rows, groups, queries)``."""
    out: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, *seen, attn_mask=mask, scale=scale
    )
    return out


def _computed(
    query: Tensor, seen: tuple[Tensor, Tensor], mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The same in plain torch; all scores are in memory."""
    fine = torch.promote_types(query.dtype, torch.float32)
    scores = ((query * scale) @ seen[0].transpose(2, 3)).to(fine)  # float16 ends at 65504
    if mask is not None:
        scores = scores + mask
    normaliser = scores.logsumexp(-1)
    weights = (scores - normaliser[..., None]).exp_()
    return weights.to(query.dtype) @ seen[1], normaliser


# -- as one row --


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
