"""The engine on stock ``model.generate()``: one thread that runs waiting jobs batch by batch.

Jobs that are steered in the same form (mode, target, suppression) go through as one batch, each
with its own map, strength and way of sampling. A batch takes no new rows while it runs.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from prefheads.data.encoding import pad_batch
from prefheads.models.limits import out_of_memory
from prefheads.serve.engine import CLOSING, FAILED, Engine, EngineFailure, Job, Overloaded, Piece
from prefheads.serve.text import Transcript
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.context import steer_with
from prefheads.steering.generation import complete, end_tokens
from prefheads.steering.setting import PLAIN, Setting
from prefheads.users import mix

log = logging.getLogger(__name__)
NO_MEMORY = "the device has not enough memory for this request"


@dataclass(frozen=True)
class BatchLimits:
    """What goes through the model at once."""

    rows: int = 16  # jobs in a batch, at most
    tokens: int = 65536  # in a batch with its padding, at most; a longer job goes alone
    wait: float = 0.005  # seconds that a job waits for others to join it
    queue: int = 256  # jobs that may wait


class TransformersEngine(Engine):
    """Runs jobs on the model of a fitted steerer.

    ``on_batch`` is called with the number of jobs of each batch, before it runs.
    """

    def __init__(
        self,
        steerer: PreferenceSteerer,
        limits: BatchLimits | None = None,
        on_batch: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._steerer, self._model = steerer, steerer.model
        # A tokenizer serves one thread at a time, so this one has its own.
        self._tokenizer = copy.deepcopy(steerer.tokenizer)
        self._limits, self._on_batch = limits or BatchLimits(), on_batch
        self._ends = end_tokens(steerer.model)
        self._queue: deque[_Row] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._running: list[_Row] = []
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        row = _Row(job, self._tokenizer, self._ends)
        with self._changed:
            if not self.alive:
                raise EngineFailure(CLOSING)
            if len(self._queue) >= self._limits.queue:
                raise Overloaded
            self._queue.append(row)
            self._changed.notify()
        try:
            finished = False
            while not finished:
                piece = await row.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                finished = piece.finish is not None
                yield piece
        finally:
            row.given_up = True

    def close(self) -> None:
        with self._changed:
            self._closing = True
            left = [*self._running, *self._queue]
            self._queue.clear()
            self._changed.notify()
        for row in left:
            row.fail(CLOSING)
        self._thread.join()

    # -- the thread --

    def _work(self) -> None:
        while rows := self._next_batch():
            self._running = rows
            self._on_batch(len(rows))
            try:
                self._run(rows)
            except Exception as error:
                log.error("engine failed", exc_info=error)
                for row in rows:
                    row.fail(NO_MEMORY if out_of_memory(error) else FAILED)
            self._running = []

    def _next_batch(self) -> list[_Row]:
        """Jobs that can go together, the oldest among them; nothing when the engine closes."""
        with self._changed:
            while not self._closing:
                for row in [row for row in self._queue if row.given_up]:
                    self._queue.remove(row)
                if not self._queue:
                    self._changed.wait()
                    continue
                batch = self._fitting()
                left = self._queue[0].came + self._limits.wait - time.monotonic()
                if left > 0 and len(batch) < self._limits.rows:
                    self._changed.wait(left)
                    continue
                for row in batch:
                    self._queue.remove(row)
                return batch
        return []

    def _fitting(self) -> list[_Row]:
        batch: list[_Row] = []
        length = 0
        for row in self._queue:
            longer = max(length, row.length)
            fits = longer * (len(batch) + 1) <= self._limits.tokens or not batch
            if row.form == self._queue[0].form and fits:
                batch.append(row)
                length = longer
            if len(batch) == self._limits.rows:
                break
        return batch

    def _run(self, rows: list[_Row]) -> None:
        batch = pad_batch([row.job.prompt for row in rows], self._tokenizer.pad_token_id or 0)
        try:
            with self._steering(rows, batch.profile_mask):
                complete(
                    self._model,
                    self._tokenizer,
                    batch,
                    max_new_tokens=max(row.job.sampling.max_tokens for row in rows),
                    do_sample=False,  # _Choice samples, each row in its own way
                    num_beams=1,
                    logits_processor=[_Choice(rows)],
                    stopping_criteria=[_Watch(rows)],
                )
        except RuntimeError as error:
            begun = any(row.n_tokens for row in rows)
            if not out_of_memory(error) or len(rows) == 1 or begun:
                raise
        else:
            return
        half = len(rows) // 2  # outside the handler, whose traceback holds the batch's memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._run(rows[:half])
        self._run(rows[half:])

    def _steering(self, rows: Sequence[_Row], profile: Tensor) -> AbstractContextManager[Any]:
        if rows[0].job.setting.plain:
            return nullcontext()
        weights = [np.asarray(row.job.clusters) for row in rows]
        maps = torch.stack([mix(w, self._steerer.maps).values for w in weights])
        return steer_with(self._model, maps, [row.job.setting for row in rows], profile)


class _Row:
    """A job on its way: what was written, and the pieces for whoever waits for them."""

    def __init__(self, job: Job, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        self.job = job
        self.came = time.monotonic()
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.given_up = self.done = False
        self._loop = asyncio.get_running_loop()
        self._transcript = Transcript(job.sampling, tokenizer, ends)
        seed = job.sampling.seed
        self._seed = secrets.randbits(63) if seed is None else seed
        self._generator: torch.Generator | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and answer, at most."""
        return len(self.job.prompt.prompt_ids) + self.job.sampling.max_tokens

    @property
    def n_tokens(self) -> int:
        """Tokens of the answer so far."""
        return self._transcript.n_tokens

    @property
    def form(self) -> Setting:
        """What jobs of a batch share: all of the setting but how strong it is."""
        setting = self.job.setting
        return PLAIN if setting.plain else replace(setting, gamma=1.0)

    def choose(self, scores: Tensor) -> int:
        """A token by its score ``(vocab,)``, sampled as the job says."""
        sampling = self.job.sampling
        if self._generator is None:
            self._generator = torch.Generator(scores.device).manual_seed(self._seed)
        # From the largest down, so that no temperature above 0 overflows.
        probabilities = ((scores.float() - scores.max()) / sampling.temperature).softmax(-1)
        if sampling.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
            probabilities[order[beyond]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def add(self, token: int) -> None:
        """Take the next token of the answer."""
        piece = self._transcript.add(token)
        self.done = self._transcript.done
        if piece is not None:
            self._send(piece)

    def fail(self, reason: str) -> None:
        """End without an answer."""
        if not self.done:
            self.done = True
            self._send(EngineFailure(reason))

    def _send(self, piece: Piece | Exception) -> None:
        if self.given_up:
            return
        try:
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.given_up = True


class _Choice(LogitsProcessor):
    """Lets each row of a greedy batch sample in its own way: all but the token chosen is ruled out.

    A row whose scores are not finite fails alone; users of a batch are no concern of each other.
    """

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        broken = scores.isnan().any(-1)
        if broken.any():
            for i in broken.nonzero().flatten().tolist():
                self._rows[i].fail("the model's logits are not finite; try a smaller gamma")
            scores = scores.masked_fill(broken[:, None], 0.0)
        for i, row in enumerate(self._rows):
            if row.job.sampling.temperature > 0 and not (row.done or row.given_up):
                token = row.choose(scores[i])
                scores[i] = float("-inf")
                scores[i, token] = 0.0
        return scores


class _Watch(StoppingCriteria):
    """Gives each row its new token, and says which rows are done."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if not (row.done or row.given_up):
                row.add(token)
        done = [row.done or row.given_up for row in self._rows]
        return torch.tensor(done, device=input_ids.device)
