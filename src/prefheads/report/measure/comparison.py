"""Texts for some people, with steering and without, to be read side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from prefheads.checkpoint import Checkpoint, digest
from prefheads.data.example import Example
from prefheads.heads.scores import fingerprint
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.setting import PLAIN, Setting
from prefheads.storage import read_json

TRIES = 3  # samples of a person, until one shows a difference


@dataclass(frozen=True)
class Comparison:
    """One prompt of a test user, continued plainly and steered.

    Attributes:
        written: What the user really wrote; None where it is not known.
        example_id: The sample.
    """

    user_id: str
    prompt: str
    plain: str
    steered: str
    written: str | None = None
    example_id: str = ""

    @property
    def texts(self) -> dict[str, str | None]:
        """By whose they are."""
        return {"plain": self.plain, "steered": self.steered, "written": self.written}

    @property
    def differs(self) -> bool:
        """Whether steering changed the text at all."""
        return self.plain != self.steered


def compare(
    steerer: PreferenceSteerer,
    examples: Sequence[Example],
    n_people: int,
    cache: Path,
    max_new_tokens: int = 40,
) -> list[Comparison]:
    """Greedy texts of some people with and without steering.

    Where both are equal the person's next sample is tried, and the last one kept as it is. If
    calibration chose plain decoding, the best setting it tried is shown instead.

    Args:
        examples: Samples of people that fitting has not seen; people of each kind take turns.
        cache: Checkpoint of finished texts, so that a stopped run goes on from there.

    Raises:
        ArtifactError: The cache is damaged or cannot be written.
    """
    setting = shown_setting(steerer)
    if setting.plain:
        return []
    by_user: dict[str, list[Example]] = {}
    for example in examples:
        by_user.setdefault(example.user_id, []).append(example)
    texts = _TextCache(steerer, cache, max_new_tokens)
    comparisons = []
    for user in mixed_kinds(sorted(by_user))[:n_people]:
        for example in by_user[user][:TRIES]:
            text = Comparison(
                user,
                example.input,
                texts.write(example, PLAIN),
                texts.write(example, setting),
                example.output,
                example.id,
            )
            if text.differs:
                break
        comparisons.append(text)
    return comparisons


def shown_setting(steerer: PreferenceSteerer) -> Setting:
    """The chosen setting; where calibration chose plain decoding, the best that it tried."""
    return steerer.calibration.best_tried if steerer.setting.plain else steerer.setting


def kind(user: str) -> str:
    """What kind of person it is: ``trail`` of ``trail-01``."""
    return user.rsplit("-", 1)[0]


def mixed_kinds(users: Sequence[str]) -> list[str]:
    """The users in turn from each kind, so that the first few are of different ones."""
    kinds: dict[str, list[str]] = {}
    for user in users:
        kinds.setdefault(kind(user), []).append(user)
    return [u for turn in zip_longest(*kinds.values()) for u in turn if u is not None]


class _TextCache:
    """Generated texts, kept in a file by what they were generated from."""

    def __init__(self, steerer: PreferenceSteerer, path: Path, max_new_tokens: int) -> None:
        self.steerer, self.max_new_tokens = steerer, max_new_tokens
        self.kept = Checkpoint(path, "texts")
        if (old := path.with_suffix(".json")).is_file():  # of an earlier version
            self.kept.done |= read_json(old)

    def write(self, example: Example, setting: Setting) -> str:
        steerer, config = self.steerer, self.steerer.model.config
        made_from: list[Any] = [
            example.input,
            example.profile,
            steerer.task,
            self.max_new_tokens,
        ]
        made_from += [config.name_or_path, fingerprint(config)]
        maps = []
        if not setting.plain:
            made_from += [steerer.scope, setting.to_dict()]
            maps = [m.values for m in steerer.heads_for([example.profile])]
        key = digest(made_from, tensors=maps)

        def generate() -> str:
            return steerer.generate(
                example.input,
                list(example.profile),
                gamma=setting.gamma,
                mode=setting.mode,
                target=setting.target,
                suppression=setting.suppression,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
            )

        return str(self.kept.once(key, generate))
