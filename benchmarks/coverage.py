"""How often the intervals that are printed cover what they estimate, by simulation.

    python -m benchmarks coverage                # the table of docs/science.md
    python -m benchmarks coverage --draws 200    # a quick look

Each kind of figure is drawn again and again from users whose truth is known, with the library's
own functions. For macro-F1, a Gini coefficient, a share of heads, an overlap and a rank correlation
the truth is what as many users give on average: few samples move the figure itself (a label that
is not among them counts as 0), which no interval mends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prefheads.calibration.validate import N_RANDOM
from prefheads.evaluation.significance import interval
from prefheads.report.statistics.correlation import rank_correlation
from prefheads.report.statistics.findings import LEVEL
from prefheads.report.statistics.overlap import jaccard, top_sets
from prefheads.report.statistics.sparsity import concentration, gini
from prefheads.stats import Array, Estimate, holm, jackknife, pairs_jackknife
from prefheads.tasks.answers import Metric, answers_of
from prefheads.tasks.metrics import sample_scores

USERS = (2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)
N_HEADS, TOP = 60, 5
CLAIMS = 6
F1 = answers_of("LaMP-2").metrics[1]

Rng = np.random.Generator
Ends = tuple[Any, Any, Any]  # lower and upper ends of the draws, and the truth
Kind = Callable[[Rng, int, int], Ends]


def normal(rng: Rng, shape: Sequence[int]) -> Array:
    return rng.normal(size=shape)


def skewed(rng: Rng, shape: Sequence[int]) -> Array:
    """Exponential: skewness 2; most users below the mean, a few far above."""
    return rng.exponential(size=shape) - 1


def very_skewed(rng: Rng, shape: Sequence[int]) -> Array:
    """Log-normal: skewness 6."""
    return np.exp(rng.normal(size=shape)) - np.exp(0.5)


def names(n_users: int, each: Sequence[int] | int = 1) -> list[str]:
    """The user of each sample, users in sorted order."""
    return np.repeat([f"u{i:03}" for i in range(n_users)], each).tolist()


def mean(draw: Callable[[Rng, Sequence[int]], Array], sizes: str = "one") -> Kind:
    """A mean; half of what a sample differs by is its user's where users have several."""

    def kind(rng: Rng, n: int, draws: int) -> Ends:
        each = {"one": [1] * n, "four": [4] * n, "half": [4] * (n - 1) + [4 * (n - 1)]}[sizes]
        own = np.repeat(draw(rng, (n, draws)), each, axis=0)
        values = own + draw(rng, own.shape) if sizes != "one" else own
        return *jackknife(values, names(n, each)).interval(), 0.0

    return kind


def bootstrapped(rng: Rng, n: int, draws: int) -> Ends:
    """The percentile bootstrap of a normal mean, for comparison: what few users cannot have."""
    values = rng.normal(size=(n, draws))
    again = rng.multinomial(n, np.full(n, 1 / n), size=1000) / n
    return *np.quantile(again @ values, [0.025, 0.975], axis=0), 0.0


def share(p: float, each: int = 1) -> Kind:
    """A share; users differ in theirs where they have several samples."""

    def kind(rng: Rng, n: int, draws: int) -> Ends:
        own = rng.beta(2 * p, 2 * (1 - p), (draws, n)) if each > 1 else np.full((draws, n), p)
        values = rng.random((draws, n * each)) < np.repeat(own, each, axis=1)
        return _ends(Estimate.of_share(v, names(n, each)) for v in values), p

    return _unpacked(kind)


def paired_shares(wins: float, losses: float) -> Kind:
    """A difference of two shares of the same samples."""

    def kind(rng: Rng, n: int, draws: int) -> Ends:
        values = rng.choice([1, -1, 0], (draws, n), p=[wins, losses, 1 - wins - losses])
        return _ends(Estimate.of_difference(v, names(n)) for v in values), wins - losses

    return _unpacked(kind)


def metric(of: Metric, rows: Callable[[Rng, int], Array]) -> Kind:
    """A metric of a task, each user with one sample; the truth from very many."""

    def kind(rng: Rng, n: int, draws: int) -> Ends:
        found = [interval(rows(rng, n), of, names(n)) for _ in range(draws)]
        small = of.of_mean is F1.of_mean
        truth = np.mean([e.mean for e in found]) if small else of.aggregate(rows(rng, 200_000))
        return _ends(found), truth

    return _unpacked(kind)


def labels(task: str, right: float) -> Callable[[Rng, int], Array]:
    """Rows of macro-F1 where so many answers are right and the others random."""
    known = np.array(answers_of(task).labels)
    one_of_each = sample_scores(task, known.tolist(), known.tolist())["f1"]
    k = len(known)

    def rows(rng: Rng, n: int) -> Array:
        gold, other = rng.integers(0, k, (2, n))
        told = np.where(rng.random(n) < right, gold, other)
        hits = one_of_each[gold, :k] * (told == gold)[:, None]
        return np.concatenate([hits, one_of_each[gold, :k] + one_of_each[told, :k]], axis=1)

    return rows


def of_maps(of: Callable[[Array], Array]) -> Kind:
    """A function of the mean map of heads, a few of which matter."""

    def kind(rng: Rng, n: int, draws: int) -> Ends:
        effect = rng.exponential(size=N_HEADS) ** 2 / 2
        values = effect + rng.normal(0, 1.5, (n, draws, N_HEADS))
        found = jackknife(values, names(n), of)
        return *found.interval(), found.value.mean()

    return kind


def correlation(rng: Rng, n: int, draws: int) -> Ends:
    """Rank correlation over heads of two measurements of the same samples."""
    one = rng.normal(size=(2, N_HEADS))
    truth = np.stack([one[0], 0.5 * one[0] + one[1]])
    found = [
        jackknife(truth + rng.normal(0, 1.5, (n, 2, N_HEADS)), names(n), _correlated)
        for _ in range(draws // 4)
    ]
    low, high = zip(*(f.interval() for f in found), strict=True)
    return np.array(low), np.array(high), np.mean([f.value for f in found])


def overlap(rng: Rng, n: int, draws: int) -> Ends:
    """Mean overlap of users' top heads over pairs of users."""
    effect = rng.exponential(size=N_HEADS)
    sets = top_sets(effect + rng.normal(0, 1.0, (draws, n, N_HEADS)), TOP)
    found = [pairs_jackknife(jaccard(s, s)) for s in sets]
    low, high = zip(*(f.interval() for f in found), strict=True)
    return np.array(low), np.array(high), np.mean([f.value for f in found])


def control(spread: float) -> Kind:
    """The mean of a random control over five draws, which differ by so much as users do."""

    def kind(rng: Rng, n: int, draws: int) -> Ends:
        own, drawn = rng.normal(size=(draws, n, 1)), spread * rng.normal(size=(draws, 1, N_RANDOM))
        values = own + drawn + 0.5 * rng.normal(size=(draws, n, N_RANDOM))
        found = [jackknife(v.mean(1), names(n)).over_draws([v.mean(0)]) for v in values]
        low, high = zip(*(f.interval() for f in found), strict=True)
        return np.array(low), np.array(high), 0.0

    return kind


def verdicts(draw: Callable[[Rng, Sequence[int]], Array]) -> Kind:
    """No verdict on any of six claims, where nothing is true of any."""

    def kind(rng: Rng, n: int, draws: int) -> Ends:
        shared = draw(rng, (n, draws, 1))
        p = jackknife(shared + draw(rng, (n, draws, CLAIMS)), names(n)).p
        told = np.array([holm(row.tolist()).min() < LEVEL for row in p])
        return np.where(told, 1.0, -1.0), np.ones(draws), 0.0

    return kind


def _ends(found: Any) -> Any:
    return np.array([(e.low, e.high) for e in found]).T


def _unpacked(kind: Callable[[Rng, int, int], tuple[Any, float]]) -> Kind:
    def ends(rng: Rng, n: int, draws: int) -> Ends:
        (low, high), truth = kind(rng, n, draws)
        return low, high, truth

    return ends


def _bounded(rng: Rng, n: int) -> Array:
    return rng.beta(0.6, 2, n)  # as ROUGE of titles: many near 0


def _nll(rng: Rng, n: int) -> Array:
    return rng.gamma(9, 0.4, n)


def _squares(rng: Rng, n: int) -> Array:
    return rng.choice(5, n, p=[0.45, 0.3, 0.15, 0.07, 0.03]) ** 2.0  # errors of ratings


def _top(maps: Array) -> Array:
    return concentration(maps[..., None])[..., TOP - 1]


def _correlated(maps: Array) -> Array:
    return rank_correlation(maps[:, 0], maps[:, 1])


def _gini(maps: Array) -> Array:
    return gini(maps[..., None])


KINDS: Mapping[str, Kind] = {
    "mean, normal": mean(normal),
    "mean, normal, four samples a user": mean(normal, "four"),
    "mean, normal, one user with half of the samples": mean(normal, "half"),
    "mean, skewed (exponential)": mean(skewed),
    "mean, skewed, four samples a user": mean(skewed, "four"),
    "mean, very skewed (log-normal)": mean(very_skewed),
    "share of 0.02": share(0.02),
    "share of 0.1": share(0.1),
    "share of 0.5": share(0.5),
    "share of 0.1, four samples a user": share(0.1, 4),
    "share of 0.5, four samples a user": share(0.5, 4),
    "difference of shares, 0.05 less 0.05": paired_shares(0.05, 0.05),
    "difference of shares, 0.4 less 0.2": paired_shares(0.4, 0.2),
    "ROUGE, METEOR": metric(answers_of("LaMP-7").metrics[0], _bounded),
    "macro-F1, 2 labels": metric(F1, labels("LaMP-1", 0.6)),
    "macro-F1, 15 labels": metric(F1, labels("LaMP-2", 0.4)),
    "RMSE": metric(answers_of("LaMP-3").metrics[1], _squares),
    "perplexity": metric(Metric("perplexity", False, outer=np.exp), _nll),
    "Gini coefficient of a map": of_maps(_gini),
    "share of the top heads": of_maps(_top),
    "rank correlation of two maps": correlation,
    "overlap of pairs of users": overlap,
    "random control, draws as unlike as users": control(1.0),
    "random control, draws much alike": control(0.1),
    "no verdict of six, normal": verdicts(normal),
    "no verdict of six, skewed": verdicts(skewed),
    "for comparison: percentile bootstrap, normal": bootstrapped,
}


def coverage(kind: Kind, n_users: int, draws: int, seed: int = 0) -> float:
    """Share of the intervals that cover the truth; NaN where so few users have none."""
    low, high, truth = kind(np.random.default_rng(seed), n_users, draws)
    printed = np.isfinite(low)
    covers = (low <= truth + 1e-12) & (truth - 1e-12 <= high)
    return float(covers[printed].mean()) if printed.any() else float("nan")


def table(draws: int, seed: int) -> None:
    """Print the coverage of every kind, in per cent; empty where so few users have no interval."""
    print(f"| users | {' | '.join(map(str, USERS))} |\n|{' --- |' * (len(USERS) + 1)}")
    for name, kind in KINDS.items():
        found = [100 * coverage(kind, n, draws, seed) for n in USERS]
        told = " | ".join("" if np.isnan(x) else f"{x:.1f}" for x in found)
        print(f"| {name} | {told} |", flush=True)
