"""What a client may ask for: sizes, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes and rates; what goes beyond is refused."""

    body_bytes: int = 1 << 20  # of a request
    body_seconds: float = 30.0  # in which a request must have come in
    item_chars: int = 10_000  # of a profile item, all its fields together
    items: int = 1_000  # of a profile
    profiles: int = 100_000  # of a key
    prompt_chars: int = 50_000  # all turns of a chat together
    max_tokens: int = 1_024  # new tokens of an answer
    default_tokens: int = 256  # of a chat's answer where the request does not say
    gamma: float = 10.0
    rate: float = 20.0  # requests a second that a key may make in the long run
    burst: int = 100  # requests that a key may make at once


class RateLimit:
    """A token bucket for each key; to be used from one thread.

    ``rate`` tokens come back a second, up to ``burst``; ``clock`` tells seconds, ever growing.
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
