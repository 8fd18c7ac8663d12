"""What a client may ask for: sizes, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes and rates; what goes beyond is refused.

    Attributes:
        body_bytes: Bytes of a request.
        body_seconds: Seconds in which a request must have come in.
        item_chars: Characters of a profile item, all its fields together.
        items: Items of a profile.
        profiles: Profiles of a key.
        prompt_chars: Characters of a prompt, all turns of a chat together.
        max_tokens: New tokens of an answer.
        default_tokens: New tokens of a chat's answer where the request does not say.
        gamma: Strength of steering.
        rate: Requests a second that a key may make in the long run.
        burst: Requests that a key may make at once.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    item_chars: int = 10_000
    items: int = 1_000
    profiles: int = 100_000
    prompt_chars: int = 50_000
    max_tokens: int = 1_024
    default_tokens: int = 256
    gamma: float = 10.0
    rate: float = 20.0
    burst: int = 100


class RateLimit:
    """A token bucket for each key; to be used from one thread.

    Args:
        rate: Tokens that come back a second.
        burst: Tokens in a full bucket.
        clock: Seconds, ever growing.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        now = self._clock()
        left, then = self._buckets.get(key, (float(self._burst), now))
        left = min(float(self._burst), left + (now - then) * self._rate)
        granted = left >= 1
        self._buckets[key] = (left - granted, now)
        return 0.0 if granted else (1 - left) / self._rate
