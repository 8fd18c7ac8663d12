"""What bounds a pass: the model's context and the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that fit the model's context, or None where its config does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


@dataclass
class Budget:
    """How many tokens go through the model in one pass; halved, for good, when memory runs out."""

    tokens: int = 1024

    def run(
        self, n: int, per_row: int, work: Callable[[slice], Tensor]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``(rows, work(rows))`` for consecutive slices of ``range(n)`` that fit."""
        done = 0
        while done < n:
            rows = slice(done, min(n, done + max(1, self.tokens // per_row)))
            try:
                result = work(rows)
            except RuntimeError as error:
                if not out_of_memory(error) or rows.stop - rows.start == 1:
                    raise
                self.tokens = (rows.stop - rows.start) * per_row // 2
                continue
            yield rows, result
            done = rows.stop


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on a CPU that is a plain RuntimeError, worded by the platform."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = ("not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
