"""Made-up scores, calibrations and validations, as a small run would leave them."""

from __future__ import annotations

import numpy as np
import torch
from support.models import character_tokenizer, shared

from prefheads.calibration.calibrate import Calibration
from prefheads.calibration.headsets import grid
from prefheads.calibration.validate import Validation
from prefheads.heads.scores import HeadScores, Provenance
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.setting import PLAIN, Setting
from prefheads.users import Clusters, cluster_heads

USERS = ("ann", "ben", "cem", "dua")
METHODS = (
    "plain",
    "plain, temperature 1.2",
    "steered",
    "steered, temperature 1.1",
    "random heads (mean of 5)",
    "random masks (mean of 5)",
    "one map for all users",
    "the paper's DPS (top 4 %, gamma 0.25)",
)
STEERED = Setting("top 4% by head PCS", "amplify", "profile", 2.0)


def scores(target: str = "head", shape: tuple[int, int] = (6, 4)) -> HeadScores:
    """Noise, with head 2.1 far above it and head 4.3 far below, for every user."""
    values = 0.02 * torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    values[:, 2, 1] += 0.5
    values[:, 4, 3] -= 0.5
    ids = tuple(f"e{i}" for i in range(8))
    users = tuple(USERS[i % 4] for i in range(8))
    return HeadScores(values, torch.ones(8), ids, users, Provenance(target=target))


def calibration(setting: Setting = STEERED) -> Calibration:
    """A curve over the default grid, in which ``setting`` was chosen."""
    settings = grid(("top 4% by head PCS", "top 8% by head PCS"))
    change = tuple(0.0 if s.plain else 0.1 - 0.06 * s.gamma for s in settings)
    n = len(settings)
    return Calibration(
        settings=settings,
        change=change,
        stderr=(0.0,) + (0.02,) * (n - 1),
        specificity=None,
        divergence=(0.0,) * n,
        chosen=settings.index(setting),
        plain_temperature=1.2,
        temperature=1.1,
        plain_nll=3.2,
        n_examples=8,
        n_users=4,
    )


def validation(setting: Setting = STEERED) -> Validation:
    """Steering gains 0.2 with any profile, random heads nothing, the paper's form loses 0.3."""
    methods = METHODS[:2] if setting == PLAIN else METHODS
    effect = np.array([0, -0.05, -0.2, -0.22, 0.0, 0.0, -0.2, 0.3])[: len(methods)]
    noise = np.random.default_rng(0).normal(0, 0.01, (8, 3, len(methods)))
    noise[:, :, 0] = 0
    nll = 3.0 + np.array([0.0, 0.3, 0.5])[None, :, None] + effect + noise
    users = tuple(f"tester {i}" for i in range(8))  # the fewest that give verdicts
    return Validation(setting, methods, nll, tuple(f"t{i}" for i in range(8)), users)


def steerer(setting: Setting = STEERED) -> PreferenceSteerer:
    """A fitted steerer with two clusters, made up but for its tiny model."""
    found = {target: scores(target) for target in ("head", "profile")}
    clusters = Clusters(np.eye(2, 8, dtype=np.float32), {"ann": 0, "ben": 0, "cem": 0, "dua": 1})
    return PreferenceSteerer(
        model=shared(),
        tokenizer=character_tokenizer(),
        clusters=clusters,
        maps=cluster_heads(found["profile"], clusters, k=3),
        shared=found["profile"].soft(k=3),
        calibration=calibration(setting),
        users={"discovery": list(USERS), "calibration": ["eve", "fay"], "test": ["gil"]},
        scores=found,
    )
