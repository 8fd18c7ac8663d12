"""From a request to a job: the user's fitting items, the prompt, the clusters, the setting."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prefheads.data.chat import Turn
from prefheads.data.encoding import encode
from prefheads.data.example import Example
from prefheads.data.retrieve import okapi_scores, retrieve
from prefheads.data.task import find_task, task_of
from prefheads.errors import DataError, SteeringError
from prefheads.serve.engine import Job, Sampling
from prefheads.serve.profiles import Profiles, StoredItem, StoredProfile
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.generation import room_for_prompt
from prefheads.steering.setting import PLAIN, Setting
from prefheads.types import Mode
from prefheads.users import ProfileEncoder, route


@dataclass(frozen=True)
class Wish:
    """What a request asks for.

    Attributes:
        turns: A chat, the user's turn last; or one text.
        templated: Whether it is a chat.
        sampling: How to choose tokens.
        user: Whose profile, if anybody's.
        gamma, mode: In place of the calibrated ones; ``mode="off"`` steers nothing.
    """

    turns: Sequence[Turn]
    templated: bool
    sampling: Sampling
    user: str | None
    gamma: float | None
    mode: Literal[Mode, "off"] | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job, and the ids of the profile items in its prompt."""

    job: Job
    items: tuple[str, ...]


class NoProfile(DataError):
    """A user without a profile."""


class Personaliser:
    """Makes jobs; from any thread.

    Args:
        steerer: The fitted steerer.
        profiles: Where users' items are.
        items: Items that retrieval keeps.
    """

    def __init__(self, steerer: PreferenceSteerer, profiles: Profiles, items: int = 5) -> None:
        self._steerer, self._profiles, self._items = steerer, profiles, items
        self._encoder = ProfileEncoder(steerer.encoder)
        # Tokenizers, the encoder's among them, serve one thread at a time.
        self._tokenizer = copy.deepcopy(steerer.tokenizer)
        self._encoding, self._embedding = threading.Lock(), threading.Lock()

    def prepare(self, key: str, wish: Wish) -> Prepared:
        """The job for a wish of a client with this key.

        Raises:
            NoProfile: The user has none under this key.
            DataError: A prompt that cannot be used or is too long.
            ModelError: A chat that the model's template does not take.
            SteeringError: A strength or mode that cannot be honoured.
        """
        stored = None if wish.user is None else self._profiles.get(key, wish.user)
        if wish.user is not None and stored is None:
            raise NoProfile(f"there is no profile {wish.user}")
        asked = wish.turns[-1].content
        chosen: list[StoredItem] = []
        setting = PLAIN
        clusters: tuple[float, ...] = ()
        if stored is not None and stored.items:
            chosen = choose(self._steerer.task, asked, stored.items, self._items)
            setting = self._setting(wish)
            clusters = () if setting.plain else self._clusters(stored)
        example = Example(
            "request", "", tuple(i.fields for i in chosen), asked, None, self._steerer.task
        )
        room = room_for_prompt(self._steerer.model, wish.sampling.max_tokens)
        with self._encoding:
            prompt = encode(
                self._tokenizer,
                example,
                max_length=room,
                before=wish.turns[:-1],
                templated=wish.templated,
            )
        job = Job(prompt, wish.sampling, setting, clusters)
        return Prepared(job, tuple(item.id for item in chosen))

    def _setting(self, wish: Wish) -> Setting:
        form = self._steerer.form
        if wish.mode == "off" or wish.gamma == 0:
            return PLAIN
        if wish.mode is not None and wish.gamma is None and form.plain:
            raise SteeringError("calibration found no steering that helps; give gamma, too")
        return form.changed(mode=wish.mode, gamma=wish.gamma)

    def _clusters(self, stored: StoredProfile) -> tuple[float, ...]:
        """How much a user belongs to each cluster; embeds only items that are new."""
        name = self._steerer.encoder
        known = stored.vectors is not None and stored.encoder == name
        total: NDArray[np.float64] | float = 0.0
        if known and stored.vectors is not None:
            total = np.frombuffer(stored.vectors, dtype="<f8")
        done = stored.embedded if known else 0
        fresh = [[item.fields] for item in stored.items if item.number > done]
        if fresh:
            with self._embedding:
                vectors = self._encoder.embed(fresh)
            total = total + vectors.astype(np.float64).sum(0)
            self._profiles.keep_vectors(
                stored, name, np.asarray(total, "<f8").tobytes(), stored.items[-1].number
            )
        # The mean of the items' unit vectors has the direction of their sum.
        weights = route(
            np.asarray(total),
            self._steerer.clusters.centroids,
            self._steerer.routing,
            self._steerer.temperature,
        )
        return tuple(weights.tolist())


def choose(task: str | None, asked: str, items: Sequence[StoredItem], k: int) -> list[StoredItem]:
    """The ``k`` items that matter most for what is asked, best first, by BM25.

    The query is what the benchmark's prompt form makes it; a text of another form is the query as
    a whole. Of equally good items the latest come first.
    """
    number = {id(item.fields): item for item in items}
    fields = [item.fields for item in items]
    if find_task(task) is not None:
        try:
            return [number[id(found)] for found in retrieve(task, asked, fields, k)]
        except DataError:
            pass  # not in the form of the task
    corpus = [" ".join(item[field] for field in task_of(task).corpus).split() for item in fields]
    order = np.argsort(okapi_scores(asked.split(), corpus), kind="stable")[::-1][:k]
    return [items[i] for i in order]
