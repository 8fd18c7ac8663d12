"""Saved scores and weights: round trips and damage; the maps in the folders of runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.maps import INFO, make_scores, make_weights, one_line

from prefheads.errors import ArtifactError
from prefheads.heads.files import (
    HEADS,
    STEERER,
    STEERER_MAPS,
    load_heads,
    load_steerer_maps,
    maps_in,
    save_steerer_maps,
)
from prefheads.heads.scores import HeadScores, HeadWeights
from prefheads.storage import load_tensors, save_tensors, write_json


def test_scores_and_weights_come_back_as_saved(tmp_path: Path) -> None:
    scores = make_scores()
    scores.save(tmp_path / "scores.safetensors")
    assert HeadScores.load(tmp_path / "scores.safetensors") == scores
    weights = HeadWeights(make_weights().values, replace(INFO, reference="no-profile"))
    weights.save(str(tmp_path / "é heads.safetensors"))
    loaded = HeadWeights.load(tmp_path / "é heads.safetensors")
    assert loaded == weights and loaded.info.reference == "no-profile"
    weights.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "é heads.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 3  # no temporary files


def test_truncated_and_damaged_files_are_named(tmp_path: Path) -> None:
    make_scores().save(path := tmp_path / "scores.safetensors")
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"scores\.safetensors") as error:
            HeadScores.load(path)
        one_line(error)
    for position in range(0, 400, 13):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(bytes(damaged))
        with pytest.raises(ArtifactError) as error:
            HeadScores.load(path)
        one_line(error)


def test_foreign_missing_and_wrong_files_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"values": torch.zeros(2, 2)}, tmp_path / "foreign")
    (tmp_path / "text").write_text("not tensors")
    (tmp_path / "folder").mkdir()
    make_scores().save(tmp_path / "scores")
    save_tensors(tmp_path / "unnamed", {"other": torch.zeros(2)}, "head weights", {"info": {}})
    info = {"info": {"no such field": 1}}
    save_tensors(tmp_path / "newer", {"values": torch.zeros(2, 2)}, "head weights", info)
    nan = {"values": torch.full((2, 2), torch.nan)}
    save_tensors(tmp_path / "nan", nan, "head weights", {"info": {}})
    for name in ("foreign", "text", "folder", "scores", "unnamed", "newer", "nan", "missing"):
        with pytest.raises(ArtifactError, match=name) as error:
            HeadWeights.load(tmp_path / name)
        one_line(error)
    with pytest.raises(ArtifactError, match="holds head scores, but head weights"):
        HeadWeights.load(tmp_path / "scores")


def test_maps_of_a_steerer_come_back_with_what_lies_beside_them(tmp_path: Path) -> None:
    shared, maps = make_weights(0), [make_weights(1), make_weights(2)]
    save_steerer_maps(tmp_path, shared, maps, {"centroids": torch.ones(2, 3)}, {"assignment": {}})
    found, tensors, meta = load_steerer_maps(tmp_path)
    assert found == {"shared": shared, "0": maps[0], "1": maps[1]}
    assert torch.equal(tensors["centroids"], torch.ones(2, 3)) and meta["assignment"] == {}


def test_damaged_maps_of_a_steerer_are_refused(tmp_path: Path) -> None:
    save_steerer_maps(tmp_path, make_weights(0), [make_weights(1)], {}, {})
    tensors, meta = load_tensors(tmp_path / STEERER_MAPS, "steerer")
    infos = meta["infos"]
    for values, told in [
        ({"maps": tensors["maps"]}, infos),
        (tensors, infos[:1]),
        (tensors, [{"no such field": 1}, *infos[1:]]),
        (tensors | {"shared": torch.full((4, 3), torch.nan)}, infos),
    ]:
        save_tensors(tmp_path / STEERER_MAPS, values, "steerer", {"infos": told})
        with pytest.raises(ArtifactError, match="damaged steerer") as error:
            load_steerer_maps(tmp_path)
        one_line(error)


def test_maps_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    make_weights(0).save(tmp_path / "run" / HEADS)
    save_steerer_maps(tmp_path / "run", make_weights(1), [make_weights(2)], {}, {})
    assert [name for name, _ in maps_in(tmp_path / "run")] == ["run"]  # not finished
    write_json(tmp_path / "run" / STEERER, {})
    found = {name: read() for name, read in maps_in(tmp_path / "run")}
    assert found == {
        "run": make_weights(0),
        "run/shared": make_weights(1),
        "run/0": make_weights(2),
    }
    make_weights(3).save(tmp_path / "alone.safetensors")
    ((name, read),) = maps_in(tmp_path / "alone.safetensors")
    assert name == "alone" and read() == make_weights(3)
    (tmp_path / "notes.txt").write_text("no map")
    assert not list(maps_in(tmp_path / "notes.txt"))


def test_heads_of_a_folder_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no run") as error:
        load_heads(tmp_path, None)
    one_line(error)
