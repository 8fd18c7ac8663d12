"""What writes the text: one protocol, so that the service does not care which engine is behind it.

An engine gets a :class:`Job` with everything it needs to write for one user, and gives pieces of
text. Same job, greedy, same text, whichever the engine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from prefheads.data.encoding import Encoded
from prefheads.serve.problems import Problem
from prefheads.steering.setting import PLAIN, Setting

Finish = Literal["stop", "length"]
FAILED = "the engine failed"
CLOSING = "the server is shutting down"


class Overloaded(Problem):
    """The engine has as many waiting jobs as it takes."""

    def __init__(self) -> None:
        message = "too many requests are waiting; try again soon"
        super().__init__(503, message, "overloaded", retry_after=1)


class EngineFailure(Problem):
    """A job could not be finished."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message, "engine_failure", retry_after=1)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop."""

    max_tokens: int
    temperature: float = 0.0  # 0 takes the likeliest token
    top_p: float = 1.0  # sample among the likeliest tokens that hold this share of the probability
    seed: int | None = None  # None draws one
    stop: tuple[str, ...] = ()  # texts that end the answer and are not part of it


@dataclass(frozen=True, eq=False)
class Job:
    """One text to write.

    ``clusters`` says how much the user belongs to each cluster of the fitted steerer; the user's
    map is the sum of the clusters' maps with these weights. Empty for a plain job.
    """

    prompt: Encoded
    sampling: Sampling
    setting: Setting = PLAIN
    clusters: tuple[float, ...] = ()


@dataclass(frozen=True)
class Piece:
    """More of an answer."""

    text: str  # what is new, whole characters; may be empty
    n_tokens: int  # of the answer so far, the one that ended it included
    finish: Finish | None = None  # why the answer is over, with its last piece


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
