"""vLLM's attention with gains of heads, and the second branch's attention with its own cache.

Attention layers name the backend whose builder prepares each step's metadata. Steered ones name a
subclass of the backend that vLLM chose, so that the batch's plan is made before each forward pass,
and so that the second branch's metadata covers its own tokens only, with any backend.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention import attention as direct
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    CommonAttentionMetadata,
    subclass_attention_backend,
)

from prefheads.errors import ModelError
from prefheads.vllm.batch import Batch, Plan


class SteeredAttention(Attention):
    """An attention layer of the model; gains multiply what its heads put out."""

    batch: Batch
    layer: int
    branch: BranchAttention | None  # from the fork on

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attention of the model's rows, then of the second branch's, which follow them."""
        if self.batch.heads.static:
            return self._static(query, key, value, *args, **kwargs)
        plan = self.batch.current
        if self.branch is None or not (plan.mirrors or len(plan.rows)):
            out = super().forward(query, key, value, *args, **kwargs)
            slots = plan.slots[: len(query)]
        else:
            n = len(query) - len(plan.rows)
            out = super().forward(query[:n], key[:n], value[:n], *args, **kwargs)
            # The second cache holds the prompt as the first does, then its own tokens.
            keys, values = key[:n], value[:n]
            if len(plan.rows):
                keys = keys.index_copy(0, plan.rows, key[n:])
                values = values.index_copy(0, plan.rows, value[n:])
            out = torch.cat([out, self.branch(query[n:], keys, values)])
            slots = plan.slots
        return self._scaled(out, slots) if plan.layers[self.layer] else out

    def _static(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.branch is None:
            out = super().forward(query, key, value, *args, **kwargs)
            return self._scaled(out, self.batch.own[: query.shape[0]])
        n = query.shape[0] // 2
        out = super().forward(query[:n], key[:n], value[:n], *args, **kwargs)
        second = (self.batch.branch[:n] > 0)[:, None]
        keys = torch.where(second, key[n:], key[:n])
        values = torch.where(second, value[n:], value[:n])
        out = torch.cat([out, self.branch(query[n:], keys, values)])
        return self._scaled(out, torch.cat([self.batch.own[:n], self.batch.branch[:n]]))

    def _scaled(self, out: Tensor, slots: Tensor) -> Tensor:
        gains = self.batch.table[self.layer].index_select(0, slots)
        scaled: Tensor = out.unflatten(-1, (self.num_heads, -1)) * gains[..., None]
        return scaled.flatten(-2)


class BranchAttention(Attention):
    """Attention of the second branch: attends from its own rows, caches a key for every token."""

    static: bool

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with ``query`` (rows of the branch); ``keys`` and ``values`` are of all tokens.

        What vLLM's own does, but with more keys to write than rows to attend from.
        """
        keys = keys.unflatten(-1, (self.num_kv_heads, self.head_size))
        values = values.unflatten(-1, (self.num_kv_heads, self.head_size_v))
        n = query.shape[0]
        output = query.new_empty(n, self.num_heads, self.head_size_v)
        query = query.unflatten(-1, (self.num_heads, self.head_size))
        # On some platforms attention is no custom operator.
        ops: Any = direct if self.use_direct_call else torch.ops.vllm
        name = self.layer_name
        if not self.use_direct_call:
            name = direct._encode_layer_name(name)
        written = ops.unified_kv_cache_update(keys, values, name)
        # In a step whose tokens are all prompt there is nothing to attend from.
        if self.static or n:
            ops.unified_attention_with_output(
                query, keys[:n], values[:n], output, name, kv_cache_dummy_dep=written
            )
        return output.flatten(-2)


def steer_attention(
    attention: Attention, batch: Batch, layer: int, cache_config: Any
) -> SteeredAttention:
    """Make an attention layer of a model a steered one, in place.

    Its class changes, nothing else: names of weights, vLLM's registry of attention layers and the
    cache stay as they are. From the fork on it gets a second attention, with a cache of its own.
    """
    if type(attention) is not Attention:
        raise ModelError(f"{attention.layer_name}: {type(attention).__name__} cannot be steered")
    attention.__class__ = SteeredAttention
    steered = cast(SteeredAttention, attention)
    steered.batch, steered.layer, steered.branch = batch, layer, None
    if layer >= batch.heads.fork:
        if attention.attn_backend.forward_includes_kv_cache_update:
            raise ModelError(
                f"the attention backend {attention.attn_backend.get_name()} does not let a second "
                "branch write its cache; choose another, or set PREFHEADS_CONTRAST=0"
            )
        steered.branch = BranchAttention(
            attention.num_heads,
            attention.head_size,
            attention.impl.scale,
            num_kv_heads=attention.num_kv_heads,
            cache_config=cache_config,
            quant_config=attention.quant_config,
            per_layer_sliding_window=attention.sliding_window,
            prefix=f"{attention.layer_name}.branch",
        )
        steered.branch.static = batch.heads.static
        steered.branch.attn_backend = _backend("Branch", attention.attn_backend, batch)
    steered.attn_backend = _backend("Steered", attention.attn_backend, batch)
    return steered


def _backend(kind: str, backend: type[AttentionBackend], batch: Batch) -> type[AttentionBackend]:
    """A backend whose metadata builder plans the step first.

    Each layer gets a class of its own; vLLM tells backends apart by name, so they count as one.
    """

    class Builder(backend.get_builder_cls()):  # type: ignore[misc]
        """Builds the metadata of the step's tokens, or of the second branch's among them."""

        def build(
            self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, **kw: Any
        ) -> Any:
            plan = batch.plan(common_attn_metadata)
            if kind == "Branch" and not batch.heads.static:
                if not len(plan.rows):
                    return None
                common_attn_metadata = _part(common_attn_metadata, plan)
            return super().build(common_prefix_len, common_attn_metadata, **kw)

        def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> Any:
            batch.rest()
            return super().build_for_cudagraph_capture(common_attn_metadata)

    if kind == "Branch" and not batch.heads.static:
        Builder.supports_update_block_table = False  # its tables are parts of the batch's
        Builder._cudagraph_support = AttentionCGSupport.NEVER
    return cast(type[AttentionBackend], subclass_attention_backend(kind, backend, Builder))


def _part(common: CommonAttentionMetadata, plan: Plan) -> CommonAttentionMetadata:
    """The metadata of the second branch's tokens: the last ones of some requests."""
    starts = torch.zeros(len(plan.counts) + 1, dtype=common.query_start_loc_cpu.dtype)
    torch.cumsum(torch.from_numpy(plan.counts), 0, out=starts[1:])
    chosen = torch.from_numpy(plan.requests)
    on_device = chosen.to(common.seq_lens.device)

    def part(values: Tensor | None, index: Tensor) -> Any:
        return None if values is None else values.index_select(0, index)

    return common.replace(
        query_start_loc=starts.to(common.query_start_loc.device),
        query_start_loc_cpu=starts,
        seq_lens=part(common.seq_lens, on_device),
        seq_lens_cpu_upper_bound=part(common.seq_lens_cpu_upper_bound, chosen),
        num_reqs=len(chosen),
        num_actual_tokens=len(plan.rows),
        max_query_len=int(plan.counts.max()),
        block_table_tensor=part(common.block_table_tensor, on_device),
        slot_mapping=part(common.slot_mapping, plan.rows),
        is_prefilling=part(common.is_prefilling, chosen),
        positions=part(common.positions, plan.rows),
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )
