"""How requests reach the model: vLLM tells its logits processors which request is in which row.

This one leaves logits as they are. Its interface is where vLLM lets a plugin check a request's
parameters, and where it announces the rows of a batch before each forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakValueDictionary

from torch import Tensor
from vllm.v1.sample.logits_processor.interface import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessor2

from prefheads.errors import ModelError
from prefheads.vllm import ARCHITECTURES
from prefheads.vllm.batch import Batch
from prefheads.vllm.library import contrast_enabled, library
from prefheads.vllm.request import resolve, steering_of

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig


class SteeringProcessor(LogitsProcessor, LogitsProcessor2):
    """Entry point of ``vllm.logits_processors``; refuses maps for a model it cannot steer.

    It is of both model runners' kinds, since either refuses to start with a plugin of the other's;
    steering itself needs the first (:mod:`prefheads.vllm.support`).
    """

    _batches: ClassVar[WeakValueDictionary[str, Batch]] = WeakValueDictionary()

    def __init__(self, vllm_config: VllmConfig, *_: Any) -> None:
        self._engine = vllm_config.instance_id
        architecture = vllm_config.model_config.architecture
        known = [f"{name}ForCausalLM" for name in ARCHITECTURES]
        if library() is not None and architecture not in known:
            raise ModelError(
                f"{architecture} cannot be steered in vLLM, only {', '.join(ARCHITECTURES)} "
                "(ForCausalLM); serve one of these, or unset PREFHEADS_MAPS"
            )

    @classmethod
    def follow(cls, vllm_config: VllmConfig, batch: Batch) -> None:
        """Keep ``batch`` informed of an engine's requests."""
        cls._batches[vllm_config.instance_id] = batch

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Check a request, and leave in its ``extra_args`` what workers need."""
        extra = resolve(sampling_params.extra_args, library(), contrast_enabled())
        sampling_params.extra_args = extra

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Tensor, *_: Any) -> Tensor:
        return logits

    def add_request(self, *_: Any) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch; called before each forward pass."""
        batch = self._batches.get(self._engine)
        if batch is None:
            return
        batch.advance()
        if batch_update is None:
            return
        for row in batch_update.removed:
            batch.remove(row)
        for row, params, prompt, _ in batch_update.added:
            steering = steering_of(params.extra_args)
            if steering is not None and prompt is None:
                raise ModelError("a steered request without prompt tokens")  # refused at the start
            batch.add(row, steering, len(prompt or ()))
        for source, target, how in batch_update.moved:
            batch.move(source, target, how is MoveDirectionality.SWAP)
