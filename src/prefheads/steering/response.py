"""Tell a steered model where the response begins, in calls outside of ``generate()``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from prefheads.errors import SteeringError


@dataclass(frozen=True)
class Response:
    """Where the response of a forward call begins."""

    n_prompt: int | Tensor  # columns of the prompt; one number, or one a row (B,)
    profile_mask: Tensor | None = None  # (B, n_prompt) bool; that of the steering if None


current: ContextVar[Response | None] = ContextVar("prefheads_response", default=None)


@contextmanager
def response_from(
    n_prompt: int | Sequence[int] | Tensor, *, profile_mask: Tensor | None = None
) -> Iterator[None]:
    """Say where the response begins in forward calls of a steered model inside the block.

    With scope ``"response"``, steering acts from the last prompt token on, at the positions that
    predict the response. Calls by ``generate()`` and calls of scope ``"all"`` do not need this.

    Args:
        n_prompt: Tokens before the response, padding on the left included; one number for all rows,
            or one a row.
        profile_mask: The profile's tokens in these prompts ``(B, n_prompt)``, in place of those
            given to :func:`prefheads.steer`.

    Raises:
        SteeringError: Less than one token.
    """
    try:
        numbers = torch.as_tensor(n_prompt)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.full((1,), torch.nan)
    whole = numbers.dtype in (torch.int32, torch.int64, torch.int16, torch.uint8)
    if not whole and numbers.numel():
        raise SteeringError(f"n_prompt is a whole number of tokens, or one a row; not {n_prompt!r}")
    columns = n_prompt if isinstance(n_prompt, int) else numbers.reshape(-1)
    if (numbers < 1).any():
        raise SteeringError("a response begins after at least one token of a prompt")
    token = current.set(Response(columns, profile_mask))
    try:
        yield
    finally:
        current.reset(token)
