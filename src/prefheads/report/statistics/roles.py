"""What the top heads do, beside random heads: where they look, what they copy, and what they move.

Heads were chosen by ablation; that they have some effect is no news, what it is may be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefheads.heads.scores import HeadScores
from prefheads.report.measure.effects import FLOOR, Effect, HeadRoles, Shift
from prefheads.report.wording import columns, counted, quoted, show
from prefheads.stats import Array, Estimate

N_TOLD = 3  # tokens a head in a sentence; the table has more


@dataclass(frozen=True)
class Measure:
    """One thing measured of the top heads, of each and beside its controls.

    Attributes:
        name: With its unit.
        heads: Of each top head.
        random: Mean of random heads.
        level: Expected of a head that does nothing special; None if there is no such level.
    """

    name: str
    heads: Sequence[Estimate]
    random: Estimate
    level: float | None = None


@dataclass(frozen=True)
class TopHeads:
    """The heads of one discovery whose effect was measured.

    Attributes:
        roles: What was measured, of these and of all heads.
        effects: Of the top heads and of random ones.
        scores: The PCS they were chosen by.
        copying: Copy scores of all heads, if there are any.
    """

    roles: HeadRoles
    effects: Sequence[Effect]
    scores: HeadScores
    copying: HeadScores | None = None

    @property
    def top(self) -> list[Effect]:
        """The heads of highest PCS."""
        return [e for e in self.effects if e.group == "top"]

    @property
    def random(self) -> list[Effect]:
        """As many others, drawn at random."""
        return [e for e in self.effects if e.group == "random"]

    @property
    def names(self) -> list[str]:
        """Of the top heads."""
        return [head_name(e) for e in self.top]

    def measures(self) -> list[Measure]:
        """Attention to the profile, effect on the next token, and copy score where it is known."""
        attention = self.roles.attention
        looked, users = 100 * attention.values.double().numpy(), attention.user_ids
        even = 100 * self.roles.even
        found = [
            self._measure("attention to\nthe profile, %", _of_head(looked), users, even),
            self._measure("effect on the next\ntoken (KL), nats", _divergence, users),
        ]
        if (copying := self.copying) is not None:
            copied = _of_head(copying.values.double().numpy())
            found.append(self._measure("copy score", copied, copying.user_ids))
        return found

    def _measure(
        self,
        name: str,
        values: Callable[[Effect], Array],
        users: Sequence[str],
        level: float | None = None,
    ) -> Measure:
        heads = [Estimate.of(values(e), users) for e in self.top]
        control = np.mean([values(e) for e in self.random], axis=0)
        return Measure(name, heads, Estimate.of(control, users), level)

    def __str__(self) -> str:
        attention, users = self.roles.attention, self.roles.attention.user_ids
        shares = attention.values.double().numpy()
        chosen = np.zeros(shares.shape[1:], dtype=bool)
        for e in self.top:
            chosen[e.head] = True
        own, others = shares[:, chosen].mean(1), shares[:, ~chosen].mean(1)
        looking = Estimate.of(100 * (own - others), users)
        kl, kl_random = (
            np.mean([_divergence(e) for e in group], axis=0) for group in (self.top, self.random)
        )
        effect = Estimate.of(kl - kl_random, users)
        switched, by_random = (
            100 * float(np.mean([e.switched for e in group])) for group in (self.top, self.random)
        )
        same = set(users) & set(self.scores.user_ids)
        known = "users of the discovery" if same else "other users"
        told = "; ".join(
            f"{head_name(e)} raises {_tokens(e.raised[:N_TOLD])} and lowers "
            f"{_tokens(e.lowered[:N_TOLD])}"
            for e in self.top[:N_TOLD]
        )
        return (
            f"On {counted(attention.n_examples, 'sample')} of {len(set(users))} {known}, where the "
            f"response is predicted. The top {len(self.top)} heads give {100 * own.mean():.1f} % "
            f"of their attention to the profile's tokens, all other heads "
            f"{100 * others.mean():.1f} %; difference {show(looking, 1)} points. Spread evenly it "
            f"would be {100 * self.roles.even:.0f} %. Without one of them the next token's "
            f"distribution shifts by {kl.mean():.4f} nats a token (KL divergence), without one of "
            f"{len(self.random)} random heads by {kl_random.mean():.4f}; difference "
            f"{show(effect, 4)}. Another token becomes the likeliest at {switched:.1f} % of the "
            f"positions, with random heads at {by_random:.1f} %. Tokens by the mean change of "
            f"their log-probability (of those with a mean probability of {FLOOR:g} or more): "
            f"{told}. Heads were chosen by this very ablation, if on other samples; that they "
            "have some effect is no news, what it is may be."
        )

    def rows(self) -> list[dict[str, Any]]:
        """A line a head."""
        attention, rows = self.roles.attention, []
        looked = _of_head(attention.values.numpy())
        for e in self.effects:
            row = {
                "head": head_name(e),
                "group": e.group,
                "pcs": float(self.scores.mean[e.head]),
                **columns(Estimate.of(looked(e), attention.user_ids), "attention", "attention_"),
                **columns(
                    Estimate.of(e.divergence, attention.user_ids), "divergence", "divergence_"
                ),
                "switched": e.switched,
            }
            if self.copying is not None:
                row["copy_score"] = float(self.copying.mean[e.head])
            rows.append(row)
        return rows

    def token_rows(self) -> list[dict[str, Any]]:
        """A line a head: its tokens with the mean change of their log-probability."""

        def told(shifts: Sequence[Shift]) -> str:
            return "  ".join(f"{quoted(s.token)} {s.change:+z.2f}" for s in shifts)

        return [
            {"head": head_name(e), "group": e.group}
            | {"raises": told(e.raised), "lowers": told(e.lowered)}
            for e in self.effects
        ]


def head_name(effect: Effect) -> str:
    """Layer and head."""
    return f"{effect.head[0]}.{effect.head[1]}"


def _of_head(values: Array) -> Callable[[Effect], Array]:
    """The values of one head, of those of all heads ``(n_examples, n_layers, n_heads)``."""
    return lambda e: np.asarray(values[(slice(None), *e.head)])


def _divergence(effect: Effect) -> Array:
    return np.array(effect.divergence, dtype=np.float64)


def _tokens(shifts: Sequence[Shift]) -> str:
    return ", ".join(quoted(s.token) for s in shifts) or "none"
