"""What discovery measured: one Preference Contribution Score (PCS, Eq. 3-4) per example and head.

The whole matrix is kept, not only its mean: standard errors, intervals, maps of single users and
of clusters, and exact merging of shards all come from it, without a second run.
"""

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from prefheads.errors import ArtifactError, DataError, PrefheadsError, SteeringError
from prefheads.heads.weights import (
    Head,
    HeadWeights,
    Provenance,
    cpu_float32,
    dims,
    fingerprint,
    require_model,
)
from prefheads.stats import LEVEL, Jackknife, jackknife
from prefheads.storage import PathLike, load_tensors, save_tensors
from prefheads.types import Weighting

__all__ = ["Head", "HeadScores", "HeadWeights", "Provenance", "fingerprint", "select_heads"]


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores:
    """Preference Contribution Scores of every head on every example.

    Attributes:
        values: ``(n_examples, n_layers, n_heads)`` float32; how much the mean response NLL rises
            when the head is ablated, in nats a token (Eq. 4 before the expectation).
        nll: ``(n_examples,)`` float32; response NLL without ablation, in nats a token (Eq. 3).
        example_ids: one id per example.
        user_ids: the user of each example.
        info: how they were measured; ``n_examples`` is filled in.

    Raises:
        DataError: shapes that do not fit, no examples, or values that are not finite.
    """

    values: Tensor
    nll: Tensor
    example_ids: tuple[str, ...]
    user_ids: tuple[str, ...]
    info: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        values, nll = cpu_float32(self.values), cpu_float32(self.nll)
        examples, users = tuple(self.example_ids), tuple(self.user_ids)
        if values.ndim != 3 or not values.numel():
            raise DataError(f"scores are (examples, layers, heads), not of shape {dims(values)}")
        n = len(values)
        if nll.shape != (n,) or len(examples) != n or len(users) != n:
            raise DataError(
                f"scores of {n} examples came with {dims(nll)} NLLs, "
                f"{len(examples)} example ids and {len(users)} user ids"
            )
        finite = torch.isfinite(values).flatten(1).all(1) & torch.isfinite(nll)
        if not finite.all():
            bad = examples[int((~finite).nonzero()[0])]
            raise DataError(
                f"example {bad!r}: its scores are not finite (NaN or infinity); leave it out, "
                "or run the model in float32"
            )
        info = replace(self.info, n_examples=n)
        vars(self).update(values=values, nll=nll, example_ids=examples, user_ids=users, info=info)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(n_examples, n_layers, n_heads)``."""
        return self.values.shape[0], self.values.shape[1], self.values.shape[2]

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return len(self.values)

    @property
    def mean(self) -> Tensor:
        """PCS (Eq. 4): ``(n_layers, n_heads)`` float32, nats a token."""
        return self.values.double().mean(0).float()

    @property
    def stderr(self) -> Tensor:
        """Standard error of ``mean``, ``(n_layers, n_heads)``; NaN if there is only one user.

        Each user is left out with all of their examples (jackknife): examples of one user are
        alike, and counting them one by one would make the error too small.
        """
        return cpu_float32(self._jackknife.stderr)

    @cached_property
    def _jackknife(self) -> Jackknife:
        return jackknife(self.values.double().numpy(), self.user_ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HeadScores):
            return NotImplemented
        return (
            torch.equal(self.values, other.values)
            and torch.equal(self.nll, other.nll)
            and (self.example_ids, self.user_ids, self.info)
            == (other.example_ids, other.user_ids, other.info)
        )

    def __repr__(self) -> str:
        layer, head, score, _ = self.ranked()[0]
        return (
            f"HeadScores({self.n_examples} examples, {len(set(self.user_ids))} users, "
            f"{dims(self.values[0])}, highest {layer}.{head}: {score:.4g})"
        )

    def select(
        self, users: Iterable[str] | None = None, examples: Iterable[str] | None = None
    ) -> "HeadScores":
        """The scores of some users, of some examples (by id), or of what is in both.

        Raises:
            DataError: an id that is not among the scores, or nothing left.
        """
        rows = list(range(self.n_examples))
        for wanted, ids, name in [
            (users, self.user_ids, "user"),
            (examples, self.example_ids, "example"),
        ]:
            if wanted is not None:
                chosen = {wanted} if isinstance(wanted, str) else set(wanted)
                if missing := sorted(chosen.difference(ids)):
                    raise DataError(f"{name} {missing[0]!r} is not among the scores")
                rows = [row for row in rows if ids[row] in chosen]
        return HeadScores(
            self.values[rows],
            self.nll[rows],
            tuple(self.example_ids[row] for row in rows),
            tuple(self.user_ids[row] for row in rows),
            self.info,
        )

    def merge(self, *others: "HeadScores") -> "HeadScores":
        """Join shards of one measurement, exactly: the same as having scored all at once.

        Raises:
            DataError: shards of another shape or provenance, or an example that occurs twice.
        """
        shards = (self, *others)
        for shard in others:
            if shard.shape[1:] != self.shape[1:]:
                raise DataError(
                    f"scores of {dims(self.values[0])} and {dims(shard.values[0])} heads "
                    "cannot be merged"
                )
            if differing := [n for n in self.info.differing(shard.info) if n != "n_examples"]:
                name = differing[0]
                raise DataError(
                    f"scores measured differently cannot be merged: {name} is "
                    f"{getattr(self.info, name)!r} and {getattr(shard.info, name)!r}"
                )
        measured = [(shard.values != 0).any(0) for shard in shards]
        if self.info.method == "screen" and any(not m.equal(measured[0]) for m in measured):
            raise DataError("screened scores of different candidates cannot be merged")
        example_ids = [example for shard in shards for example in shard.example_ids]
        if len(set(example_ids)) < len(example_ids):
            twice = next(e for i, e in enumerate(example_ids) if e in example_ids[:i])
            raise DataError(f"example {twice!r} occurs twice in the scores to merge")
        return HeadScores(
            torch.cat([shard.values for shard in shards]),
            torch.cat([shard.nll for shard in shards]),
            tuple(example_ids),
            tuple(user for shard in shards for user in shard.user_ids),
            self.info,
        )

    def interval(self, level: float = LEVEL) -> tuple[Tensor, Tensor]:
        """Interval of ``mean`` over users: Student's t times ``stderr`` to both sides.

        Args:
            level: how often the interval shall cover the true mean, in (0, 1).

        Returns:
            Lower and upper end, each ``(n_layers, n_heads)``; NaN if there is only one user.
        """
        low, high = self._jackknife.interval(level)
        return cpu_float32(low), cpu_float32(high)

    def top(
        self, k: int | None = None, fraction: float | None = None, signed: bool = False
    ) -> HeadWeights:
        """The heads with the highest PCS, as a binary map (Eq. 5).

        Args:
            k: how many; or
            fraction: what share of all heads, rounded, at least one head.
            signed: take heads with a PCS of zero or less as well if there are not enough above,
                as Eq. 5 read literally does. Otherwise they are left out, with a warning.

        Raises:
            SteeringError: not exactly one of ``k`` and ``fraction``, or out of range.
        """
        return select_heads(self.mean, k, fraction, signed=signed, info=self.info)

    def soft(self, k: int | None = None, fraction: float | None = None) -> HeadWeights:
        """Importance weights in [0, 1] (5.2): positive PCS over the largest PCS, 0 elsewhere.

        Args:
            k: keep only this many heads, as in ``top``; or
            fraction: keep only this share of them; with neither, all with a positive PCS.
        """
        return select_heads(self.mean, k, fraction, weights="soft", info=self.info)

    def ranked(self) -> list[tuple[int, int, float, float]]:
        """All heads as ``(layer, head, mean, stderr)``, highest PCS first."""
        mean, stderr, n_heads = self.mean.flatten(), self.stderr.flatten(), self.shape[2]
        return [
            (i // n_heads, i % n_heads, mean[i].item(), stderr[i].item())
            for i in _descending(mean).tolist()
        ]

    def save(self, path: PathLike) -> None:
        """Write to a safetensors file; ArtifactError if that fails, and then no half file."""
        ids = {"example_ids": self.example_ids, "user_ids": self.user_ids}
        meta = {"info": asdict(self.info), **ids}
        save_tensors(path, {"values": self.values, "nll": self.nll}, "head scores", meta)

    @classmethod
    def load(cls, path: PathLike, model: Any = None) -> Self:
        """Read saved scores.

        Args:
            path: file written by ``save``.
            model: the model (or its config) they are meant for; kind and shape are then checked.

        Raises:
            ArtifactError: missing, damaged or foreign file, or measured on another model.
        """
        tensors, meta = load_tensors(path, "head scores")
        try:
            info, examples, users = meta["info"], meta["example_ids"], meta["user_ids"]
            scores = cls(
                tensors["values"], tensors["nll"], tuple(examples), tuple(users), Provenance(**info)
            )
        except (KeyError, TypeError, PrefheadsError) as error:
            raise ArtifactError(f"{path}: damaged head scores ({error})") from error
        if model is not None:
            require_model(path, scores.values, scores.info, getattr(model, "config", model))
        return scores


def select_heads(
    mean: Tensor,
    k: int | None = None,
    fraction: float | None = None,
    *,
    weights: Weighting = "binary",
    signed: bool = False,
    info: Provenance | None = None,
) -> HeadWeights:
    """Turn a map of mean PCS ``(n_layers, n_heads)``, nats a token, into head weights;
    ``HeadScores.top`` and ``soft`` say how. Equal scores rank by layer, then head."""
    if (k is None) == (fraction is None) and (weights == "binary" or k is not None):
        raise SteeringError("give exactly one of k and fraction")
    flat = mean.flatten()
    wanted = _count(flat.numel(), k, fraction)
    chosen = _descending(flat)[:wanted]
    if not signed:
        chosen = chosen[flat[chosen] > 0]
        if len(chosen) < (1 if k is None and fraction is None else wanted):
            warnings.warn(
                f"only {len(chosen)} of {wanted} heads have a positive score; took these",
                stacklevel=3,
            )
    values = torch.zeros_like(flat)
    if weights == "binary":
        values[chosen] = 1
    elif weights == "soft":
        values[chosen] = (flat[chosen] / flat.max()).clamp(0, 1)
    else:
        raise SteeringError(f"weights are 'binary' or 'soft', not {weights!r}")
    return HeadWeights(values.reshape(mean.shape), info or Provenance())


def _count(n_heads: int, k: int | None, fraction: float | None) -> int:
    if k is not None and not 1 <= k <= n_heads:
        raise SteeringError(f"k={k}: choose between 1 and {n_heads} heads")
    if fraction is None:
        return n_heads if k is None else k
    if not 0 < fraction <= 1:
        raise SteeringError(f"fraction={fraction}: choose more than 0 and at most 1")
    return max(1, round(fraction * n_heads))


def _descending(flat: Tensor) -> Tensor:
    # Stable: equal scores keep the order of the heads, so that a choice can be repeated.
    return torch.argsort(flat, descending=True, stable=True)
