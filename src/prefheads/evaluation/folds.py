"""Which samples are evaluated, and which others their heads are found on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefheads.errors import DataError
from prefheads.examples import Example, split_users, spread


@dataclass(frozen=True)
class Fold:
    """Samples to evaluate, with what discovery and calibration may use for them.

    Attributes:
        test: Samples to evaluate.
        pool: Samples for discovery and calibration; nobody's sample is in both.
        share: Share of the pool's users for discovery.
    """

    test: list[Example]
    pool: list[Example]
    share: float


def make_folds(
    examples: Sequence[Example],
    train: Sequence[Example] | None,
    *,
    discovery: int,
    calibration: int,
    limit: int | None,
    force: bool = False,
    seed: int = 0,
) -> list[Fold]:
    """One fold, or two where users are few.

    With a training split, heads are found there, on users of whom nothing is evaluated. Without
    one, ``discovery + calibration`` users are set aside. Where these and ``limit`` samples to
    evaluate are more than there are, the users are halved, and each half is evaluated with heads
    found on the other.

    Args:
        examples: The evaluation split.
        train: Samples of another split.
        discovery, calibration: Users that each takes.
        limit: Samples to evaluate, drawn with ``seed``; all if None.
        force: Find heads on the very samples to evaluate, if ``train`` holds them.

    Raises:
        DataError: Fewer than eight users, too few to find heads and evaluate.
    """
    share = discovery / (discovery + calibration)
    wanted = discovery + calibration
    if train is not None:
        if not force:
            train = _of_others(train, examples)
        users = len({e.user_id for e in train})
        if users < 4:
            raise DataError(
                f"{users} users of the split that heads are found on are not among those to "
                "evaluate, too few; name another split, or force it"
            )
        part = list(train) if users <= wanted else list(_part(train, wanted / users, seed)[0])
        return [Fold(spread(examples, limit, seed), part, share)]
    users = len({e.user_id for e in examples})
    if users < 8:
        raise DataError(
            f"{users} users are too few to find heads and to evaluate: give a training split "
            "(--discovery-split) or a fitted folder (--fitted)"
        )
    if users - wanted >= (limit or users / 2):
        pool, rest = _part(examples, wanted / users, seed)
        return [Fold(spread(rest, limit, seed), pool, share)]
    a, b = _part(examples, 0.5, seed)
    half = limit and limit // 2
    return [
        Fold(spread(a, limit and limit - limit // 2, seed), b, share),
        Fold(spread(b, half, seed), a, share),
    ]


def _of_others(train: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """Training samples of users whom nothing is evaluated of; nobody's own sample twice."""
    ids = {e.id for e in examples}
    if twice := sorted(ids.intersection(e.id for e in train)):
        raise DataError(
            f"sample {twice[0]!r} is in the split that heads are found on and in the one to "
            "evaluate; name another split, or force it"
        )
    users = {e.user_id for e in examples}
    return [e for e in train if e.user_id not in users]


def _part(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], ...]:
    return split_users(examples, (share, 1 - share), seed)
