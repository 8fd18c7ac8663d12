"""Work that survives being killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.models import random_encoded, tiny

from prefheads.checkpoint import Checkpoint, Journal, digest, model_marks
from prefheads.errors import ArtifactError
from prefheads.storage import save_tensors


def row(i: int) -> dict[str, torch.Tensor]:
    return {"values": torch.full((2, 3), float(i)), "nll": torch.tensor(i + 0.5)}


# --- journals


def test_lines_come_back_as_they_were(tmp_path: Path) -> None:
    """Tensors to the last bit, whatever their type."""
    tensors = {
        "odd": torch.tensor([0.1, float("nan"), float("inf"), -0.0]),
        "half": torch.rand(3, 2, dtype=torch.bfloat16).T,
        "whole": torch.tensor(7),
    }
    journal = Journal(tmp_path / "j")
    journal.append([{"text": "é\u2028x", "tensors": [tensors]}, 3])
    journal.append([[1.5, None]])
    places, found = zip(*Journal(tmp_path / "j").read(), strict=True)
    assert places == tuple(f"{tmp_path / 'j'}:{i}" for i in (1, 2, 3))
    assert found[1:] == (3, [1.5, None]) and found[0]["text"] == "é\u2028x"
    for name, tensor in found[0]["tensors"][0].items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor.nan_to_num(), tensors[name].nan_to_num())


def test_a_torn_line_is_dropped_when_the_next_one_comes(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text('1\n2\n{"torn')
    journal = Journal(path)
    assert [line for _, line in journal.read()] == [1, 2]
    assert path.read_text().endswith("torn")  # whoever only reads changes nothing
    journal.append([3])
    assert path.read_text() == "1\n2\n3\n"


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    script = f"""
import resource
from prefheads.checkpoint import Checkpoint
from prefheads.errors import ArtifactError
resource.setrlimit(resource.RLIMIT_FSIZE, (400, {resource.RLIM_INFINITY}))
work = Checkpoint({str(tmp_path / "work")!r}, "run")
try:
    for i in range(9):
        work.add(str(i), "x" * 99)
except ArtifactError as error:
    print(error)
print(list(work.done))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    told, kept = done.stdout.splitlines()
    assert told == f"{tmp_path / 'work'}: cannot be written (File too large)"
    assert kept == "['0', '1', '2']"
    work = Checkpoint(tmp_path / "work", "run")
    assert list(work.done) == ["0", "1", "2"]
    work.add("3", "x")
    assert list(Checkpoint(tmp_path / "work", "run").done) == ["0", "1", "2", "3"]


def test_an_interrupted_write_leaves_whole_lines(tmp_path: Path, monkeypatch) -> None:
    def interrupted(file: int) -> None:
        raise KeyboardInterrupt

    journal = Journal(tmp_path / "j")
    journal.append([1])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("prefheads.checkpoint.os.fsync", interrupted)
        journal.append([2])
    journal.append([3])
    assert [line for _, line in Journal(tmp_path / "j").read()] == [1, 3]


# --- checkpoints


def test_what_was_done_is_there_again_and_stacked(tmp_path: Path) -> None:
    path, made = tmp_path / "work.jsonl", []

    def make(i: int) -> dict[str, torch.Tensor]:
        if i == limit:
            raise KeyboardInterrupt
        made.append(i)
        return row(i)

    limit = 2
    with pytest.raises(KeyboardInterrupt):
        Checkpoint(path, "run").fill(range(3), make, "work", False)
    limit = 9
    stacked = Checkpoint(path, "run").fill(range(3), make, "work", False)
    assert made == [0, 1, 2]
    assert stacked["values"].shape == (3, 2, 3)
    assert stacked["nll"].tolist() == [0.5, 1.5, 2.5]
    more = Checkpoint(path, "run").fill(range(3, 5), make, "work", False)
    assert made == [0, 1, 2, 0, 1] and more["nll"].tolist() == [0.5, 1.5]


def test_a_part_is_made_once_and_a_later_one_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    assert Checkpoint(path, "run").once("a", lambda: {"n": [1]}) == {"n": [1]}
    work = Checkpoint(path, "run")
    assert work.once("a", lambda: pytest.fail("made again")) == {"n": [1]}
    work.add("a", None)
    assert Checkpoint(path, "run").done == {"a": None}


def test_rows_are_saved_while_the_work_goes_on(tmp_path: Path) -> None:
    script = f"""
import os, signal
from prefheads.checkpoint import Checkpoint
work = Checkpoint({str(tmp_path / "work")!r}, "run")
work.add("0", 1)
work.add("1", 2)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script])
    assert done.returncode == -signal.SIGKILL
    assert Checkpoint(tmp_path / "work", "run").done == {"0": 1, "1": 2}


def test_another_runs_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    Checkpoint(path, "one").add("0", row(0))
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="belongs to a run with other data"):
        Checkpoint(path, "two")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"\x00" * 20, ""),
        (b"not this", ""),
        (b'{"id": 1}\n', ""),
        (b'{"run": "run"}\n{"key": "0"}\n', ":2"),
        (b'{"run": "run"}\nnot this\n', ":2"),
        (b'{"run": "run"}\n{"key": "0", "part": {"safetensors": "AAAA"}}\n', ":2"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, where: str) -> None:
    path = tmp_path / "work.jsonl"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"work\.jsonl{where}: damaged") as error:
        Checkpoint(path, "run")
    assert "\n" not in str(error.value) and path.read_bytes() == content


@pytest.mark.parametrize("torn", ["", '{"ru', '{"run": "run", '])
def test_a_file_without_a_whole_line_is_begun_anew(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "work.jsonl"
    path.write_text(torn)
    Checkpoint(path, "run").add("0", 1)
    assert Checkpoint(path, "run").done == {"0": 1}


@pytest.mark.parametrize("name", ["work.jsonl", "work.safetensors"])
def test_unfinished_work_of_earlier_versions_goes_on(tmp_path: Path, name: str) -> None:
    old, path = tmp_path / "work.safetensors", tmp_path / name
    tensors = {"values": torch.rand(2, 3, 4), "nll": torch.rand(2, dtype=torch.float64)}
    save_tensors(old, tensors, "unfinished work", {"run": "run"})
    with pytest.raises(ArtifactError, match=r"work\.safetensors: belongs to a run"):
        Checkpoint(path, "other")
    found = Checkpoint(path, "run").fill(range(2), lambda i: pytest.fail("again"), "", False)
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    assert os.listdir(tmp_path) == [name]
    assert json.loads(path.read_text().splitlines()[0]) == {"run": "run"}


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = Checkpoint(None, "run").fill(range(1), row, "work", False)
    assert list(tmp_path.iterdir()) == [] and found["nll"].tolist() == [0.5]


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
