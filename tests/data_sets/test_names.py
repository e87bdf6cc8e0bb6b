"""Names of files: ids of every script, never empty and never the same for two files; names used again in other folders."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniature_layouts import drawn, picture, tiff, whu_building

from idgbr import datasets
from idgbr.config import DataConfig
from idgbr.datasets.ids import MOST_BYTES, safe_id
from idgbr.datasets.scan import find
from idgbr.errors import Disagreement
from idgbr.labels import binary

ASCII_IDS = {
    "scene 1": "scene_1",
    "10378780(7)": "10378780_7",
    "images/a b": "images_a_b",
    "M-33-20-D-c-4-2_0": "M-33-20-D-c-4-2_0",
    "_x_": "x",
}
SCRIPTS = ["Київ_1", "Αθήνα", "दिल्ली", "กรุงเทพ", "القاهرة", "서울", "東京・大阪", "Ñuñoa", "Tromsø", "L'Aquila"]


@pytest.mark.parametrize(("name", "expected"), ASCII_IDS.items())
def test_plain_ids_stay_what_they_were(name: str, expected: str) -> None:
    assert safe_id(name) == expected


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300), min_size=2, max_size=2, unique=True))
def test_an_id_is_never_empty_and_is_fit_for_a_file_name(names: list[str]) -> None:
    for name in names:
        found = safe_id(name)
        assert found.strip(".")
        assert len(found.encode()) <= MOST_BYTES
        assert not set(found) & set('/\\:*?"<>|\0 \n')
        assert found == unicodedata.normalize("NFC", found)


def own(root: Path, names: list[str]) -> DataConfig:
    for i, name in enumerate(names):
        image, mask = drawn(f"own{i}", 2)
        tiff(root / "images" / f"{name}.tif", image)
        picture(root / "masks" / f"{name}.png", mask)
    lines = [f'"{name}",{("train", "val", "test")[i % 3]}' for i, name in enumerate(names)]
    (root / "splits.csv").write_text("name,split\n" + "\n".join(lines), encoding="utf-8")
    (root / "classes.json").write_text(binary("building").to_json())
    return DataConfig(source="folder", root=str(root))


@pytest.mark.parametrize(
    "names",
    [
        SCRIPTS,
        ["🏠", "🏡", "★"],
        ["a b", "a_b", "a  b", "a(b)"],
        ["कि", "की", "कु"],
        [unicodedata.normalize("NFC", "é1"), unicodedata.normalize("NFD", "é1")],
        ["北" * 75 + "1", "北" * 75 + "2"],
        ["東京(1)", "東京（1）", "東京 1"],
    ],
    ids=["scripts", "signs only", "ASCII that collides", "vowel signs", "two forms of Unicode", "long", "brackets"],
)
def test_files_of_different_names_have_different_ids(names: list[str], tmp_path: Path) -> None:
    config = own(tmp_path / "data", names)
    datasets.prepare(config, tmp_path / "out")
    rasters = datasets.load(tmp_path / "out", config).rasters
    assert len({r.id for r in rasters}) == len({r.scene for r in rasters}) == len(names)
    for raster, name in zip(rasters, names):
        assert raster.image.name == f"{name}.tif"
        (tmp_path / f"{raster.id}.tif").touch()  # fit for the maps of later stages
    if "a_b" in names:
        assert rasters[1].id == "a_b"  # whose own name it is keeps it


def test_one_file_in_two_rows_is_refused(own_folder: Callable[..., DataConfig]) -> None:
    config = own_folder()
    table = Path(config.root) / "splits.csv"
    table.write_text(table.read_text() + "\nimages/scene 0.png,masks/scene 0.png,train,place0,0.5,20")
    with pytest.raises(Disagreement, match=r"one file for two rasters.*images_scene_0"):
        find(config)


def _loveda(root: Path, names: dict[str, list[str]]) -> None:
    for place, stems in names.items():
        for stem in stems:
            image, mask = drawn(place + stem, 7)
            picture(root / place / "images_png" / f"{stem}.png", image)
            picture(root / place / "masks_png" / f"{stem}.png", mask + np.uint8(1))


def test_loveda_names_used_again_are_told_apart_by_folder_and_unique_ones_stay(tmp_path: Path) -> None:
    _loveda(tmp_path / "once", {"Train/Urban": ["7"], "Train/Rural": ["7"], "Val/Urban": ["8"], "Val/Rural": ["9"]})
    found = find(DataConfig(source="loveda", root=str(tmp_path / "once"))).entries
    assert [e.id for e in found] == ["urban_7", "rural_7", "urban_8", "rural_9"]
    _loveda(tmp_path / "again", {"Train/Urban": ["7"], "Train/Rural": ["8"], "Val/Urban": ["7"], "Val/Rural": ["7"]})
    found = find(DataConfig(source="loveda", root=str(tmp_path / "again"))).entries
    assert [e.id for e in found] == ["train_urban_images_png_urban_7", "train_rural_images_png_rural_8",
                                     "val_urban_images_png_urban_7", "val_rural_images_png_rural_7"]  # fmt: skip
    assert [e.scene for e in found] == [e.id for e in found]


def test_names_that_only_look_alike_in_one_folder_keep_the_other_ids(tmp_path: Path) -> None:
    whu_building(tmp_path)
    before = {e.id for e in find(DataConfig(source="whu_building", root=str(tmp_path))).entries}
    for folder, kind in (("image", 0), ("label", 1)):
        pixels = drawn("again", 2)[kind]
        for name in ("roof 1", "roof_1"):
            tiff(tmp_path / "train" / folder / f"{name}.tif", pixels * np.uint8(255) if kind else pixels + np.uint8(len(name.split())))
    after = {e.id for e in find(DataConfig(source="whu_building", root=str(tmp_path))).entries}
    assert before < after
    assert len(after) == len(before) + 2
