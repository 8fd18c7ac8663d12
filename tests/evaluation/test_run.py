"""One task from its samples to its measurements."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from prefheads.evaluation.methods import Method
from prefheads.heads.scores import HeadScores


def test_retrieval_heads_are_measured_once_a_model(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefheads.evaluation import run

    plan = run.EvaluationPlan((Method.parse("decore"),), seed=3, progress=False)
    scores = run.retrieval_scores(*tiny_model, n_prompts=2, seed=3, progress=False)
    calls = []

    def few(*_: object, seed: int, progress: bool) -> HeadScores:
        calls.append(seed)
        return scores

    monkeypatch.setattr(run, "retrieval_scores", few)
    for _ in range(2):  # the second is another run's, in the same folder
        heads = partial(run._retrieval_heads, *tiny_model, plan, tmp_path / "heads.safetensors")
        found = [heads(fraction).heads for fraction in (0.09, 0.17)]
        assert found == [scores.top(k=k).heads for k in (1, 2)]
    assert calls == [3]
