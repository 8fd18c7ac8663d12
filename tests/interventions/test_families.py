"""Every causal language model family of transformers: right, or refused with a reason.

By default each family is steered as in the paper and scored, and in two more ways, so that every
way is taken with some family; with PREFHEADS_FULL_MATRIX set (`make test-families`) each family is
steered in every way.
"""

from __future__ import annotations

import os

import pytest
import transformers
from support.families import FAMILIES, UNBUILDABLE
from support.matrix import (
    EXACT,
    PAPER,
    WAYS,
    Cell,
    Refused,
    Unavailable,
    default_attention,
    error_of,
    limit_of,
    model_of,
    pcs_error,
    shape_of,
)
from support.refused import REASON

FULL = bool(os.environ.get("PREFHEADS_FULL_MATRIX"))
BUILT = [kind for kind in FAMILIES if kind not in UNBUILDABLE]


def ways_of(kind: str) -> list[dict]:
    """The paper's way, and others: all, or two that differ from family to family."""
    paper = {"attention": default_attention(kind)} | PAPER
    if FULL:
        return [paper, *(way for way in WAYS if way != paper)]
    i = FAMILIES.index(kind)
    return [paper, WAYS[(5 * i) % len(WAYS)], WAYS[(5 * i + 37) % len(WAYS)]]


@pytest.mark.parametrize("kind", BUILT)
def test_family(kind) -> None:
    attention = default_attention(kind)
    if kind in REASON:
        with pytest.raises(Refused, match=REASON[kind]):
            shape_of(model_of(kind, attention))
        return
    wrong, done = [], 0
    for way in ways_of(kind):
        cell = Cell(kind=kind, **way)
        try:
            error, limit = error_of(cell), limit_of(cell)
        except Unavailable:  # transformers has no such attention or cache for it
            continue
        except Refused as refused:
            # Gains on the profile need a mask that they can be added to.
            assert cell.target == "profile", f"{cell}: {refused}"
            continue
        done += 1
        if not error <= limit:
            wrong.append(f"{cell}: {error:.1e} > {limit:.1e}")
    assert done and not wrong, "; ".join(wrong)


@pytest.mark.parametrize("kind", [kind for kind in BUILT if kind not in REASON])
def test_scores_of_a_family(kind) -> None:
    attention = default_attention(kind)
    ways = [(t, s) for t in ("head", "profile") for s in ("response", "all")]
    if not FULL:
        ways = [ways[0], ways[1 + FAMILIES.index(kind) % 3]]
    for target, scope in ways:
        try:
            assert pcs_error(kind, attention, target, scope) < 1e-4, (target, scope)
        except Refused as refused:
            assert target == "profile", refused


def test_every_way_is_taken_by_some_family() -> None:
    right = [kind for kind in BUILT if kind not in REASON]
    taken = {str(sorted(way.items())) for kind in right for way in ways_of(kind)}
    assert taken == {str(sorted(way.items())) for way in WAYS}


def test_the_page_says_which_families_are_right() -> None:
    """docs/models.md is of the newest supported transformers; others have other families."""
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    version = ".".join(transformers.__version__.split(".")[:2])
    if f"transformers {version}" not in page:
        pytest.skip(f"the page is not of transformers {version}")
    right = sorted(kind for kind in BUILT if kind not in REASON)
    assert f"**{len(right)} families are right**" in page
    for kind in right:
        assert f"`{kind}`" in page
    assert f"{EXACT:.0e}" in page
