"""Every published layout, in miniature, is read without preparation: splits, pairs and classes against the truth they were made from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from miniature_layouts import ISPRS, LAYOUTS, Truth, coloured, drawn, dubai_landcover, eroded, inria, potsdam, tiff, vaihingen, whu_building

from idgbr import datasets
from idgbr.config import DataConfig
from idgbr.datasets import index
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.rasters.read import Reader, read_labels


@pytest.fixture(scope="module")
def potsdam_made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    root = tmp_path_factory.mktemp("potsdam")
    return root, potsdam(root)


@pytest.fixture
def potsdam_copy(potsdam_made: tuple[Path, Truth], tmp_path: Path) -> Path:
    """Hard links: files may be removed and added, not changed."""
    shutil.copytree(potsdam_made[0], tmp_path / "potsdam", copy_function=os.link)
    return tmp_path / "potsdam"


def prepared(config: DataConfig, out: Path) -> datasets.Dataset:
    datasets.prepare(config, out)
    return datasets.load(out, config)


@pytest.mark.parametrize("title", LAYOUTS)
def test_an_unpacked_download_is_read_as_it_is(title: str, tmp_path: Path, potsdam_made: tuple[Path, Truth]) -> None:
    source, make = LAYOUTS[title]
    root, truth = potsdam_made if title == "Potsdam" else (tmp_path / "data", make(tmp_path / "data"))
    dataset = prepared(DataConfig(source=source, root=str(root)), tmp_path / "out")
    assert {r.id: r.split for r in dataset.rasters} == {name: split for name, (split, _) in truth.items()}
    for raster in dataset.rasters:
        expected = truth[raster.id][1]
        if expected is None:
            assert raster.label is None
            continue
        assert raster.label is not None
        np.testing.assert_array_equal(read_labels(raster.label, dataset.table), expected)
    for row in index.rows(tmp_path / "out"):
        expected = truth[row["id"]][1]
        if expected is not None:
            counts = np.bincount(expected.ravel(), minlength=256)
            assert row["class_px"] == counts[: dataset.table.n_classes].tolist()
            assert row["ignored_px"] == counts[255]


def test_potsdam_has_full_and_eroded_labels_and_any_composite(tmp_path: Path, potsdam_made: tuple[Path, Truth]) -> None:
    root, truth = potsdam_made
    dataset = prepared(DataConfig(source="potsdam", root=str(root), bands=(4, 1, 2)), tmp_path / "out")
    raster = dataset.of("test")[0]
    assert raster.image.name == "top_potsdam_2_13_RGBIR.tif"  # band 4 was asked for
    assert raster.label_eroded is not None
    np.testing.assert_array_equal(read_labels(raster.label_eroded, dataset.table), eroded(truth[raster.id][1]))
    infrared_red_green = Reader(root / "3_Ortho_IRRG" / "top_potsdam_2_13_IRRG.tif").read(0, 0, 40, 40)[0]
    np.testing.assert_array_equal(Reader(raster.image, dataset.bands).read(0, 0, 40, 40)[0], infrared_red_green)
    assert raster.gsd_m == 0.05
    rgb = datasets.scan.find(DataConfig(source="potsdam", root=str(root), variant="rgb"))
    assert {e.image.parent.name for e in rgb.entries} == {"2_Ortho_RGB"}


@pytest.mark.parametrize("bands", [(1, 2, 3), (3, 1), (4,), (4, 1, 2), (1, 2, 3, 4)])
def test_potsdam_infrared_marked_as_alpha_is_never_transparency(bands: tuple[int, ...], tmp_path: Path) -> None:
    """The same pixels are valid whichever bands are read, in the index and in every reader of the data set."""
    for name in ("2_11", "2_12", "2_13"):
        image, index_map = drawn(f"alpha{name}", 6)
        infrared = image[..., :1].copy()
        infrared[:15] = 0  # water and deep shadow
        profile = {"photometric": "RGB", "alpha": "YES"}
        tiff(tmp_path / "p" / f"top_potsdam_{name}_RGBIR.tif", np.concatenate([image, infrared], -1), **profile)
        tiff(tmp_path / "p" / f"top_potsdam_{name}_label.tif", coloured(index_map, ISPRS))
    dataset = prepared(DataConfig(source="potsdam", root=str(tmp_path / "p"), bands=bands), tmp_path / "out")
    assert [(row["ignored_px"], row["valid_px"]) for row in index.rows(tmp_path / "out")] == [(0, 40 * 40)] * 3
    assert all(r.reader(bands).read(0, 0, 40, 40)[1].all() for r in dataset.rasters)
    assert all(r.reader(bands).valid(0, 0, 40, 40).all() for r in dataset.rasters)


def test_alpha_of_other_sets_stays_transparency(tmp_path: Path) -> None:
    whu_building(tmp_path / "w")
    image, _ = drawn("whutrain0", 2)
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    alpha[:10] = 0
    tiff(tmp_path / "w" / "train" / "image" / "0.tif", np.concatenate([image, alpha], -1), photometric="RGB", alpha="YES")
    prepared(DataConfig(source="whu_building", root=str(tmp_path / "w")), tmp_path / "out")
    assert next(row["ignored_px"] for row in index.rows(tmp_path / "out")) == 400


def test_potsdam_takes_the_right_copy_of_the_label_that_is_wrong_in_the_complete_archive(potsdam_copy: Path) -> None:
    tmp_path = potsdam_copy
    config = DataConfig(source="potsdam", root=str(tmp_path))
    assert any("4_12" in note and "5_Labels_for_participants" in note for note in datasets.scan.find(config).notes)
    (tmp_path / "5_Labels_for_participants").mkdir()
    right = tmp_path / "5_Labels_for_participants" / "top_potsdam_4_12_label.tif"
    shutil.copy(tmp_path / "5_Labels_all" / "top_potsdam_4_11_label.tif", right)
    found = {e.id: e for e in datasets.scan.find(config).entries}
    assert len(found) == 38
    assert found["potsdam_4_12"].label == right
    assert found["potsdam_4_11"].label != right


def test_an_incomplete_isprs_folder_is_told_not_refused(tmp_path: Path, potsdam_copy: Path) -> None:
    tmp_path = potsdam_copy
    for path in tmp_path.rglob("top_potsdam_7_*"):
        path.unlink()
    notes = datasets.scan.find(DataConfig(source="potsdam", root=str(tmp_path))).notes
    assert any(note == "found 30 of 38 tiles; missing 4_12, 7_7, 7_8, 7_9, 7_10, 7_11, 7_12, 7_13" for note in notes)


def test_isprs_training_labels_that_are_missing_are_an_error_that_counts(tmp_path: Path) -> None:
    vaihingen(tmp_path)
    for area in (1, 3):
        (tmp_path / f"top_mosaic_09cm_area{area}.tif").unlink()
        (tmp_path / "gts_eroded" / f"top_mosaic_09cm_area{area}_noBoundary.tif").unlink()
    (tmp_path / "top_mosaic_09cm_area2.tif").unlink()
    (tmp_path / "gts_eroded" / "top_mosaic_09cm_area2_noBoundary.tif").unlink()
    with pytest.raises(Missing, match=r"found 30 of 33 pairs; missing labels of 1, 3"):
        datasets.scan.find(DataConfig(source="vaihingen", root=str(tmp_path)))


def test_vaihingen_validation_tiles_can_be_chosen_from_the_training_tiles_only(tmp_path: Path) -> None:
    vaihingen(tmp_path)
    found = datasets.scan.find(DataConfig(source="vaihingen", root=str(tmp_path), val_ids=("1", "7")))
    assert [e.id for e in found.entries if e.split == "val"] == ["vaihingen_1", "vaihingen_7"]
    with pytest.raises(BadRequest, match=r"data.val_ids are official training tiles"):
        datasets.scan.find(DataConfig(source="vaihingen", root=str(tmp_path), val_ids=("2",)))


def test_dubai_follows_a_split_table_and_reads_the_paletted_masks_of_tile_2(tmp_path: Path) -> None:
    dubai_landcover(tmp_path)
    base = tmp_path / "Semantic segmentation dataset"
    (base / "splits.csv").write_text("tile,part,split\n5,1,train\n2,4,val\n")
    dataset = prepared(DataConfig(source="dubai_landcover", root=str(tmp_path)), tmp_path / "out")
    assert {r.id: r.split for r in dataset.rasters} == {"tile5_part1": "train", "tile2_part4": "val"}
    expected = drawn("dubai24", 5, ignore=True, height=40, width=42)[1]
    np.testing.assert_array_equal(read_labels(dataset.of("val")[0].label, dataset.table), expected)


def test_what_a_mac_packs_into_archives_is_no_data(tmp_path: Path) -> None:
    whu_building(tmp_path / "WHU")
    vaihingen(tmp_path / "V")
    for path in (*tmp_path.rglob("*.tif"),):
        shadow = tmp_path / "__MACOSX" / path.relative_to(tmp_path).with_name(f"._{path.name}")
        shadow.parent.mkdir(parents=True, exist_ok=True)
        shadow.write_bytes(b"\0\5\x16\7")
    assert len(datasets.scan.find(DataConfig(source="whu_building", root=str(tmp_path))).entries) == 7
    assert len(datasets.scan.find(DataConfig(source="vaihingen", root=str(tmp_path))).entries) == 33


def test_missing_pairs_are_counted_and_named(tmp_path: Path) -> None:
    whu_building(tmp_path)
    (tmp_path / "val" / "label" / "1.tif").unlink()
    with pytest.raises(Missing, match=r"WHU-Building val: found 1 of 2 pairs; missing labels of 1 in") as error:
        datasets.scan.find(DataConfig(source="whu_building", root=str(tmp_path)))
    assert error.value.exit_code == 3


def test_a_folder_of_another_kind_says_what_was_expected_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(Missing, match=r"found photos/.*train/images"):
        datasets.scan.find(DataConfig(source="inria", root=str(tmp_path)))
    with pytest.raises(Missing, match=r"no folder .*wrong; .*holds photos"):
        datasets.scan.find(DataConfig(source="inria", root=str(tmp_path / "wrong")))


def test_published_sets_can_be_filtered_by_id_scene_and_split(tmp_path: Path) -> None:
    inria(tmp_path)
    found = datasets.scan.find(DataConfig(source="inria", root=str(tmp_path), where="id like 'austin%' and split <> 'test'"))
    assert {e.id for e in found.entries} == {f"austin{i}" for i in range(1, 8)}


def test_an_unknown_colour_is_an_error_with_a_histogram(tmp_path: Path) -> None:
    vaihingen(tmp_path)
    tiff(tmp_path / "top_mosaic_09cm_area1.tif", np.full((41, 41, 3), (255, 128, 0), np.uint8))
    with pytest.raises(Disagreement, match=r"area1.tif.*\(255, 128, 0\): 100.00%.*impervious: \(255, 255, 255\)"):
        datasets.prepare(DataConfig(source="vaihingen", root=str(tmp_path)), tmp_path / "out")
    assert not (tmp_path / "out" / "scenes.parquet").exists()
