"""Which samples are evaluated, and which others their heads are found on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefheads.data.example import Example, split_users, spread
from prefheads.data.people import Seen
from prefheads.errors import DataError


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

    With a training split, heads are found there, on people of whom nothing is evaluated. Without
    one, ``discovery + calibration`` users are set aside. Where these and ``limit`` samples to
    evaluate are more than there are, the users are halved, and each half is evaluated with heads
    found on the other; on its samples in the training split, if all people are in both.

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
    users = len({e.user_id for e in examples})
    if train is not None:
        if not force:
            _require_apart(train, examples)
        test = spread(examples, limit, seed)
        left = list(train) if force else _of_others(train, test, examples)
        n_left = len({e.user_id for e in left})
        # Few strangers are left where both splits are of the same people: these are halved then.
        if force or n_left >= wanted or (n_left >= 4 and 2 * n_left >= users):
            return [Fold(test, _drawn(left, wanted, seed), share)]
    if users < 8:
        raise DataError(
            f"{users} users are too few to find heads and to evaluate: give a training split "
            "(--discovery-split) of others, or a fitted folder (--fitted)"
        )
    if train is None and users - wanted >= (limit or users / 2):
        pool, rest = _part(examples, wanted / users, seed)
        return [Fold(spread(rest, limit, seed), pool, share)]
    a, b = _part(examples, 0.5, seed)
    halves = spread(a, limit and limit - limit // 2, seed), spread(b, limit and limit // 2, seed)
    if train is None:
        return [Fold(halves[0], b, share), Fold(halves[1], a, share)]
    pools = [_of_others(train, half, examples) for half in halves]
    if min(len({e.user_id for e in pool}) for pool in pools) < 4:
        raise DataError(
            "too few people of the split that heads are found on are not among those to evaluate; "
            "name another split, or force it"
        )
    return [
        Fold(half, _drawn(pool, wanted, seed), share)
        for half, pool in zip(halves, pools, strict=True)
    ]


def _of_others(
    train: Sequence[Example], test: Sequence[Example], examples: Sequence[Example]
) -> list[Example]:
    """Training samples of people of whom nothing is evaluated; any sample may join two of one."""
    ids = {e.id for e in examples}
    return [e for e in Seen.of(test).unseen([*examples, *train]) if e.id not in ids]


def _require_apart(train: Sequence[Example], examples: Sequence[Example]) -> None:
    """Refuse samples that are in both."""
    ids = {e.id for e in examples}
    if twice := sorted(ids.intersection(e.id for e in train)):
        raise DataError(
            f"sample {twice[0]!r} is in the split that heads are found on and in the one to "
            "evaluate; name another split, or force it"
        )


def _drawn(examples: Sequence[Example], wanted: int, seed: int) -> list[Example]:
    """The samples of ``wanted`` users, or of all."""
    users = len({e.user_id for e in examples})
    return list(examples) if users <= wanted else list(_part(examples, wanted / users, seed)[0])


def _part(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], ...]:
    return split_users(examples, (share, 1 - share), seed)
