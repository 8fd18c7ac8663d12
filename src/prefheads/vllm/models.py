"""The models of vLLM that can be steered: vLLM's own classes, with steered attention.

Between its layers a model only maps rows to rows, so the second branch is rows appended on
entering the fork's layer. Logits are an affine function of the hidden states that a model returns,
so ``(1 + gamma) * personalised - gamma * depersonalised`` is taken of the latter, and the
vocabulary projection runs once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import CompilationMode, VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from prefheads.vllm.attention import steer_attention
from prefheads.vllm.batch import Batch, Heads
from prefheads.vllm.library import contrast_enabled, library
from prefheads.vllm.processor import SteeringProcessor
from prefheads.vllm.support import require_supported

# Tests set it, to compare the form that compilation needs with the other.
_FORCE_STATIC = False


class Steered:
    """What makes a causal language model of vLLM steerable; the first base of such a class."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)  # type: ignore[call-arg]
        maps = library()
        assert maps is not None  # these classes are registered only then
        require_supported(vllm_config, contrast_enabled())
        maps.require_model(vllm_config.model_config.hf_config)
        layers: nn.ModuleList = self.model.layers  # type: ignore[attr-defined]
        attentions: list[Attention] = [layer.self_attn.attn for layer in layers]  # type: ignore[union-attr]
        count = attentions[0].num_heads
        compilation = vllm_config.compilation_config
        static = compilation.mode != CompilationMode.NONE or bool(compilation.cudagraph_mode)
        first = count * get_tensor_model_parallel_rank()
        fork = maps.fork if contrast_enabled() else len(layers)
        heads = Heads(maps.shape, first, count, fork, static or _FORCE_STATIC)
        scheduler = vllm_config.scheduler_config
        sizes = (scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
        device, dtype = next(layers.parameters()).device, vllm_config.model_config.dtype
        self.batch = Batch(*sizes, heads, device, dtype)
        SteeringProcessor.follow(vllm_config, self.batch)
        for index, (layer, attention) in enumerate(zip(layers, attentions, strict=True)):
            steer_attention(attention, self.batch, index, vllm_config.cache_config)
            if index >= heads.fork:
                layer.register_forward_pre_hook(_Entry(self.batch, index == heads.fork))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states ``(n_tokens, hidden_size)`` whose logits are the steered ones."""
        if get_forward_context().attn_metadata is None:
            self.batch.fill(positions.shape[0])
        hidden = super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
        )
        return _combined(hidden, self.batch, positions.shape[0])


class _Entry:
    """Pre-hook of the layers above the fork: gives them the second branch's rows."""

    def __init__(self, batch: Batch, first: bool) -> None:
        self.batch = batch
        self.first = first

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        positions, hidden, residual, *rest = args
        rows = slice(None) if self.batch.heads.static else self.batch.current.rows
        if isinstance(rows, Tensor) and not len(rows):
            return None
        positions = torch.cat([positions, positions[rows]])
        if self.first:
            hidden, residual = (
                None if x is None else torch.cat([x, x[rows]]) for x in (hidden, residual)
            )
        return (positions, hidden, residual, *rest)


def _combined(hidden: Tensor, batch: Batch, n: int) -> Tensor:
    """``p + gamma * (p - g)`` in the rows that have a second opinion ``g``."""
    if len(hidden) == n:
        return hidden
    p, g = hidden[:n], hidden[n:].float()
    if batch.heads.static:
        mine = p.float()
        steered = (mine + batch.gammas[:n] * (mine - g)).to(p.dtype)
        return torch.where((batch.branch[:n] > 0)[:, None], steered, p)
    plan = batch.current
    mine = p[plan.rows].float()
    return p.index_copy(0, plan.rows, (mine + plan.gammas * (mine - g)).to(p.dtype))


class SteeredGemma3ForCausalLM(Steered, Gemma3ForCausalLM):
    """Gemma 3, text only."""


class SteeredLlamaForCausalLM(Steered, LlamaForCausalLM):
    """Llama and what shares its class, such as SmolLM."""


class SteeredMistralForCausalLM(Steered, MistralForCausalLM):
    """Mistral."""


class SteeredQwen2ForCausalLM(Steered, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5."""


class SteeredQwen3ForCausalLM(Steered, Qwen3ForCausalLM):
    """Qwen3."""
