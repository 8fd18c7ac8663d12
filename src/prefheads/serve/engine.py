"""What writes the text: one protocol, so that the service does not care which engine is behind it.

An engine gets a :class:`Job` with everything it needs to write for one user, and gives pieces of
text. Same job, greedy, same text, whichever the engine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from prefheads.data.encoding import Encoded
from prefheads.steering.setting import PLAIN, Setting

Finish = Literal["stop", "length"]
FAILED = "the engine failed"  # what clients are told
CLOSING = "the server is shutting down"
FULL = "too many requests are waiting"


class Overloaded(RuntimeError):
    """The engine has as many waiting jobs as it takes; try again later."""


class EngineFailure(RuntimeError):
    """A job could not be finished. The message is for the client and holds none of its text."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop.

    Attributes:
        max_tokens: New tokens at most.
        temperature: 0 takes the likeliest token.
        top_p: Sampling is among the likeliest tokens that hold this share of the probability.
        seed: Makes sampling repeatable; None draws one.
        stop: Texts that end the answer and are not part of it.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Job:
    """One text to write.

    Attributes:
        prompt: Its tokens, and which of them are the profile's.
        setting: How to steer; :data:`prefheads.steering.setting.PLAIN` leaves the model alone.
        clusters: How much the user belongs to each cluster of the fitted steerer; the user's map is
            the sum of the clusters' maps with these weights. Empty for a plain job.
        sampling: How to choose tokens.
    """

    prompt: Encoded
    sampling: Sampling
    setting: Setting = PLAIN
    clusters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Piece:
    """More of an answer.

    Attributes:
        text: What is new, whole characters; may be empty.
        n_tokens: Tokens of the answer so far, the one that ended it included.
        finish: Why the answer is over, with its last piece.
    """

    text: str
    n_tokens: int
    finish: Finish | None = None


class Engine(Protocol):
    """Writes texts, many at a time."""

    @property
    def alive(self) -> bool:
        """Whether jobs can still be done."""

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""

    def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer; the last one, and only that, says why it is over.

        Closing the generator before its end gives the job up.

        Raises:
            Overloaded: Too many jobs are waiting.
            EngineFailure: The job failed.
        """

    def close(self) -> None:
        """Give up what is left, and free what the engine holds."""
