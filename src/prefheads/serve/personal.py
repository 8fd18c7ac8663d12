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
from prefheads.serve.profiles import NoProfile, Profiles, StoredItem, StoredProfile
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.generation import room_for_prompt
from prefheads.steering.setting import PLAIN, Setting
from prefheads.types import Mode
from prefheads.users import ProfileEncoder, route


@dataclass(frozen=True)
class Wish:
    """What a request asks for."""

    turns: Sequence[Turn]  # a chat, the user's turn last; or one text
    templated: bool  # whether it is a chat
    sampling: Sampling
    user: str | None  # whose profile, if anybody's
    gamma: float | None  # this and the mode, in place of the calibrated ones
    mode: Literal[Mode, "off"] | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job, and the ids of the profile items in its prompt."""

    job: Job
    items: tuple[str, ...]


class Personaliser:
    """Makes jobs, with so many items in a prompt; from any thread."""

    def __init__(self, steerer: PreferenceSteerer, profiles: Profiles, items: int = 5) -> None:
        self._steerer, self._profiles, self._items = steerer, profiles, items
        self._encoder = ProfileEncoder(steerer.encoder)
        # Tokenizers, the encoder's among them, serve one thread at a time.
        self._tokenizer = copy.deepcopy(steerer.tokenizer)
        self._encoding, self._embedding = threading.Lock(), threading.Lock()

    def prepare(self, key: str, wish: Wish) -> Prepared:
        """The job for a wish of a client with this key."""
        stored = None
        if wish.user is not None:
            stored = self._profiles.get(key, wish.user)
            if stored is None:
                raise NoProfile(wish.user)
        asked = wish.turns[-1].content
        chosen: list[StoredItem] = []
        setting = PLAIN
        clusters: tuple[float, ...] = ()
        if stored is not None and stored.items:
            chosen = choose(self._steerer.task, asked, stored.items, self._items)
            setting = self._setting(wish)
            clusters = () if setting.plain else self._clusters(stored)
        fields = tuple(item.fields for item in chosen)
        example = Example("request", "", fields, asked, None, self._steerer.task)
        room = room_for_prompt(self._steerer.model, wish.sampling.max_tokens)
        with self._encoding:
            prompt = encode(
                self._tokenizer, example, max_length=room, before=wish.turns[:-1],
                templated=wish.templated,
            )  # fmt: skip
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
        total: NDArray[np.float64] | float = 0.0
        done = 0
        if stored.vectors is not None and stored.encoder == name:
            total, done = np.frombuffer(stored.vectors, dtype="<f8"), stored.embedded
        fresh = [[item.fields] for item in stored.items if item.number > done]
        if fresh:
            with self._embedding:
                vectors = self._encoder.embed(fresh)
            total = total + vectors.astype(np.float64).sum(0)
            sums = np.asarray(total, "<f8").tobytes()
            self._profiles.keep_vectors(stored, name, sums, stored.items[-1].number)
        # The mean of the items' unit vectors has the direction of their sum.
        by = self._steerer
        weights = route(np.asarray(total), by.clusters.centroids, by.routing, by.temperature)
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
