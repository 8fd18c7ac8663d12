"""The files of a fitted steerer: what is read back, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.models import tiny
from support.served import make_steerer

from prefheads.errors import ArtifactError
from prefheads.heads.files import STEERER, load_steerer_maps, save_steerer_maps
from prefheads.steerer.files import load, load_clusters, load_seen, read_steerer
from prefheads.steering.setting import Setting

FITTED = make_steerer(Setting("top 4% by head PCS", "contrast", "head", 1.0))
MODEL = FITTED.model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    replace(FITTED, users={"discovery": ["ann"], "calibration": ["eve"]}).save(tmp_path)
    return tmp_path


def change(folder: Path, without: str = "", **fields: object) -> None:
    data = json.loads((folder / STEERER).read_text()) | fields
    data.pop(without, None)
    (folder / STEERER).write_text(json.dumps(data))


def test_settings_have_the_scope_of_their_run(folder: Path) -> None:
    """Tables do not say it."""
    change(folder, scope="all")
    found = load(folder, MODEL.config)["calibration"]
    assert {setting.scope for setting in found.settings} == {"all"}


def test_a_quick_look(folder: Path) -> None:
    assert read_steerer(folder)["fingerprint"]
    assert read_steerer(folder, MODEL.config)["targets"] == []
    clusters, maps, own = load_clusters(folder)
    assert len(maps) == clusters.n_clusters and torch.equal(
        own.values, load(folder, MODEL.config)["shared"].values
    )


@pytest.mark.parametrize("name", ["fingerprint", "task"])
def test_damaged_and_missing_ones_are_refused(folder: Path, name: str) -> None:
    change(folder, name)
    with pytest.raises(ArtifactError, match="damaged; fit again"):
        read_steerer(folder)
    (folder / STEERER).write_text("[]")
    with pytest.raises(ArtifactError, match="damaged; fit again"):
        read_steerer(folder)
    (folder / STEERER).unlink()
    with pytest.raises(ArtifactError, match="holds no fitted steerer"):
        read_steerer(folder)


def test_another_models_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="was fitted for"):
        read_steerer(folder, tiny("llama", num_hidden_layers=4).config)


def test_maps_that_are_not_those_of_the_clusters_are_refused(folder: Path) -> None:
    maps, tensors, meta = load_steerer_maps(folder)
    centroids = {"centroids": tensors["centroids"]}
    save_steerer_maps(folder, maps["shared"], [maps["0"]], centroids, meta)
    with pytest.raises(ArtifactError, match="not those of its clusters"):
        load_clusters(folder)


def test_runs_of_before_the_seen_were_kept_name_their_users(folder: Path) -> None:
    (folder / "seen.json").unlink()
    assert load_seen(folder).users >= {"ann", "eve"}
    change(folder, users=[])
    with pytest.raises(ArtifactError, match="damaged steerer"):
        load_seen(folder)
