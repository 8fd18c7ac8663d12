"""How to steer, as one value, checked once; calibration chooses between such settings.

A setting turns head weights into the gains of the changed branch (sections 4 and 5.3), and the
logits of two branches into those of their contrast (Eq. 8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefheads.errors import SteeringError
from prefheads.interventions.forward import Generation
from prefheads.interventions.plan import (
    ALL_POSITIONS,
    ActivePositions,
    BranchPlan,
    without_branches,
)
from prefheads.steering.combine import combine, entropy_strength, require_plausibility
from prefheads.types import Mode, Schedule, Scope, Target

_WORDS = {"mode": Mode, "target": Target, "scope": Scope, "schedule": Schedule}


@dataclass(frozen=True)
class Setting:
    """One way to steer: which heads, on which target, how, and how strongly.

    Attributes:
        heads: Name of the head set. The other fields are those of :func:`prefheads.steer`.

    Raises:
        SteeringError: A value out of range, or options that do not go together.
    """

    heads: str = ""
    mode: Mode = "amplify"
    target: Target = "head"
    gamma: float = 0.0
    suppression: float = 1.0
    schedule: Schedule = "constant"
    cap: float | None = None
    # Not in the repr: texts of older runs are marked with a hash of it.
    scope: Scope = field(default="response", repr=False)
    plausibility: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            value, known = getattr(self, name), get_args(words)
            if value not in known:
                raise SteeringError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
        for name in ("gamma", "suppression", "cap", "plausibility"):
            number = getattr(self, name)
            optional = number is None and name in ("cap", "plausibility")
            if not optional and (not isinstance(number, Real) or isinstance(number, bool)):
                raise SteeringError(f"{name} must be a number, not {number!r}")
        if not 0 <= self.gamma < math.inf:
            raise SteeringError("gamma must be a finite number of at least 0")
        if not 0 <= self.suppression <= 1:
            raise SteeringError("suppression must lie in [0, 1]")
        require_plausibility(self.plausibility)
        if self.cap is not None and (self.schedule != "entropy" or not self.cap >= 0):
            raise SteeringError("cap is a bound of at least 0, of schedule='entropy'")
        if self.mode == "amplify" and (
            self.schedule != "constant" or self.plausibility is not None
        ):
            raise SteeringError("schedule and plausibility are for mode='contrast'")

    @property
    def plain(self) -> bool:
        """Whether this is no steering at all."""
        return self.gamma == 0

    @property
    def of_paper(self) -> bool:
        """Whether it is of the paper's form (Eq. 8): a contrast with whole heads removed."""
        removed = self.mode == "contrast" and self.target == "head" and self.suppression == 1
        return removed and not self.plain

    def changed(self, **changes: Any) -> Setting:
        """A copy with those of ``changes`` that are not None; amplification drops the options of
        contrast."""
        given = {name: value for name, value in changes.items() if value is not None}
        if given.get("mode", self.mode) == "amplify":
            given = {"schedule": "constant", "cap": None, "plausibility": None} | given
        return replace(self, **given)

    def change(self, weights: Tensor) -> Tensor:
        """What steering adds to gains of 1 for a map of weights; same shape."""
        return (self.gamma if self.mode == "amplify" else -self.suppression) * weights

    def gains(self, weights: Tensor) -> Tensor:
        """Gains of the changed branch for a map of weights; same shape."""
        return 1 + self.change(weights)

    def contrasted(
        self,
        personalised: Tensor,
        generic: Tensor,
        gamma: Tensor | float | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """Logits ``(..., vocab)`` of a contrast of two branches (Eq. 8); ``gamma``, in place of the
        setting's, and ``active`` as for :func:`prefheads.steering.combine.combine`."""
        strength = self.gamma if gamma is None else gamma
        if self.schedule == "entropy":
            strength = entropy_strength(personalised, strength, self.cap)
        return combine(
            personalised, generic, strength, active=active, plausibility=self.plausibility
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data, without the scope: a run has one for all its settings."""
        data = asdict(self)
        del data["scope"]
        if self.plausibility is None:  # tables of version 0.1.0 do not have it
            del data["plausibility"]
        return data

    def __str__(self) -> str:
        if self.plain:
            return "plain (no steering)"
        how = f"{self.mode} {self.target}, {self.heads}, gamma {self.gamma:g}"
        faint = self.mode == "contrast" and self.suppression != 1
        how += f", suppression {self.suppression:g}" if faint else ""
        if self.schedule == "entropy":
            how += " x entropy" + (f", at most {self.cap:g}" if self.cap is not None else "")
        return how


PLAIN = Setting()


class Steering:
    """How a model is steered now; made by :func:`prefheads.steering.context.steer_with`.

    Attributes:
        setting: How; of a batch, with the first user's gamma.
        gamma: Strength, one or one a user ``(B,)``.
        weights: Map, one or one a user ``(B, n_layers, n_heads)``.
        profile_mask: The profile's tokens in the prompt, one row or one a user, or None.
        batch: Users that it is for; 1 for any number.
        idle: Whether it does nothing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        weights: Tensor,
        settings: Sequence[Setting],
        profile_mask: Tensor | None,
    ) -> None:
        sizes = {len(weights), len(settings)} - {1}
        if len(sizes) > 1:
            raise SteeringError(
                f"{len(weights)} maps of weights but {len(settings)} values of gamma"
            )
        self.batch = max(sizes, default=1)
        self.model, self.weights, self.setting = model, weights, settings[0]
        self.profile_mask = profile_mask
        self.gamma = torch.tensor([s.gamma for s in settings])
        maps = weights.expand(max(len(weights), len(settings)), -1, -1)
        users = list(settings) * (len(maps) // len(settings))
        changes = torch.stack([s.change(m) for s, m in zip(users, maps, strict=True)])
        self.idle = not any(s.gamma and c.any() for s, c in zip(users, changes, strict=True))
        self._gains = 1 + changes
        self._plans: dict[tuple[int, bool], BranchPlan] = {}

    def rows(self, per_user: Tensor, n: int) -> Tensor:
        """One row a user, repeated for beams as ``generate`` repeats its inputs."""
        if len(per_user) == 1:
            return per_user.expand(n, *per_user.shape[1:])
        if n % len(per_user):
            raise SteeringError(f"a batch of {n} does not fit steering for {len(per_user)} users")
        return per_user.repeat_interleave(n // len(per_user), 0)

    def plan(self, n: int, *, bottom: bool = False) -> BranchPlan:
        """Rows and gains for a batch of ``n``: amplified, or with ``n`` depersonalised branches,
        which leave in the lowest layer if ``bottom``, whatever the map."""
        if (n, bottom) not in self._plans:
            gains, target = self.rows(self._gains, n), self.setting.target
            if self.setting.mode == "amplify":
                self._plans[n, bottom] = without_branches(gains, target)
            else:
                first = 0 if bottom else int((self.weights > 0).any(2).any(0).int().argmax())
                both = torch.cat([torch.ones_like(gains), gains])
                self._plans[n, bottom] = BranchPlan(both, n, [first] * n, range(n), target)
        return self._plans[n, bottom]

    def admit(self, generation: Generation) -> None:
        """Refuse a run of ``generate()`` that is not for the users of this steering."""
        masks = 1 if self.profile_mask is None else len(self.profile_mask)
        for users in {self.batch, masks} - {1}:
            if generation.n_rows not in (None, users):
                raise SteeringError(
                    f"a batch of {generation.n_rows} does not fit steering for {users} users"
                )

    def combine(
        self, logits: Tensor, n: int, active: ActivePositions = ALL_POSITIONS, length: int = 1
    ) -> Tensor:
        """The steered logits of a call's last positions ``(n, kept, vocab)``.

        Args:
            logits: Of the rows of both branches, the last of ``length`` positions.
            active: The positions at which the call is steered.
        """
        first = length - logits.shape[1]
        plain = max(0, active.start - first)
        before, logits = logits[:n, :plain], logits[:, plain:]
        personalised, generic = logits[:n], logits[n:]
        gamma = self.rows(self.gamma, n).to(logits.device)[:, None, None]
        acts = self.rows(self.weights.amax((1, 2)) > 0, n).to(logits.device)[:, None, None]
        mask = active.mask(first + plain, length, logits.device)
        if mask is not None:
            acts = acts & mask[:, :, None]
        steered = self.setting.contrasted(personalised, generic, gamma, acts)
        return torch.cat([before.to(steered.dtype), steered], 1) if plain else steered
