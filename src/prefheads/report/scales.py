"""Axes on which small and large figures are both seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np


def symmetric_scale(
    axes: Any, values: Sequence[float], linear: float = 0.1, which: Literal["x", "y"] = "y"
) -> bool:
    """An axis linear about 0 and logarithmic beyond, if values reach far; whether they do."""
    known = [v for v in values if np.isfinite(v)]
    low, high = min([*known, 0.0]), max([*known, 0.0])
    if max(-low, high) <= 5 * linear:
        return False
    powers = [linear * 10.0**i for i in range(8)]
    ticks = [-p for p in powers if p <= -low * 1.5] + [0.0] + [p for p in powers if p <= high * 1.5]
    named = [f"{t:g}".replace("-", "\u2212") for t in sorted(ticks)]
    getattr(axes, f"set_{which}scale")("symlog", linthresh=linear)
    getattr(axes, f"set_{which}ticks")(sorted(ticks), named)
    axes.minorticks_off()
    ends = 1.5 * min(low, -0.3 * linear), 1.6 * max(high, 0.3 * linear)
    getattr(axes, f"set_{which}lim")(ends)
    return True
