"""A tiny steerer that vLLM can serve, and the jobs to ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.served import HOW, TOPICS, encode_for, make_steerer

import prefheads as ph
from prefheads.serve.engine import Job, Sampling
from prefheads.steering.setting import PLAIN, Setting

WIDE = {"hidden_size": 128, "head_dim": 32}  # as vLLM's attention on CPUs needs heads
MEMORY = 1 / 16  # GiB


@pytest.fixture(scope="module")
def twin() -> ph.PreferenceSteerer:
    """The steerer with all its weights; one of its greedy answers runs into an end token."""
    steerer = make_steerer(**WIDE)
    steerer.model.generation_config.eos_token_id = None
    ids = job(steerer, 1, PLAIN).prompt.prompt_ids[None]
    out = steerer.model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    steerer.model.generation_config.eos_token_id = [int(out[0, -1]), 2]
    return steerer


@pytest.fixture(scope="module")
def fitted(twin, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of its model and of its run."""
    folder = tmp_path_factory.mktemp("fitted")
    twin.model.save_pretrained(folder / "tiny")
    twin.tokenizer.save_pretrained(folder / "tiny")
    twin.save(folder / "run")
    return folder / "tiny", folder / "run"


def job(
    twin, topic: int = 0, setting: Setting = HOW, weights: Any = None, asked="Say", **sampling: Any
) -> Job:
    profile = [{"text": TOPICS[topic]}]
    if weights is None and not setting.plain:
        weights = twin.cluster_weights([profile])[0].tolist()
    sampling = Sampling(**{"max_tokens": 24} | sampling)
    return Job(encode_for(twin, profile, asked), sampling, setting, tuple(weights or ()))


def children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found += [int(status.parent.name), *children(int(status.parent.name))]
    return found
