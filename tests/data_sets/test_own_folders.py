"""Own folders: the split table, checks of every pair, what ends up in the index, and bad input."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from miniature_layouts import drawn, picture, tiff

from idgbr import datasets
from idgbr.config import DataConfig
from idgbr.datasets import digest, index, scan
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.labels import IGNORE, ClassTable, LabelClass, binary
from idgbr.rasters.read import read_labels

Make = Callable[..., DataConfig]


def edit(config: DataConfig, old: str, new: str) -> None:
    path = Path(config.root) / "splits.csv"
    path.write_text(path.read_text().replace(old, new))


def test_the_index_holds_what_the_files_hold(own_folder: Make, tmp_path: Path) -> None:
    config = own_folder()
    datasets.prepare(config, tmp_path / "out")
    dataset = datasets.load(tmp_path / "out", config)
    assert [r.id for r in dataset.rasters] == [f"images_scene_{i}" for i in range(5)]
    assert [r.scene for r in dataset.of("train")] == ["place0", "place1", "place2"]
    assert dataset.rasters[1].image == Path(config.root) / "images" / "scene 1.png"  # not copied
    assert not list((tmp_path / "out").glob("*.png"))
    assert (dataset.rasters[2].height, dataset.rasters[2].width, dataset.rasters[2].gsd_m) == (40, 56, 0.5)
    pixels = np.concatenate([drawn(f"own{i}", 2, height=40, width=40 + 8 * i)[0].reshape(-1, 3) for i in range(3)]).astype(np.float64)
    np.testing.assert_allclose(dataset.stats.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(dataset.stats.std, pixels.std(0), rtol=1e-12)
    np.testing.assert_array_equal(dataset.stats.low, np.percentile(pixels, 1, axis=0, method="inverted_cdf"))
    row = index.rows(tmp_path / "out")[3]
    assert row["class_px"] == np.bincount(drawn("own3", 2, height=40, width=64)[1].ravel()).tolist()
    assert (row["image_bands"], row["dtype"], row["valid_px"]) == (3, "uint8", 40 * 64)


def test_an_index_follows_the_data_to_another_folder(own_folder: Make, tmp_path: Path) -> None:
    config = own_folder()
    datasets.prepare(config, tmp_path / "out")
    digest_before = datasets.input_digest(config)
    shutil.move(config.root, tmp_path / "elsewhere")
    with pytest.raises(Missing, match=r"not where it was prepared from"):
        datasets.load(tmp_path / "out")
    moved = DataConfig(source="folder", root=str(tmp_path / "elsewhere"))
    assert all(r.image.is_file() for r in datasets.load(tmp_path / "out", moved).rasters)
    assert datasets.input_digest(moved) == digest_before


def test_the_input_digest_follows_contents_splits_and_classes(own_folder: Make) -> None:
    config = own_folder()
    seen = {datasets.input_digest(config)}
    picture(Path(config.root) / "masks" / "scene 1.png", np.zeros((40, 48), np.uint8))
    seen.add(datasets.input_digest(config))
    edit(config, "scene 0.png,train", "scene 0.png,val")
    seen.add(datasets.input_digest(config))
    (Path(config.root) / "classes.json").write_text(binary("roof").to_json())
    seen.add(datasets.input_digest(config))
    assert len(seen) == 4


def test_a_digest_is_computed_once_for_an_unchanged_file(own_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = own_folder()
    first = datasets.input_digest(config)
    monkeypatch.setattr(digest, "_known", {})  # as in another process
    monkeypatch.setattr(digest, "_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert datasets.input_digest(config) == first
    os.utime(Path(config.root) / "masks" / "scene 1.png", (1, 1))
    monkeypatch.setattr(digest, "_digest", lambda path: "another")
    assert datasets.input_digest(config) != first


def test_rows_are_chosen_by_a_condition_on_their_columns(own_folder: Make) -> None:
    config = own_folder(("train",) * 4)
    ids = {where: [e.id[-1] for e in scan.find(DataConfig(source="folder", root=config.root, where=where)).entries]
           for where in ("zoom == 20", "zoom > 20 and gsd_m < 1", "scene in ('place0', 'place3')")}  # fmt: skip
    assert ids == {"zoom == 20": ["0", "2"], "zoom > 20 and gsd_m < 1": ["1", "3"], "scene in ('place0', 'place3')": ["0", "3"]}
    with pytest.raises(BadRequest, match=r"zooom.*columns image, mask, split, scene, gsd_m, zoom"):
        scan.find(DataConfig(source="folder", root=config.root, where="zooom == 20"))
    with pytest.raises(Missing, match="no row of"):
        scan.find(DataConfig(source="folder", root=config.root, where="zoom == 3"))


def test_missing_files_are_counted_and_named(own_folder: Make) -> None:
    config = own_folder()
    (Path(config.root) / "masks" / "scene 4.png").unlink()
    with pytest.raises(Missing, match=r"found 4 of 5 pairs; missing masks/scene 4.png"):
        scan.find(config)
    (Path(config.root) / "splits.csv").rename(Path(config.root) / "list.csv")
    with pytest.raises(Missing, match=r"expected splits.csv.*found list.csv"):
        scan.find(config)


def test_tables_of_another_encoding_or_separator_are_one_clear_error(own_folder: Make) -> None:
    config = own_folder()
    table, classes = Path(config.root) / "splits.csv", Path(config.root) / "classes.json"
    text = table.read_text()
    table.write_bytes(text.replace("place0", "Pfäffikon").encode("latin-1"))
    with pytest.raises(Disagreement, match=r"splits.csv is not a CSV in UTF-8"):
        scan.find(config)
    table.write_text(text.replace(",", ";"))
    with pytest.raises(Disagreement, match=r"no column 'split'.*commas between the columns"):
        scan.find(config)
    table.write_text(text, encoding="utf-8-sig")  # as spreadsheets write it
    assert len(scan.find(config).entries) == 5
    classes.write_bytes(b"\xff\xfe")
    with pytest.raises(Disagreement, match="not text in UTF-8"):
        scan.class_table(config, scan.layout("folder"), scan.find(config))


def test_a_scene_in_two_splits_is_refused(own_folder: Make, tmp_path: Path) -> None:
    config = own_folder()
    edit(config, "place4", "place0")
    with pytest.raises(Disagreement, match=r"one scene in two splits.*place0 \(test, train\)") as error:
        datasets.prepare(config, tmp_path / "out")
    assert error.value.exit_code == 4


def test_an_image_in_two_splits_is_refused_unless_allowed(own_folder: Make, tmp_path: Path) -> None:
    config = own_folder(("train", "train", "val"))
    root = Path(config.root)
    for kind in ("images", "masks"):
        for i in (1, 2):
            shutil.copy(root / kind / "scene 0.png", root / kind / f"scene {i}.png")
    with pytest.raises(Disagreement, match=r"the same image stands in two splits.*images_scene_0 \(train\) = images_scene_2 \(val\)"):
        datasets.prepare(config, tmp_path / "out")
    datasets.prepare(DataConfig(source="folder", root=config.root, allow_duplicates=True), tmp_path / "allowed")
    assert [row["same_image_as"] for row in index.rows(tmp_path / "allowed")] == [None, "images_scene_0", "images_scene_0"]


def test_empty_pictures_are_no_duplicates(own_folder: Make, tmp_path: Path) -> None:
    config = own_folder(("train", "train", "val"))
    for i in (1, 2):
        picture(Path(config.root) / "images" / f"scene {i}.png", np.full((40, 48, 3), 255, np.uint8))
        picture(Path(config.root) / "masks" / f"scene {i}.png", np.zeros((40, 48), np.uint8))
    datasets.prepare(config, tmp_path / "out")
    assert [row["same_image_as"] for row in index.rows(tmp_path / "out")] == [None] * 3


def test_images_of_different_depth_are_not_measured_together(own_folder: Make, tmp_path: Path) -> None:
    config = own_folder()
    edit(config, "images/scene 0.png", "images/scene 0.tif")
    tiff(Path(config.root) / "images" / "scene 0.tif", np.full((40, 40, 3), 4000, np.uint16))
    with pytest.raises(Disagreement, match="different types"):
        datasets.prepare(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: picture(root / "masks" / "scene 1.png", np.zeros((40, 40), np.uint8)), r"differ in size.*48 x 40.*40 x 40"),
        (lambda root: picture(root / "masks" / "scene 1.png", np.full((40, 48), 7, np.uint8)), r"scene 1.png.*7: 100.00%.*building: 255 1"),
        (lambda root: picture(root / "images" / "scene 1.png", np.zeros((40, 48), np.uint8)), r"has 1 band"),
        (lambda root: _cut(root / "images" / "scene 1.png"), r"truncated"),
        (lambda root: _cut(root / "masks" / "scene 1.png"), r"truncated"),
        (lambda root: (root / "images" / "scene 1.png").write_text("not a picture"), r"cannot read .*scene 1.png"),
    ],
    ids=["mask of another size", "unknown code", "too few bands", "cut image", "cut mask", "no picture"],
)
def test_a_damaged_pair_is_one_clear_error_and_no_index(
    damage: Callable[[Path], None], message: str, own_folder: Make, tmp_path: Path
) -> None:
    config = own_folder()
    damage(Path(config.root))
    with pytest.raises(Disagreement, match=message):
        datasets.prepare(config, tmp_path / "out")
    assert not (tmp_path / "out" / "scenes.parquet").exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_tiffs_and_jpegs_are_found(tmp_path: Path) -> None:
    image, mask = drawn("cut", 2, height=300, width=300)
    picture(tmp_path / "masks" / "a.png", mask)
    (tmp_path / "splits.csv").write_text("name,split\na,train\n")
    (tmp_path / "classes.json").write_text(binary("building").to_json())
    config = DataConfig(source="folder", root=str(tmp_path))
    for name, write in (("a.jpg", lambda path: picture(path, image)), ("a.tif", lambda path: tiff(path, image))):
        path = tmp_path / "images" / name
        write(path)
        datasets.prepare(config, tmp_path / f"out {name}")
        _cut(path)
        with pytest.raises(Disagreement, match=name):
            datasets.prepare(config, tmp_path / "bad")
        path.unlink()


def test_sixteen_bit_four_band_scenes_are_measured_without_nodata(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(200, 9000, (48, 64, 4)).astype(np.uint16)
    image[:10, :20] = 0
    tiff(tmp_path / "images" / "a.tif", image, nodata=0, crs="EPSG:32633", compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    picture(tmp_path / "masks" / "a.png", np.full((48, 64), 255, np.uint8))
    (tmp_path / "splits.csv").write_text("name,split\na,train\n")
    (tmp_path / "classes.json").write_text(binary("building").to_json())
    config = DataConfig(source="folder", root=str(tmp_path), bands=(4, 2))
    datasets.prepare(config, tmp_path / "out")
    stats, row = datasets.load(tmp_path / "out").stats, index.rows(tmp_path / "out")[0]
    valid = (image > 0).any(-1)
    chosen = image[valid][:, [3, 1]].astype(np.float64)
    np.testing.assert_allclose(stats.mean, chosen.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.std, chosen.std(0), rtol=1e-12)
    assert row["valid_px"] == valid.sum() == row["class_px"][1]
    assert row["ignored_px"] == 200
    assert (row["dtype"], row["image_bands"], row["nodata"]) == ("uint16", 4, 0.0)


def test_float_scenes_with_nan_are_measured_on_what_is_finite(tmp_path: Path) -> None:
    image = np.random.default_rng(2).normal(0.3, 0.1, (40, 40, 1)).astype(np.float32)
    image[5:9] = np.nan
    tiff(tmp_path / "images" / "a.tif", image)
    picture(tmp_path / "masks" / "a.png", np.zeros((40, 40), np.uint8))
    (tmp_path / "splits.csv").write_text("name,split\na,train\n")
    (tmp_path / "classes.json").write_text(binary("building").to_json())
    config = DataConfig(source="folder", root=str(tmp_path), bands=(1,))
    datasets.prepare(config, tmp_path / "out")
    stats = datasets.load(tmp_path / "out").stats
    np.testing.assert_allclose(stats.mean, [np.nanmean(image)], rtol=1e-6)
    np.testing.assert_allclose(stats.std, [np.nanstd(image)], rtol=1e-5)
    np.testing.assert_allclose([stats.low[0], stats.high[0]], np.nanpercentile(image, (1, 99)), atol=1e-6)


def test_georeferenced_scenes_know_their_place_and_ground_size(tmp_path: Path) -> None:
    from rasterio.transform import from_origin

    for name, x, y in (("a", 500000.0, 5000000.0), ("b", 500060.0, 4999940.0)):
        image, mask = drawn(name, 2)
        tiff(tmp_path / "images" / f"{name}.tif", image, crs="EPSG:32633", transform=from_origin(x, y, 0.5, 0.5))
        tiff(tmp_path / "masks" / f"{name}.tif", mask)
    (tmp_path / "splits.csv").write_text("name,split,scene\na,train,village\nb,train,village\n")
    (tmp_path / "classes.json").write_text(binary("building").to_json())
    datasets.prepare(DataConfig(source="folder", root=str(tmp_path)), tmp_path / "out")
    first, second = datasets.load(tmp_path / "out").rasters
    assert (first.x_m, first.y_m) == (0, 0)
    np.testing.assert_allclose((first.gsd_m, second.x_m, second.y_m), (0.5, 60, 60), rtol=1e-3)


def test_colour_masks_and_index_masks_arrive_as_the_same_classes(tmp_path: Path) -> None:
    table = ClassTable(
        (LabelClass("field", (3, (0, 200, 0)), (0, 200, 0)), LabelClass("road", (7, (9, 9, 9)), (9, 9, 9))), ignore=(0, (0, 0, 0))
    )
    image, index_map = drawn("three", 2, ignore=True)
    colours = np.where(index_map[..., None] == 255, 0, np.array([(0, 200, 0), (9, 9, 9)])[index_map.clip(max=1)]).astype(np.uint8)
    codes = np.where(index_map == 255, 0, np.array([3, 7])[index_map.clip(max=1)]).astype(np.uint8)
    for name, mask in (("colours", colours), ("codes", codes)):
        picture(tmp_path / "images" / f"{name}.png", image ^ np.uint8(len(name)))
        picture(tmp_path / "masks" / f"{name}.png", mask)
    (tmp_path / "splits.csv").write_text("name,split\ncolours,train\ncodes,train\n")
    (tmp_path / "classes.json").write_text(table.to_json())
    datasets.prepare(DataConfig(source="folder", root=str(tmp_path)), tmp_path / "out")
    first, second = index.rows(tmp_path / "out")
    assert first["class_px"] == second["class_px"] == np.bincount(index_map.ravel(), minlength=256)[:2].tolist()
    assert first["ignored_px"] == second["ignored_px"] > 0


def test_two_processes_index_the_same_as_one(own_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = own_folder()
    datasets.prepare(config, tmp_path / "one")
    monkeypatch.setattr(scan, "SPAWN_BYTES", 0)
    told: list[int] = []
    datasets.prepare(config, tmp_path / "two", lambda **values: told.append(values["done"]))
    assert index.rows(tmp_path / "one") == index.rows(tmp_path / "two")
    assert told == [1, 2, 3, 4, 5]


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(BadRequest, match="did you mean 'potsdam'"):
        datasets.layout("postdam")


def test_declared_nodata_is_unknown_in_the_whole_set_if_the_class_has_another_code(tmp_path: Path) -> None:
    """Tiles of 0, 1 and declared nodata 255: one without a building, whose 255 alone could be taken for buildings."""
    rng = np.random.default_rng(0)
    rows = ["image,mask,split"]
    for name, building in (("a", 1), ("b", 0)):
        mask = np.zeros((32, 48), np.uint8)
        mask[4:12, 10:30], mask[:, :6] = building, 255
        profile = {"driver": "GTiff", "height": 32, "width": 48, "dtype": "uint8"}
        with rasterio.open(tmp_path / f"{name}_mask.tif", "w", count=1, nodata=255, **profile) as file:
            file.write(mask, 1)
        with rasterio.open(tmp_path / f"{name}.tif", "w", count=3, **profile) as file:
            file.write(rng.integers(0, 255, (3, 32, 48)).astype(np.uint8))
        rows.append(f"{name}.tif,{name}_mask.tif,{'train' if building else 'val'}")
    (tmp_path / "splits.csv").write_text("\n".join(rows))
    (tmp_path / "classes.json").write_text(binary("building").to_json())
    config = DataConfig(source="folder", root=str(tmp_path))
    datasets.prepare(config, tmp_path / "out")
    found = {row["id"]: row for row in index.rows(tmp_path / "out")}
    assert found["a"]["class_px"] == [32 * 42 - 160, 160]
    assert found["b"]["class_px"] == [32 * 42, 0]
    data = datasets.load(tmp_path / "out", config)
    assert (read_labels(data.of("val")[0].label, data.table)[:, :6] == IGNORE).all()
