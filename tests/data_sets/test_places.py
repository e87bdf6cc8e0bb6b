"""Data sets of many places: the one that is installed with idgbr, and the collection of buildings."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from idgbr import datasets, stages
from idgbr.config import DataConfig
from idgbr.datasets import index, scan
from idgbr.datasets.places import NAIP_FIELDS
from idgbr.errors import Missing
from idgbr.rasters.read import Reader, read_labels
from idgbr.recipes import recipe


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fields")
    datasets.prepare(recipe("naip_fields").data, out)
    return out


def split_table() -> list[dict[str, str]]:
    assert NAIP_FIELDS.built_in is not None
    with open(NAIP_FIELDS.built_in / "splits.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_fields_need_no_folder_and_agree_with_their_split_table(fields: Path) -> None:
    dataset = datasets.load(fields, DataConfig(source="naip_fields"))
    assert [len(dataset.of(split)) for split in ("train", "val", "test")] == [12, 10, 12]
    assert dataset.table.names == ("background", "field")
    table = {row["name"]: row for row in split_table()}
    for row in index.rows(fields):
        expected = table[row["id"]]
        assert (row["height"], row["width"], row["image_bands"], row["dtype"]) == (1024, 1024, 3, "uint8")
        assert row["gsd_m"] == float(expected["gsd_m"])
        assert row["class_px"][1] / 1024**2 == pytest.approx(float(expected["field_share"]), abs=6e-4)


def test_near_places_lie_in_one_split() -> None:
    splits = defaultdict(set)
    for row in split_table():
        splits[row["group"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_an_index_of_the_installed_set_holds_no_folder_of_this_machine(fields: Path) -> None:
    facts = json.loads((fields / "stats.json").read_text())
    assert facts["root"] == ""
    assert all(not Path(row["image"]).is_absolute() for row in index.rows(fields))


def test_a_copy_of_the_installed_set_has_the_same_key(tmp_path: Path) -> None:
    import shutil

    assert NAIP_FIELDS.built_in is not None
    shutil.copytree(NAIP_FIELDS.built_in, tmp_path / "copy")
    copy = DataConfig(source="naip_fields", root=str(tmp_path / "copy"))
    assert scan.input_digest(copy) == scan.input_digest(DataConfig(source="naip_fields"))


def test_licence_and_origin_are_installed_with_the_images() -> None:
    assert NAIP_FIELDS.built_in is not None
    assert "Copyright (c) 2021 Radix" in (NAIP_FIELDS.built_in / "LICENSE.outlines").read_text()
    readme = (NAIP_FIELDS.built_in / "README.md").read_text()
    assert "NAIP" in readme
    assert "public domain" in readme


@pytest.mark.shared
def test_packing_moved_no_outline(shared: Path) -> None:
    source = shared / "data" / "naip-fields"
    assert NAIP_FIELDS.built_in is not None
    assert NAIP_FIELDS.table is not None
    errors = []
    for row in split_table():
        name = row["name"]
        packed = read_labels(NAIP_FIELDS.built_in / "masks" / f"{name}.png", NAIP_FIELDS.table)
        assert np.array_equal(packed, read_labels(source / "masks" / f"{name}.png", NAIP_FIELDS.table))
        image, _ = Reader(NAIP_FIELDS.built_in / "images" / f"{name}.jpg").read(0, 0, 1024, 1024)
        original, _ = Reader(source / "images" / f"{name}.png").read(0, 0, 1024, 1024)
        errors.append(np.mean((image - original) ** 2))
    assert 10 * np.log10(255**2 / np.mean(errors)) > 35.5  # dB


@pytest.mark.shared
def test_buildings_of_the_world_are_grouped_by_place_and_chosen_by_grade(shared: Path) -> None:
    config = DataConfig(source="buildings_world", root=str(shared / "data" / "buildings-world"))
    found = scan.find(config).entries
    assert len(found) == 119
    assert len({e.scene for e in found}) == 20
    best = scan.find(dataclasses.replace(config, where="grade = 'A'")).entries
    assert {split: sum(e.split == split for e in best) for split in ("train", "val", "test")} == {"train": 69, "val": 10, "test": 12}


@pytest.mark.shared
def test_places_elsewhere_are_tested_and_never_trained_on(shared: Path) -> None:
    config = DataConfig(source="buildings_elsewhere", root=str(shared / "data"), where="zoom == 20")
    entries = scan.find(config).entries
    scenes = {split: {e.scene for e in entries if e.split == split} for split in ("train", "val", "test")}
    assert scenes["train"] == {"zanzibar_a", "kampala_a", "catanduanes_a"}
    assert scenes["val"] == {"zanzibar_b"}
    assert len(scenes["test"]) == 18
    assert sum(e.split == "test" for e in entries) == 102


def test_scenes_of_the_fields_are_their_places() -> None:
    """Intervals resample scenes. Two images of one `group` (nearer than 30 km) are two places, and never in two splits."""
    entries = scan.find(DataConfig(source="naip_fields")).entries
    assert len(entries) == len({e.scene for e in entries}) == 34
    groups = {row["name"]: row["group"] for row in split_table()}
    assert len(groups) == 34
    assert len({(groups[e.scene], e.split) for e in entries}) == len(set(groups.values()))


def test_a_recipe_whose_data_folder_is_unknown_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IDGBR_DATA")
    for name in ("oam_buildings", "dubai_landcover", "buildings_world"):
        with pytest.raises(Missing, match=r"IDGBR_DATA is not set.*data\.root=.*export IDGBR_DATA=FOLDER, or data\.root=PATH"):
            stages.jobs(recipe(name))
    with pytest.raises(Missing, match=r"IDGBR_DATA is not set.*backbone\.weights"):
        stages.jobs(recipe("naip_fields_pretrained"))
    assert stages.jobs(recipe("naip_fields"))[0].stage == "data"
