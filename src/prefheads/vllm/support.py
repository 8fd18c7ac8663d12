"""Which ways of running vLLM steering works with; all others are refused when it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefheads.errors import ModelError

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def require_supported(config: VllmConfig, contrast: bool) -> None:
    """Refuse options of vLLM under which steering, with a second branch or none, would be wrong."""
    from prefheads.vllm.scheduler import SteeringScheduler

    parallel, model = config.parallel_config, config.model_config
    text = model.hf_config.get_text_config()
    scheduler = config.scheduler_config.get_scheduler_cls()
    refused = {
        "pooling; generate, or unset PREFHEADS_MAPS": model.runner_type == "pooling",
        "pipeline parallelism; use tensor parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": parallel.decode_context_parallel_size > 1
        or parallel.prefill_context_parallel_size > 1,
        "dual batch overlap": parallel.use_ubatching,
        "speculative decoding": config.speculative_config is not None,
        "prompt embeddings, which hide where a prompt ends": model.enable_prompt_embeds,
        "model runner V2; set VLLM_USE_V2_MODEL_RUNNER=0": config.use_v2_model_runner,
        "prefix caching by vLLM's own scheduler, which would serve steered tokens to other "
        "requests; add --scheduler-cls prefheads.vllm.SteeringScheduler "
        "or --no-enable-prefix-caching": config.cache_config.enable_prefix_caching
        and not issubclass(scheduler, SteeringScheduler),
        "contrast with LoRA; set PREFHEADS_CONTRAST=0": contrast and config.lora_config is not None,
        "contrast with capped logits; set PREFHEADS_CONTRAST=0": contrast
        and bool(getattr(text, "final_logit_softcapping", None)),
    }
    for what, asked in refused.items():
        if asked:
            raise ModelError(f"steering in vLLM does not work with {what}")
