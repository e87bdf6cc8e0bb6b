"""Own folders without a split table, crops as mmsegmentation's converters write them, and coordinates in degrees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from miniature_layouts import coloured, drawn, loveda, picture, tiff
from rasterio.transform import from_origin

from idgbr import datasets
from idgbr.config import DataConfig, ScoreConfig
from idgbr.datasets import digest, index, isprs
from idgbr.datasets.scan import find
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.labels import ClassTable, LabelClass, binary
from idgbr.rasters.grid import Grid
from idgbr.rasters.read import read_labels


def pair(root: Path, image: str, mask: str | None, name: str = "", code: int = 255) -> np.ndarray:
    pixels, labels = drawn(name or image, 2)
    picture(root / image, pixels)
    if mask is not None:
        picture(root / mask, labels * np.uint8(code))
    return labels


def own(root: Path, **settings: object) -> DataConfig:
    (root / "classes.json").write_text(binary("building").to_json())
    return DataConfig(source="folder", root=str(root), **settings)  # type: ignore[arg-type]


ARRANGED = {
    "two folders": (["images/a.png", "images/b.png"], ["masks/a.png", "masks/b.png"], ["train", "train"]),
    "other names": (["sat/a(1).png"], ["map/a(1).png"], ["train"]),
    "splits inside": (["img_dir/train/a.png", "img_dir/val/a.png"], ["ann_dir/train/a.png", "ann_dir/val/a.png"], ["train", "val"]),
    "splits outside": (["train/image/a.png", "valid/image/b.png"], ["train/label/a.png", "valid/label/b.png"], ["train", "val"]),
    "nested": (["images/north/1.png", "images/south/1.png"], ["gt/north/1.png", "gt/south/1.png"], ["train", "train"]),
    "suffix in one folder": (["a.png", "b.png"], ["a_gt.png", "b_gt.png"], ["train", "train"]),
    "suffix by split": (["train/a_sat.jpg", "test/b_sat.jpg"], ["train/a_mask.png", "test/b_mask.png"], ["train", "test"]),
    "suffix in two folders": (["images/a_rgb.png"], ["labels/a_label.png"], ["train"]),
    "capitals": (["Images/A.png"], ["Masks/A_Mask.png"], ["train"]),
}


@pytest.mark.parametrize("kind", ARRANGED)
def test_pairs_are_found_by_the_names_of_folders_and_files(kind: str, tmp_path: Path) -> None:
    images, masks, splits = ARRANGED[kind]
    root = tmp_path / "unpacked" / "data"
    truth = [pair(root, image, mask) for image, mask in zip(images, masks)]
    config = own(tmp_path / "unpacked")
    found = find(config).entries
    assert [str(e.image.relative_to(root)) for e in found] == images
    assert [str(e.label.relative_to(root)) for e in found if e.label] == masks
    assert [e.split for e in found] == splits
    assert len({e.id for e in found}) == len({e.scene for e in found}) == len(images)
    if all(name.endswith(".png") for name in images):
        datasets.prepare(config, tmp_path / "out")
        dataset = datasets.load(tmp_path / "out", config)
        for raster, expected in zip(dataset.rasters, truth):
            np.testing.assert_array_equal(read_labels(raster.label, dataset.table), expected)  # type: ignore[arg-type]
    notes = json.dumps(find(config).notes)
    assert ("everything is train" in notes) == ("train" not in kind and set(splits) == {"train"})


def test_a_test_split_may_lack_masks_and_other_splits_may_not(tmp_path: Path) -> None:
    pair(tmp_path, "train/images/a.png", "train/masks/a.png")
    pair(tmp_path, "test/images/b.png", None)
    assert [(e.split, e.label is None) for e in find(own(tmp_path)).entries] == [("train", False), ("test", True)]
    pair(tmp_path, "train/images/c.png", None)
    with pytest.raises(Missing, match=r"found 1 of 2 pairs.*missing masks of train/images/c.png"):
        find(own(tmp_path))
    pair(tmp_path, "train/images/c.png", "train/masks/c.png")
    (tmp_path / "train" / "images" / "a.png").unlink()
    with pytest.raises(Missing, match=r"missing images of train/masks/a.png"):
        find(own(tmp_path))


def test_what_is_not_clear_is_refused_with_what_to_do(tmp_path: Path) -> None:
    pair(tmp_path, "3band/a.png", "mask/a.png")
    pair(tmp_path, "8band/a.png", None)
    with pytest.raises(Disagreement, match=r"two folders of images.*3band, 8band.*splits.csv"):
        find(own(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Missing, match=r"no split table.*folders images and masks.*NAME_gt.png"):
        find(DataConfig(source="folder", root=str(tmp_path / "empty")))
    pair(tmp_path / "one", "train/images/a.png", None)
    pair(tmp_path / "one", "val/images/a.png", "val/masks/a.png")
    with pytest.raises(Missing, match=r"no folder of masks in .*train"):
        find(own(tmp_path / "one"))
    pair(tmp_path / "two", "images/a.png", "masks/a.png")
    picture(tmp_path / "two" / "images" / "a.jpg", drawn("x", 2)[0])
    with pytest.raises(Disagreement, match="two files of one name"):
        find(own(tmp_path / "two"))


def test_a_split_table_is_never_passed_over(tmp_path: Path) -> None:
    pair(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "classes.csv").write_text("name,r,g,b\nbuilding,255,0,0\n")  # no split table
    assert len(find(own(tmp_path)).entries) == 1
    (tmp_path / "mine.csv").write_text("image,mask,split\nimages/a.png,masks/a.png,test\n")
    with pytest.raises(Missing, match=r"found classes.csv, mine.csv.*data.split_table"):
        find(own(tmp_path))
    assert [e.split for e in find(own(tmp_path, split_table="mine.csv")).entries] == ["test"]


def test_where_chooses_among_found_pairs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pair(tmp_path, f"images/{name}.png", f"masks/{name}.png")
    assert [e.id for e in find(own(tmp_path, where="id = 'b'")).entries] == ["b"]


@pytest.mark.parametrize("path", ["images\\a.png", "images/a.png", ".\\images\\a.png"])
def test_tables_from_windows_name_the_same_files(path: str, tmp_path: Path) -> None:
    pair(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "splits.csv").write_text(f"image,mask,split\n{path},{path.replace('images', 'masks')},train\n")
    (entry,) = find(own(tmp_path)).entries
    assert (entry.id, entry.image.name) == ("images_a", "a.png")


def test_absolute_paths_of_windows_say_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("image,mask,split\nC:\\data\\a.png,C:\\data\\a_gt.png,train\n")
    with pytest.raises(Missing, match=r"missing C:\\data\\a.png.*paths below the folder of the table, with slashes"):
        find(own(tmp_path))


def test_images_and_masks_with_an_alpha_band(tmp_path: Path) -> None:
    """Transparent pixels are ignored on either side; the colours of a mask count as without alpha."""
    pixels, labels = drawn("rgba", 2)
    alpha = np.full((*labels.shape, 1), 255, np.uint8)
    alpha[:5] = 0
    picture(tmp_path / "images" / "a.png", np.concatenate([pixels, alpha], -1))
    picture(tmp_path / "masks" / "a.png", np.concatenate([coloured(labels, [(0, 0, 0), (255, 0, 0)]), np.flip(alpha, 0)], -1))
    table = ClassTable((LabelClass("bg", ((0, 0, 0),), (0, 0, 0)), LabelClass("roof", ((255, 0, 0),), (255, 0, 0))))
    (tmp_path / "classes.json").write_text(table.to_json())
    datasets.prepare(DataConfig(source="folder", root=str(tmp_path)), tmp_path / "out")
    (row,) = index.rows(tmp_path / "out")
    assert row["class_px"] == np.bincount(labels[5:-5].ravel(), minlength=2).tolist()
    assert row["ignored_px"] == 2 * 5 * labels.shape[1]


# ---- mmsegmentation -------------------------------------------------------------------------------------------------------------


def _crops(root: Path, names: dict[str, list[str]]) -> dict[str, np.ndarray]:
    truth = {}
    for split, stems in names.items():
        for stem in stems:
            image, labels = drawn(stem, 6, ignore=True)
            codes = np.where(labels == 255, 0, np.array([6, 1, 2, 3, 4, 5])[labels.clip(max=5)]).astype(np.uint8)
            picture(root / "img_dir" / split / f"{stem}.png", image)
            picture(root / "ann_dir" / split / f"{stem}.png", codes)
            truth[stem] = labels
    return truth


@pytest.mark.parametrize(
    ("source", "names", "expected"),
    [
        (
            "potsdam",
            {"train": ["2_11_0_0_512_512", "2_10_512_0_1024_512"], "val": ["2_13_0_512_512_1024"]},
            {"potsdam_2_11_0_0": "train", "potsdam_2_10_512_0": "val", "potsdam_2_13_0_512": "test"},
        ),
        (
            "vaihingen",
            {"train": ["area1_0_0_512_512", "area5_0_0_512_512"], "val": ["area2_0_0_512_512"]},
            {"vaihingen_1_0_0": "train", "vaihingen_5_0_0": "val", "vaihingen_2_0_0": "test"},
        ),
    ],
)
def test_isprs_crops_of_mmsegmentation(source: str, names: dict, expected: dict, tmp_path: Path) -> None:
    truth = _crops(tmp_path / "data" / source, names)
    config = DataConfig(source=source, root=str(tmp_path / "data"))
    datasets.prepare(config, tmp_path / "out")
    dataset = datasets.load(tmp_path / "out", config)
    assert {r.id: r.split for r in dataset.rasters} == expected
    assert dataset.table.names == isprs.TABLE.names
    for raster in dataset.rasters:
        np.testing.assert_array_equal(read_labels(raster.label, dataset.table), truth[raster.image.stem])  # type: ignore[arg-type]
    second = next(r for r in dataset.rasters if r.id.endswith("_512_0") or r.id == "vaihingen_5_0_0")
    assert second.scene in ("potsdam_2_10", "vaihingen_5")
    assert second.x_m == pytest.approx(512 * 0.05 if source == "potsdam" else 0)
    with pytest.raises(BadRequest, match=r"data.val_ids"):
        find(DataConfig(source=source, root=str(tmp_path / "data"), val_ids=("99",)))


def test_loveda_of_mmsegmentation_and_half_of_the_original(tmp_path: Path) -> None:
    image, labels = drawn("x", 7, ignore=True)
    for split, number in (("train", 0), ("val", 2522)):
        picture(tmp_path / "conv" / "img_dir" / split / f"{number}.png", image + np.uint8(number % 7))
        picture(tmp_path / "conv" / "ann_dir" / split / f"{number}.png", np.where(labels == 255, 0, labels + 1).astype(np.uint8))
    config = DataConfig(source="loveda", root=str(tmp_path / "conv"))
    datasets.prepare(config, tmp_path / "out")
    dataset = datasets.load(tmp_path / "out", config)
    assert {r.id: r.split for r in dataset.rasters} == {"0": "train", "2522": "val"}
    np.testing.assert_array_equal(read_labels(dataset.rasters[0].label, dataset.table), labels)  # type: ignore[arg-type]
    loveda(tmp_path / "half")
    for area in ("Urban", "Rural"):
        other = tmp_path / f"only {area}"
        for split in ("Train", "Val"):
            other.joinpath(split).mkdir(parents=True)
            os.symlink(tmp_path / "half" / split / area, other / split / area)
        found = find(DataConfig(source="loveda", root=str(other))).entries
        assert {e.id.split("_")[0] for e in found} == {area.lower()}


def test_a_split_that_was_not_unpacked_is_named(tmp_path: Path) -> None:
    pair(tmp_path, "test/image/0.png", "test/label/0.png")
    found = find(DataConfig(source="whu_building", root=str(tmp_path)))
    assert [e.split for e in found.entries] == ["test"]
    assert "WHU-Building train: found 0 of 4736 tiles" in found.notes
    (tmp_path / "train" / "label").mkdir(parents=True)
    with pytest.raises(Missing, match=r"no folder train/image or train/images.*labels in .*train/label, but no images"):
        find(DataConfig(source="whu_building", root=str(tmp_path)))


# ---- degrees ----------------------------------------------------------------------------------------------------------------------


def _in_degrees(root: Path, latitude: float, side: int = 40) -> DataConfig:
    """Two rasters of one scene, the second 2 sides to the east and 3 to the south; pixels of 5e-6 degrees."""
    step = 5e-6
    for name, east, south in (("a", 0, 0), ("b", 2, 3)):
        image, labels = drawn(name, 2, height=side, width=side)
        where = {"crs": "EPSG:4326", "transform": from_origin(-43 + east * side * step, latitude - south * side * step, step, step)}
        tiff(root / "images" / f"{name}.tif", image, **where)
        tiff(root / "masks" / f"{name}.tif", labels, **where)
    (root / "splits.csv").write_text("name,split,scene\na,train,s\nb,train,s\n")
    return own(root)


@pytest.mark.parametrize("latitude", [0.0, -22.9, 52.0, 65.0])
def test_places_in_degrees_are_metres_on_the_ground(latitude: float, tmp_path: Path) -> None:
    """Against pyproj's distances on the ellipsoid, by way of a local transverse Mercator in rasterio."""
    from rasterio.warp import transform

    config = _in_degrees(tmp_path / "data", latitude)
    datasets.prepare(config, tmp_path / "out")
    first, second = datasets.load(tmp_path / "out", config).rasters
    with rasterio.open(first.image) as a, rasterio.open(second.image) as b:
        middles = [source.transform * (source.width / 2, source.height / 2) for source in (a, b)]
    local = f"+proj=tmerc +lat_0={latitude} +lon_0=-43 +ellps=WGS84"
    x, y = transform("EPSG:4326", local, [m[0] for m in middles], [m[1] for m in middles])
    found = [(r.x_m + r.width * r.gsd_m / 2, r.y_m + r.height * r.gsd_m / 2) for r in (first, second)]  # type: ignore[operator]
    np.testing.assert_allclose(np.subtract(*found[::-1]), (x[1] - x[0], y[0] - y[1]), rtol=2e-3)
    assert first.gsd_m == pytest.approx(np.sqrt(np.prod(Grid.of(first.image).sides_m())))  # type: ignore[arg-type]


def test_widths_in_metres_are_refused_where_pixels_are_not_square(tmp_path: Path) -> None:
    from idgbr.commands.score import score
    from idgbr.scores.counts import require_square

    images = {}
    for latitude in (1.0, 60.0):
        images[latitude] = Path(_in_degrees(tmp_path / f"{latitude}", latitude).root) / "masks" / "a.tif"
    require_square(ScoreConfig(boundary_m=2.0), [images[1.0]])
    require_square(ScoreConfig(boundary_px=2.0), [images[60.0]])
    with pytest.raises(BadRequest, match=r"score.boundary_m is given in metres.*0.279 m wide and 0.557 m high.*gdalwarp"):
        require_square(ScoreConfig(boundary_m=2.0), [images[60.0]])
    score(images[1.0], images[1.0], tolerance_m=2.0, json=True)
    with pytest.raises(BadRequest, match="tolerance_m is given in metres"):
        score(images[60.0], images[60.0], tolerance_m=2.0)
    with pytest.raises(BadRequest, match="not square"):
        Grid.of(images[60.0]).pixels(3.0, "--min-size")


# ---- digests ----------------------------------------------------------------------------------------------------------------------


def test_other_content_of_the_same_size_and_time_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    before, stat = digest.digests([path])[path], path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest.digests([path])[path] != before
    monkeypatch.setattr(digest, "_digest", lambda _: "read again")
    assert digest.digests([path])[path] != "read again"
    assert digest.digests([path], rehash=True)[path] == "read again"
    digest._known.clear()
    assert digest.digests([path])[path] == "read again"


def test_rehash_of_a_data_set_reads_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(tmp_path, "images/a.png", "masks/a.png")
    config = own(tmp_path)
    before = datasets.input_digest(config)
    monkeypatch.setattr(digest, "_digest", lambda path: path.name)
    assert datasets.input_digest(config) == before
    datasets.rehash(config)
    assert datasets.input_digest(config) != before
    datasets.rehash(DataConfig())
