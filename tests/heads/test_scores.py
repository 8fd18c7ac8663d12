"""Scores of heads: statistics, merging, selection."""

import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from support.maps import INFO, make_scores
from support.models import tiny

from prefheads.errors import ArtifactError, DataError, SteeringError
from prefheads.heads.scores import HeadScores, Provenance, fingerprint, select_heads


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


# --- statistics of scores


def test_mean_and_stderr_are_the_textbook_ones() -> None:
    scores = make_scores()
    for layer in range(4):
        for head in range(3):
            column = [float(v) for v in scores.values[:, layer, head]]
            assert scores.mean[layer, head].item() == pytest.approx(statistics.mean(column), 1e-5)
            pairs = [statistics.mean(column[i : i + 2]) for i in range(0, 12, 2)]  # one user's
            expected = statistics.stdev(pairs) / len(pairs) ** 0.5
            assert scores.stderr[layer, head].item() == pytest.approx(expected, 1e-5)


def test_one_example_has_no_stderr_and_one_user_no_interval() -> None:
    single = make_scores().select(examples="e3")
    assert single.n_examples == 1
    assert single.stderr.isnan().all()
    low, high = make_scores().select(users="u1").interval()
    assert low.isnan().all() and high.isnan().all()


def test_merged_shards_are_the_whole() -> None:
    whole = make_scores()
    shards = [whole.select(examples=[f"e{i}" for i in rows]) for rows in ([0], range(1, 7), [7])]
    rest = whole.select(examples=[f"e{i}" for i in range(8, 12)])
    assert shards[0].merge(*shards[1:], rest) == whole


def test_merge_refuses_what_does_not_belong_together() -> None:
    scores = make_scores()
    half = scores.select(users=["u0", "u1"])
    with pytest.raises(DataError, match="'e0' occurs twice"):
        scores.merge(half)
    other = replace(scores.select(users=["u5"]), info=replace(INFO, scope="response"))
    with pytest.raises(DataError, match="scope is 'all' and 'response'"):
        half.merge(other)
    with pytest.raises(DataError, match="cannot be merged"):
        half.merge(make_scores(heads=5))


def test_select_takes_rows_by_user_and_example() -> None:
    scores = make_scores()
    some = scores.select(users=["u1", "u4"])
    assert some.example_ids == ("e2", "e3", "e8", "e9")
    assert torch.equal(some.values, scores.values[[2, 3, 8, 9]])
    assert torch.equal(some.nll, scores.nll[[2, 3, 8, 9]])
    assert some.info.n_examples == 4
    assert scores.select(users=["u1"], examples=["e3", "e4"]).example_ids == ("e3",)
    with pytest.raises(DataError, match="user 'nobody'"):
        scores.select(users=["u1", "nobody"])
    with pytest.raises(DataError):
        scores.select(users=["u0"], examples=["e9"])


def test_interval_covers_the_truth_where_examples_of_a_user_are_alike() -> None:
    rng = np.random.default_rng(0)
    users, each, heads = 30, 5, 400
    truth = 0.3
    per_user = rng.normal(0, 1, (users, 1, heads)).repeat(each, axis=1)
    values = truth + per_user + rng.normal(0, 0.2, (users, each, heads))
    scores = HeadScores(
        torch.tensor(values.reshape(-1, 1, heads)),
        torch.ones(users * each),
        tuple(map(str, range(users * each))),
        tuple(f"u{i // each}" for i in range(users * each)),
    )
    low, high = scores.interval(0.95)
    covered = ((low <= truth) & (truth <= high)).float().mean().item()
    assert 0.89 <= covered <= 0.98
    # Counting examples one by one would make it about half as wide; t of 29 degrees is 2.045.
    one_by_one = scores.values.std(0) / (users * each) ** 0.5
    assert (scores.stderr / one_by_one).mean() > 1.7
    assert torch.allclose(high - low, 2 * 2.0452 * scores.stderr, rtol=1e-4)


def test_interval_weighs_users_by_their_examples() -> None:
    # Two users with 1 and 3 examples, whose mean is 2: without the one it is 0, without the
    # other 8. They tell as much as 16 / 10 equal users.
    values = torch.tensor([8.0, 0.0, 0.0, 0.0]).reshape(4, 1, 1)
    scores = HeadScores(values, torch.ones(4), tuple("abcd"), ("u", "v", "v", "v"))
    assert scores.stderr.item() == pytest.approx(((2**2 + 6**2) / 2) ** 0.5)
    for level in (0.5, 0.9):
        reach = student.ppf((1 + level) / 2, 0.6) * 20**0.5
        low, high = scores.interval(level)
        assert (low.item(), high.item()) == pytest.approx((2 - reach, 2 + reach))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_example(bad: float) -> None:
    scores = make_scores()
    values = scores.values.clone()
    values[7, 1, 2] = bad
    with pytest.raises(DataError, match="'e7'") as error:
        replace(scores, values=values)
    one_line(error)


def test_scores_need_matching_shapes() -> None:
    scores = make_scores()
    with pytest.raises(DataError, match="11 NLLs"):
        replace(scores, nll=scores.nll[1:])
    with pytest.raises(DataError):
        replace(scores, user_ids=scores.user_ids[1:])
    with pytest.raises(DataError):
        replace(scores, values=scores.values[0])


def test_scores_keep_a_copy_of_what_they_are_given() -> None:
    values = torch.zeros(2, 1, 1)
    scores = HeadScores(values, torch.ones(2), ("a", "b"), ("u", "v"))
    values += 1
    assert scores.mean.item() == 0


# --- selection


@pytest.mark.parametrize("seed", range(5))
def test_top_is_a_naive_sort(seed: int) -> None:
    scores = make_scores(seed=seed, layers=6, heads=5)
    mean = scores.mean
    naive = sorted(
        [(layer, head) for layer in range(6) for head in range(5)],
        key=lambda at: -mean[at].item(),
    )
    n_positive = int((mean > 0).sum())
    for k in (1, 3, n_positive):
        top = scores.top(k=k)
        assert set(top.heads) == set(naive[:k])
        assert set(top.values.unique().tolist()) <= {0.0, 1.0}
    ranked = scores.ranked()
    assert [(layer, head) for layer, head, _, _ in ranked] == naive
    assert ranked[0][2:] == (mean[naive[0]].item(), scores.stderr[naive[0]].item())


def test_fraction_is_of_all_heads_rounded_and_never_none() -> None:
    positive = torch.arange(270.0).reshape(30, 9) + 1
    assert select_heads(positive, fraction=0.04).n_active == 11
    assert select_heads(positive, fraction=1e-6).n_active == 1
    assert select_heads(positive, fraction=1.0).n_active == 270


def test_ties_go_to_the_lower_layer_and_head() -> None:
    assert select_heads(torch.ones(5, 40), k=3).heads == [(0, 0), (0, 1), (0, 2)]


def test_only_helpful_heads_are_chosen_unless_signed() -> None:
    mean = torch.tensor([[0.5, -0.1], [0.0, 0.2]])
    with pytest.warns(UserWarning, match="only 2 of 3"):
        assert select_heads(mean, k=3).heads == [(0, 0), (1, 1)]
    assert select_heads(mean, k=3, signed=True).heads == [(0, 0), (1, 0), (1, 1)]
    with pytest.warns(UserWarning):
        assert select_heads(-mean.abs(), weights="soft").n_active == 0


def test_selection_wants_exactly_one_size_in_range() -> None:
    scores = make_scores()
    cases: list[dict[str, Any]] = [
        {},
        {"k": 2, "fraction": 0.1},
        {"k": 0},
        {"k": 13},
        {"fraction": 0.0},
        {"fraction": 1.5},
    ]
    for arguments in cases:
        with pytest.raises(SteeringError) as error:
            scores.top(**arguments)
        one_line(error)


def test_soft_weights_are_shares_of_the_largest() -> None:
    mean = torch.tensor([[0.4, -0.3], [0.1, 0.2]])
    assert select_heads(mean, weights="soft").values.tolist() == [[1.0, 0.0], [0.25, 0.5]]
    assert select_heads(mean, k=2, weights="soft").values.tolist() == [[1.0, 0.0], [0.0, 0.5]]
    scores = make_scores()
    assert torch.allclose(scores.soft().values, (scores.mean / scores.mean.max()).clamp(min=0))
    assert scores.soft(k=2).heads == scores.top(k=2).heads


def test_scores_of_another_model_are_refused(tmp_path):
    model = tiny("llama")
    info = Provenance(fingerprint=fingerprint(model.config))
    found = HeadScores(torch.zeros(1, 3, 4), torch.zeros(1), ("e",), ("u",), info)
    found.save(tmp_path / "scores.safetensors")
    assert HeadScores.load(tmp_path / "scores.safetensors", model) == found
    with pytest.raises(ArtifactError, match="not for"):
        HeadScores.load(tmp_path / "scores.safetensors", tiny("llama", num_hidden_layers=4))
