"""Work that survives being killed."""

from __future__ import annotations

import pytest
import torch
from support.models import random_encoded, tiny

from prefheads.checkpoint import Checkpoint, digest, model_marks
from prefheads.errors import ArtifactError


def row(i: int) -> dict[str, torch.Tensor]:
    return {"values": torch.full((2, 3), float(i)), "nll": torch.tensor(i + 0.5)}


def test_what_was_done_is_there_again_and_stacked(tmp_path):
    path = tmp_path / "work.safetensors"
    with pytest.raises(KeyboardInterrupt), Checkpoint(path, "run") as work:
        work.add(**row(0))
        work.add(**row(1))
        raise KeyboardInterrupt
    with Checkpoint(path, "run") as work:
        assert len(work.rows) == 2
        work.add(**row(2))
    stacked = Checkpoint(path, "run").stacked()
    assert stacked["values"].shape == (3, 2, 3)
    assert stacked["nll"].tolist() == [0.5, 1.5, 2.5]


def test_rows_are_saved_while_the_work_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("prefheads.checkpoint.SAVE_AFTER", 0.0)
    path = tmp_path / "work.safetensors"
    work = Checkpoint(path, "run")  # never left: the process is killed
    work.add(**row(0))
    assert len(Checkpoint(path, "run").rows) == 1


def test_another_runs_file_is_refused_and_kept(tmp_path):
    path = tmp_path / "work.safetensors"
    with Checkpoint(path, "one") as work:
        work.add(**row(0))
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="belongs to a run with other data"):
        Checkpoint(path, "two")
    assert path.read_bytes() == before


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "work.safetensors"
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(ArtifactError, match=r"work\.safetensors"):
        Checkpoint(path, "run")


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoint(None, "run") as work:
        work.add(**row(0))
    assert list(tmp_path.iterdir()) == [] and work.stacked()["nll"].tolist() == [0.5]


def test_the_digest_tells_options_tokens_and_tensors_apart():
    a, b = random_encoded(seed=0), random_encoded(seed=1)
    ones, twos = torch.ones(3), 2 * torch.ones(3)
    digests = {
        digest({"x": 1}),
        digest({"x": 2}),
        digest({"x": 1}, [a]),
        digest({"x": 1}, [b]),
        digest({"x": 1}, [a, b]),
        digest({"x": 1}, [a], [ones]),
        digest({"x": 1}, [a], [twos]),
    }
    assert len(digests) == 7
    assert digest({"x": 1}, [a], [ones]) == digest({"x": 1}, [random_encoded(seed=0)], [ones])
    assert digest({"x": 1}, [a], [ones]) == digest({"x": 1}, [a], [ones + 1e-6])


def test_a_model_with_other_weights_is_another_model():
    model = tiny()
    before = model_marks(model)
    assert before == model_marks(tiny())
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert model_marks(model) != before
