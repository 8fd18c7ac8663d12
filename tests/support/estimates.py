"""Estimates of screening."""

from __future__ import annotations

from prefheads.discovery import screen
from prefheads.interventions.intercept import intercept, masked_backend
from prefheads.scoring.scorer import Scorer


def estimate(model, encoded, target="head", scope="response"):
    with intercept(model, masked_backend(model)) as layout:
        return screen.estimate_scores(Scorer(model, encoded, scope), layout, target)
