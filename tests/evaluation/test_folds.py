"""Which samples are evaluated, and which others their heads are found on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefheads.errors import DataError
from prefheads.evaluation.prepare import Choice, make_folds


def test_users_are_set_aside(tweets) -> None:
    (fold,) = make_folds(tweets, None, Choice(discovery=4, calibration=4, limit=10))
    assert len(fold.test) == 10 and fold.share == 0.5
    pool, test = ({e.user_id for e in part} for part in (fold.pool, fold.test))
    assert len(pool) == 8 and not pool & test


def test_few_users_are_evaluated_crosswise(tweets) -> None:
    folds = make_folds(tweets, None, Choice(discovery=10, calibration=10))
    assert sorted(e.id for f in folds for e in f.test) == sorted(e.id for e in tweets)
    for fold in folds:
        assert not {e.id for e in fold.test} & {e.id for e in fold.pool}
    with pytest.raises(DataError, match="too few"):
        make_folds(tweets[:7], None, Choice(discovery=3, calibration=2))
    cut = make_folds(tweets, None, Choice(discovery=10, calibration=10, limit=7))
    assert [len(f.test) for f in cut] == [4, 3] and [len(f.pool) for f in cut] == [12, 12]


def test_heads_from_train(tweets) -> None:
    (fold,) = make_folds(tweets[:4], tweets[4:], Choice(discovery=2, calibration=3))
    assert fold.test == tweets[:4] and len({e.user_id for e in fold.pool}) == 5
    with pytest.raises(DataError, match="name another split"):
        make_folds(tweets[:4], tweets, Choice(discovery=2, calibration=3))
    again = [replace(e, id=f"{e.id}-again") for e in tweets]
    (fold,) = make_folds(tweets[:4], again, Choice(discovery=2, calibration=3))
    assert not {e.user_id for e in fold.pool} & {e.user_id for e in fold.test}
    forced = make_folds(tweets[:4], tweets, Choice(discovery=2, calibration=3, force=True))
    assert forced[0].test == tweets[:4]
