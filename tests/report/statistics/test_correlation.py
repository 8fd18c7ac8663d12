"""Two measurements of the same heads: how they go together."""

from __future__ import annotations

import pytest
import torch
from support.planted import noise_maps, planted, scores_of

from prefheads.errors import DataError
from prefheads.heads.scores import HeadScores
from prefheads.report.statistics import correlation


def test_related_measurements_correlate_and_unrelated_do_not():
    scores = scores_of(planted(12, [(i, i) for i in range(8)]) + noise_maps(1), noise=0.1)
    twice = HeadScores(2 * scores.values, scores.nll, scores.example_ids, scores.user_ids)
    same = correlation.relate(scores, twice, ("a", "b"), 5)
    assert same.correlation.mean == pytest.approx(1) and same.overlap == 1
    other = scores_of(noise_maps(1, seed=7).repeat(3, 1, 1))
    found = correlation.relate(scores, other, ("a", "b"), 5)
    assert abs(found.correlation.mean) < 0.35 and found.chance < 0.1
    with pytest.raises(DataError, match="other heads"):
        correlation.relate(
            scores, HeadScores(torch.ones(1, 2, 2), torch.ones(1), ("e",), ("u",)), ("a", "b"), 1
        )


def test_ties_share_their_rank():
    from scipy.stats import spearmanr

    a, b = noise_maps(2).numpy().reshape(2, -1)
    b[b < 0.5] = 0
    ours = correlation.rank_correlation(a[None], b[None])[0]
    assert ours == pytest.approx(spearmanr(a, b).statistic)
