"""The paper's own form of steering (DPS, Eq. 8), to stand beside the calibrated one.

The paper gives neither K, the share of heads, nor gamma. Its authors' code takes 4 % of the heads
and, as strength, the entropy of the next token; a constant gamma of 0.25 is this project's.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.headsets import HeadSet, percent
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.stats import Array
from prefheads.steering.setting import Setting
from prefheads.users import Clusters, cluster_heads, mix

SHARE = 0.04
GAMMA = 0.25
BEST = "the paper's form, best of"
"""How the row begins that has the K and gamma which calibrated best."""


def paper_rows(
    scores: HeadScores, clusters: Clusters, calibration: Calibration, weights: Array
) -> dict[str, tuple[Sequence[HeadWeights], Setting]]:
    """Maps and settings of the paper's form for test users, by the names of rows.

    Args:
        scores: Of whole heads.
        weights: How much each user belongs to each cluster, ``(n_users, n_clusters)``.
    """
    top = [scores.top(fraction=SHARE)] * len(weights)
    name = f"the paper's form, top {percent(SHARE)} %"
    constant = Setting("", "contrast", "head", GAMMA)
    entropy = Setting("", "contrast", "head", 1.0, schedule="entropy")
    rows: dict[str, tuple[Sequence[HeadWeights], Setting]] = {
        f"{name}, gamma {GAMMA:g}": (top, constant),
        f"{name}, entropy as strength": (top, entropy),
    }
    tried = [setting for setting in calibration.settings if is_paper(setting)]
    best = calibration.best(is_paper)
    if (few := HeadSet.parse(best.heads)) is not None:
        maps = cluster_heads(scores, clusters, fraction=few.share)
        rows[f"{BEST} {len(tried)}: {best}"] = [mix(w, maps) for w in weights], best
    return rows


def is_paper(setting: Setting) -> bool:
    """Whether a setting is of the paper's form, with heads ranked as in the paper (Eq. 4)."""
    heads = HeadSet.parse(setting.heads)
    return setting.of_paper and heads is not None and heads.target == "head"


def whose(setting: Setting) -> str:
    """Whose numbers a setting of the paper's form has; empty for others than those named here."""
    heads = HeadSet.parse(setting.heads)
    if not is_paper(setting) or heads is None or heads.share != SHARE or setting.cap is not None:
        return ""
    if (setting.schedule, setting.gamma) == ("entropy", 1.0):
        return "the paper's form, numbers of its authors' code"
    ours = (setting.schedule, setting.gamma) == ("constant", GAMMA)
    return "the paper's form, 4 % of its authors' code, gamma ours" if ours else ""
