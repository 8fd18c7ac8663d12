"""Prefix caching under steering.

vLLM reuses a block of cached keys and values for any request with the same tokens up to its end.
What a steered request computes from its last prompt token on is its own: neither requests steered
otherwise nor ones in which the same tokens are prompt may reuse it. So its blocks get keys of
their own from there on. Below that point

* an amplified request shares blocks with all unsteered ones;
* a contrasting one shares with other contrasting ones only, as the second branch's cache is not
  written for requests that do not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    generate_block_hash_extra_keys,
    hash_block_tokens,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from prefheads.vllm.request import steering_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.request import Request


class SteeringScheduler(Scheduler):
    """vLLM's scheduler, asynchronous where its own would be; ``--scheduler-cls`` names it."""

    def __new__(cls, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> SteeringScheduler:
        """The kind that the configuration asks for."""
        if issubclass(cls, AsyncScheduler) or not vllm_config.scheduler_config.async_scheduling:
            return cast(SteeringScheduler, super().__new__(cls))
        kind = type(cls.__name__, (cls, AsyncScheduler), {})
        return cast(SteeringScheduler, super().__new__(kind))

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        self._block_size: int = kwargs["hash_block_size"]
        algorithm = vllm_config.cache_config.prefix_caching_hash_algo
        self._hash = get_hash_fn_by_name(algorithm)

    def add_request(self, request: Request) -> None:
        """Take in a request; a steered one's blocks get keys of their own."""
        parameters = request.sampling_params
        steering = steering_of(parameters.extra_args) if parameters else None
        if steering is not None and request._block_hasher is not None:
            salt = f"{steering.digest}:{request.num_prompt_tokens}"
            request._block_hasher = self._hasher(salt, steering.contrasts)
            request.block_hashes.clear()
            request.update_block_hashes()
        super().add_request(request)

    def _hasher(self, salt: str, contrasts: bool) -> Any:
        size = self._block_size

        def hashes(request: Request) -> list[BlockHash]:
            """Hashes of the full blocks that have none yet."""
            new: list[BlockHash] = []
            parent = request.block_hashes[-1] if request.block_hashes else None
            begin = len(request.block_hashes) * size
            for start in range(begin, request.num_tokens - size + 1, size):
                end = start + size
                keys = list(generate_block_hash_extra_keys(request, start, end, 0)[0] or ())
                if start == 0 and contrasts:
                    keys.append(("prefheads", "contrast"))
                if end >= request.num_prompt_tokens:  # holds the last prompt token, or later ones
                    keys.append(("prefheads", salt))
                tokens = request.all_token_ids[start:end]
                parent = hash_block_tokens(self._hash, parent, tokens, tuple(keys) or None)
                new.append(parent)
            return new

        return hashes
