"""Files are written whole or not at all."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
from support.maps import make_weights, one_line

from prefheads.errors import ArtifactError
from prefheads.heads.scores import HeadWeights
from prefheads.storage import load_tensors, read_json, writable_dir, write_json


def test_failed_write_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_weights(1).save(path := tmp_path / "heads")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ArtifactError, match="No space left on device") as error:
        make_weights(2).save(path)
    one_line(error)
    assert HeadWeights.load(path) == make_weights(1)
    assert [file.name for file in tmp_path.iterdir()] == ["heads"]
    with pytest.raises(ArtifactError):
        make_weights().save(tmp_path / "no folder" / "heads")


def test_json_files_and_folders(tmp_path: Path) -> None:
    folder = writable_dir(tmp_path / "a" / "b")
    write_json(folder / "x.json", {"é": [1, 2.5, None]})
    assert read_json(folder / "x.json") == {"é": [1, 2.5, None]}
    (folder / "bad.json").write_text('{\n "a": }')
    with pytest.raises(ArtifactError, match="line 2"):
        read_json(folder / "bad.json")
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00{")
    for name in ("binary.json", "missing.json"):
        with pytest.raises(ArtifactError, match=name) as error:
            read_json(folder / name)
        one_line(error)
    with pytest.raises(ArtifactError):
        writable_dir(folder / "x.json")


def test_metadata_is_plain_json_in_the_header(tmp_path: Path) -> None:
    make_weights().save(path := tmp_path / "heads")
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["prefheads"])
    assert header["kind"] == "head weights" and header["meta"]["info"]["scope"] == "response"
    tensors, meta = load_tensors(path, "head weights")
    assert set(tensors) == {"values"} and meta == header["meta"]
