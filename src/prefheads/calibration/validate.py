"""Measure what steering gains on unseen users, beside the controls that the gain needs.

A lower NLL can come from a better temperature, from disturbing any heads at all, or from using any
profile more. So each claim stands beside plain decoding at its best temperature, random heads, and
the same steering with another user's profile in the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefheads.calibration.calibrate import beside, sweep
from prefheads.data.example import Example, other_profiles, without_profile
from prefheads.errors import DataError
from prefheads.heads.weights import HeadWeights
from prefheads.stats import Array, Estimate, jackknife
from prefheads.steering.setting import PLAIN, Setting

N_RANDOM = 5  # random draws a control is averaged over


@dataclass(frozen=True)
class Row:
    """One line of a validation table; NLL in nats a token, all changes against plain decoding.

    Attributes:
        method: What is done.
        nll: Mean NLL of the response, with the own profile in the prompt.
        change: Its change against plain (negative helps).
        other: Change with another user's profile in the prompt.
        none: Change with no profile in the prompt.
        specificity: NLL with the other's profile minus NLL with the own.
        specificity_change: Its change against plain decoding.
        own_wins: Share of samples in which the own profile beats the other's.

    What was not measured is NaN; infinite where a method rules out what a user wrote.
    """

    method: str
    nll: float
    change: Estimate
    other: Estimate
    none: Estimate
    specificity: Estimate
    specificity_change: Estimate
    own_wins: Estimate


@dataclass(frozen=True)
class Validation:
    """NLL of every method on every test sample, in three contexts.

    Attributes:
        setting: The steering that was tested.
        methods: Names; the first is plain decoding.
        nll: ``(n_examples, 3, n_methods)``, nats a token: own, other, no profile. Random controls
            are means over draws, measured with the own profile only, and NaN elsewhere.
        example_ids, user_ids: ``n_examples`` ids each.
        draws: Of random controls the same for each draw, ``(n_examples, 3, n_draws)``, by method.
    """

    setting: Setting
    methods: tuple[str, ...]
    nll: Array
    example_ids: tuple[str, ...]
    user_ids: tuple[str, ...]
    draws: Mapping[str, Array] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """The table: means with 95 % intervals over users (:mod:`prefheads.stats`)."""
        own, other, none = (self.nll[:, i] for i in range(3))
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            specific = other - own

        def estimate(values: Array) -> Estimate:
            return Estimate.of(values, self.user_ids)

        return [
            Row(
                method,
                float(own[:, i].mean()),
                self.difference(method, self.methods[0]),
                estimate(other[:, i] - other[:, 0]),
                estimate(none[:, i] - none[:, 0]),
                estimate(specific[:, i]),
                estimate(specific[:, i] - specific[:, 0]),
                Estimate.of_share(
                    np.where(np.isnan(specific[:, i]), np.nan, specific[:, i] > 0), self.user_ids
                ),
            )
            for i, method in enumerate(self.methods)
        ]

    def difference(self, method: str, baseline: str) -> Estimate:
        """Paired difference of NLL (own profile); negative favours ``method``."""
        a, b = (self.of(name)[:, 0] for name in (method, baseline))
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            found = jackknife(a.mean(1) - b.mean(1), self.user_ids)
        return Estimate.from_jackknife(found.over_draws([a.mean(0), b.mean(0)]))

    def of(self, method: str) -> Array:
        """NLL of each draw of a method, ``(n_examples, 3, n_draws)``; of others there is one."""
        return self.draws.get(method, self.nll[:, :, [self.methods.index(method)]])

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data: the raw matrix and the table."""
        return {
            "setting": self.setting.to_dict(),
            "methods": list(self.methods),
            "nll": self.nll.tolist(),
            "example_ids": list(self.example_ids),
            "user_ids": list(self.user_ids),
            "draws": {method: values.tolist() for method, values in self.draws.items()},
            "table": [asdict(row) for row in self.rows()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Validation:
        """Inverse of :meth:`to_dict`; the table is computed anew from the matrix."""
        return cls(
            Setting(**data["setting"]),
            tuple(data["methods"]),
            np.array(data["nll"], dtype=np.float64),
            tuple(data["example_ids"]),
            tuple(data["user_ids"]),
            {m: np.array(v, dtype=np.float64) for m, v in data.get("draws", {}).items()},
        )


def validate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    heads: Sequence[HeadWeights],
    setting: Setting,
    *,
    others: Mapping[str, tuple[Sequence[HeadWeights], Setting]] | None = None,
    plain_temperature: float = 1.0,
    temperature: float = 1.0,
    checkpoint: str | Path | None = None,
    tokens_per_pass: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> Validation:
    """Measure a calibrated steering on test samples, with its controls.

    Args:
        examples: Test samples, of users who took part neither in discovery nor in calibration.
        heads: Map of each sample's user, ``n_examples`` of them.
        setting: How to steer with them.
        others: More steerings to measure beside it, by name: their maps and settings, of the
            same scope.
        plain_temperature, temperature: Calibrated temperatures of plain and steered decoding.
        checkpoint: File to keep finished samples in, so that a killed run goes on from there.
        seed: Draws the random heads, and whose profile is the other one.

    Raises:
        DataError: No samples, or of one user only.
    """
    if not examples:
        raise DataError("no samples to validate on")
    maps: dict[str, Tensor] = {"steered": _stack(heads)}
    settings: dict[str, Setting] = {"plain": PLAIN}
    if not setting.plain:
        settings["steered"] = replace(setting, heads="steered")
        for kind in ("heads", "mask"):
            for i in range(N_RANDOM):
                name = f"random {kind} {i}"
                # one draw for equal maps, so that users of one cluster share their control
                maps[name] = _stack([h.random_like(seed + i, kind) for h in heads])
                settings[name] = replace(setting, heads=name)
    for name, (theirs, how) in (others or {}).items():
        maps[name] = _stack(theirs)
        settings[name] = replace(how, heads=name)
    temperatures = sorted({1.0, plain_temperature, temperature})
    names = list(settings)
    compared = [name for name in names if not name.startswith("random ")]
    score = partial(
        sweep, model, tokenizer, maps=maps, temperatures=temperatures,
        tokens_per_pass=tokens_per_pass, progress=progress,
    )  # fmt: skip
    first, second = beside(checkpoint, "own"), beside(checkpoint, "others")
    everything = list(settings.values())
    own, _ = score([examples], settings=everything, checkpoint=first, label="own profile")
    rest, _ = score(
        [other_profiles(examples, seed), [without_profile(e) for e in examples]],
        settings=[settings[name] for name in compared],
        checkpoint=second,
        label="other profiles",
    )

    def at(name: str, degree: float = 1.0) -> Array:
        t = temperatures.index(degree)
        result = np.full((len(examples), 3), np.nan)
        result[:, 0] = own[:, 0, names.index(name), t]
        if name in compared:
            result[:, 1:] = rest[:, :, compared.index(name), t]
        return result

    columns = {
        "plain": at("plain"),
        f"plain, temperature {plain_temperature:g}": at("plain", plain_temperature),
    }
    draws: dict[str, Array] = {}
    if not setting.plain:
        columns["steered"] = at("steered")
        columns[f"steered, temperature {temperature:g}"] = at("steered", temperature)
        for kind, label in (("heads", "random heads"), ("mask", "random masks")):
            each = np.stack([at(f"random {kind} {i}") for i in range(N_RANDOM)], -1)
            name = f"{label} (mean of {N_RANDOM})"
            columns[name], draws[name] = each.mean(-1), each
    columns |= {name: at(name) for name in others or {}}
    return Validation(
        setting,
        tuple(columns),
        np.stack(list(columns.values()), -1),
        tuple(e.id for e in examples),
        tuple(e.user_id for e in examples),
        draws,
    )


def _stack(heads: Sequence[HeadWeights]) -> Tensor:
    return torch.stack([h.values for h in heads])
