"""What the top heads do: where they look, what they copy, and which tokens they move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefheads.report.chapter import Chapter, counted, show
from prefheads.report.charts import BLUE, INK, chart
from prefheads.report.headroles import FLOOR, Effect, HeadRoles, Shift
from prefheads.report.index import Entry
from prefheads.report.plots import GREY
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


def roles(c: Chapter) -> Entry:
    """Attention to the profile, copy score and logit effect of the top heads."""
    title, paper = "What the top heads do", "6.3, what heads do"
    found = c.part.roles
    effects = () if found is None else found.effects.get(c.target, ())
    if found is None or not effects:
        return c.entry("roles", title, paper, missing=c.part.unmeasured)
    top = [e for e in effects if e.group == "top"]
    random = [e for e in effects if e.group == "random"]
    looked, moved = _attention(found, top, random, c.seed), _divergence(found, top, random, c.seed)
    measures = [looked, moved]
    if c.part.copying is not None:
        measures.append(_copying(c, top, random))
    return c.entry(
        "roles",
        title,
        paper,
        shows=_told(c, found, top, random),
        figure=roles_figure([_name(e) for e in top], measures, c.title("What the top heads do")),
        tables={"": _rows(c, found, effects), "tokens": _token_rows(effects)},
    )


def _told(c: Chapter, found: HeadRoles, top: Sequence[Effect], random: Sequence[Effect]) -> str:
    attention, users = found.attention, found.attention.user_ids
    shares = attention.values.double().numpy()
    chosen = np.zeros(shares.shape[1:], dtype=bool)
    for e in top:
        chosen[e.head] = True
    own, others = shares[:, chosen].mean(1), shares[:, ~chosen].mean(1)
    looking = Estimate.of(100 * (own - others), users)
    kl, kl_random = _kl(top).mean(0), _kl(random).mean(0)
    effect = Estimate.of(kl - kl_random, users)
    switched = [100 * float(np.mean([e.switched for e in group])) for group in (top, random)]
    known = "users of the discovery" if set(users) & set(c.scores.user_ids) else "other users"
    told = "; ".join(
        f"{_name(e)} raises {_tokens(e.raised[:N_TOLD])} and lowers {_tokens(e.lowered[:N_TOLD])}"
        for e in top[:N_TOLD]
    )
    return (
        f"On {counted(attention.n_examples, 'sample')} of {len(set(users))} {known}, where the "
        f"response is predicted. The top {len(top)} heads give {100 * own.mean():.1f} % of their "
        f"attention to the profile's tokens, all other heads {100 * others.mean():.1f} %; "
        f"difference {show(looking, 1)} points. Spread evenly it would be {100 * found.even:.0f} "
        f"%. Without one of them the next token's distribution shifts by {kl.mean():.4f} nats a "
        f"token (KL divergence), without one of {len(random)} random heads by "
        f"{kl_random.mean():.4f}; difference {show(effect, 4)}. Another token becomes the "
        f"likeliest at {switched[0]:.1f} % of the positions, with random heads at "
        f"{switched[1]:.1f} %. Tokens by the mean change of their log-probability (of those with a "
        f"mean probability of {FLOOR:g} or more): {told}. Heads were chosen by this very "
        "ablation, if on other samples; that they have some effect is no news, what it is may be."
    )


def _attention(
    found: HeadRoles, top: Sequence[Effect], random: Sequence[Effect], seed: int
) -> Measure:
    values = 100 * found.attention.values.double().numpy()
    users = found.attention.user_ids
    heads = [Estimate.of(values[(slice(None), *e.head)], users) for e in top]
    control = np.mean([values[(slice(None), *e.head)] for e in random], axis=0)
    return Measure(
        "attention to\nthe profile, %", heads, Estimate.of(control, users), 100 * found.even
    )


def _divergence(
    found: HeadRoles, top: Sequence[Effect], random: Sequence[Effect], seed: int
) -> Measure:
    users = found.attention.user_ids
    heads = [Estimate.of(x, users) for x in _kl(top)]
    return Measure(
        "effect on the next\ntoken (KL), nats", heads, Estimate.of(_kl(random).mean(0), users)
    )


def _copying(c: Chapter, top: Sequence[Effect], random: Sequence[Effect]) -> Measure:
    assert c.part.copying is not None
    values, users = c.part.copying.values.double().numpy(), c.part.copying.user_ids
    heads = [Estimate.of(values[(slice(None), *e.head)], users) for e in top]
    control = np.mean([values[(slice(None), *e.head)] for e in random], axis=0)
    return Measure("copy score", heads, Estimate.of(control, users))


def _kl(effects: Sequence[Effect]) -> Array:
    """Divergence by head and sample."""
    return np.array([e.divergence for e in effects], dtype=np.float64)


def _name(effect: Effect) -> str:
    return f"{effect.head[0]}.{effect.head[1]}"


def _tokens(shifts: Sequence[Shift]) -> str:
    return ", ".join(quoted(s.token) for s in shifts) or "none"


def quoted(token: str) -> str:
    """A token so that its blanks can be seen."""
    visible = token.replace("\n", "\u23ce").replace("\t", "\u21e5")
    return f"\u201c{visible}\u201d"


def _rows(c: Chapter, found: HeadRoles, effects: Sequence[Effect]) -> list[dict[str, Any]]:
    users, rows = found.attention.user_ids, []
    for e in effects:
        layer, head = e.head
        looked = Estimate.of(found.attention.values[:, layer, head].numpy(), users)
        moved = Estimate.of(e.divergence, users)
        row = {
            "head": _name(e),
            "group": e.group,
            "pcs": float(c.scores.mean[layer, head]),
            "attention": looked.mean,
            "attention_low": looked.low,
            "attention_high": looked.high,
            "divergence": moved.mean,
            "divergence_low": moved.low,
            "divergence_high": moved.high,
            "switched": e.switched,
        }
        if c.part.copying is not None:
            row["copy_score"] = float(c.part.copying.mean[layer, head])
        rows.append(row)
    return rows


def _token_rows(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """A line a head: its tokens with the mean change of their log-probability."""

    def told(shifts: Sequence[Shift]) -> str:
        return "  ".join(f"{quoted(s.token)} {s.change:+z.2f}" for s in shifts)

    return [
        {"head": _name(e), "group": e.group, "raises": told(e.raised), "lowers": told(e.lowered)}
        for e in effects
    ]


def roles_figure(names: Sequence[str], measures: Sequence[Measure], title: str) -> Any:
    """A panel a measure, a line a head, random heads in the last one."""
    n = len(names)
    with chart(1.6 + 0.27 * (n + 1), title) as figure:
        panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        for axes, m in zip(panels, measures, strict=True):
            for y, e in enumerate([*m.heads, m.random]):
                colour = BLUE if y < n else GREY
                axes.plot([e.low, e.high], [y, y], color=colour, lw=2, solid_capstyle="butt")
                axes.plot([e.mean], [y], "o" if y < n else "s", color=colour, ms=4.5)
            if m.level is not None:
                axes.axvline(m.level, color=INK, lw=0.8, ls=":", label="if spread evenly")
                axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), handlelength=1.2)
            axes.axvline(m.random.mean, color=GREY, lw=0.8)
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=3)
            axes.set_xlabel(m.name)
        panels[0].set_yticks(range(n + 1), [*names, "random\nheads"])
        panels[0].set_ylabel("layer.head")
        panels[0].invert_yaxis()
    return figure
