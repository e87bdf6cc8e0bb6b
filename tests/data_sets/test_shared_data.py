"""The two real data sets that lie beside the repository while it is built; skipped where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from idgbr import datasets
from idgbr.config import DataConfig
from idgbr.datasets import index, scan

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")]


def test_oam_buildings_at_zoom_20(tmp_path: Path) -> None:
    config = DataConfig(source="oam_buildings", root=str(DATA / "oam-buildings"), where="zoom == 20")
    datasets.prepare(config, tmp_path)
    dataset = datasets.load(tmp_path, config)
    assert [len(dataset.of(split)) for split in ("train", "val", "test")] == [40, 14, 6]
    assert {r.scene for r in dataset.of("train")} == {"zanzibar_a", "kampala_a", "catanduanes_a"}
    chips = {r.id: r for r in dataset.rasters}
    np.testing.assert_allclose(chips["zanzibar_b_z20_r01_c03"].x_m, 3 * 512 * 0.1485)
    np.testing.assert_allclose(chips["zanzibar_b_z20_r01_c03"].y_m, 512 * 0.1485)
    counts = sum(np.array(r["class_px"]) for r in index.rows(tmp_path) if r["scene"] == "zanzibar_a")
    assert round(counts[1] / counts.sum(), 4) == 0.0861  # scenes.csv
    assert index.grouped_folds(dataset.of("train"), 3, dataset.block_m)[0] == "block"  # zanzibar_a is four fifths of the training area


def test_dubai_landcover_follows_its_split_table() -> None:
    config = DataConfig(source="dubai_landcover", root=str(DATA / "dubai-landcover"))
    found = scan.find(config)
    assert [sum(e.split == split for e in found.entries) for split in ("train", "val", "test")] == [36, 9, 8]
    assert {e.scene for e in found.entries if e.split == "train"} == {"tile_5", "tile_6", "tile_7_8"}
    row, _ = scan.inspect(next(e for e in found.entries if e.id == "tile1_part3"), scan.layout(config.source).table, (1, 2, 3))
    shares = np.array([*row["class_px"], row["ignored_px"]]) / (row["height"] * row["width"])
    np.testing.assert_allclose(shares, [0.0303, 0.6412, 0.1404, 0.0697, 0.1149, 0.0035], atol=6e-5)  # its splits.csv


# ---- files as publishers write them (one or a few of each), and the trap that each has -------------------------------------------------

SAMPLES = DATA / "publisher-samples"
READ = {  # source, folder, table -> share of the last class that counts, rounded as the masks are
    "LoveDA": ("loveda", "LoveDA", None, 3, ("agriculture", 0.4748)),
    "mmsegmentation Potsdam": ("potsdam", "ISPRS_mmseg/potsdam", None, 1, ("building", 0.2697)),
    "mmsegmentation Vaihingen": ("vaihingen", "ISPRS_mmseg/vaihingen", None, 1, ("building", 0.3315)),
    "Potsdam thumbnails": ("folder", "ISPRS_potsdam_thumbnails", "isprs", 4, ("building", None)),
    "INRIA crops": ("folder", "INRIA/crops", "building", 3, ("building", None)),
    "SpaceNet": ("folder", "SpaceNet1_Rio", "building", 3, ("building", None)),
    "Massachusetts crops": ("folder", "Massachusetts_roads_crops", "road", 7, ("road", None)),
    "WHU": ("whu_building", "WHU_aerial", None, 3, ("building", None)),
}


def _truth(path: Path, source: str, name: str) -> np.ndarray:
    """Where the class is, by Pillow and numpy alone."""
    from PIL import Image

    from idgbr.datasets.isprs import TABLE

    raw = np.array(Image.open(path))
    if source == "loveda":
        return raw == 7
    if source in ("potsdam", "vaihingen"):
        return raw == 2
    if raw.ndim == 3:
        return (raw == dict(zip(TABLE.names, TABLE.colors))[name]).all(-1)
    return raw > 0


@pytest.mark.parametrize("kind", READ)
def test_publishers_files_are_read_right(kind: str, tmp_path: Path) -> None:
    from idgbr.datasets.isprs import TABLE
    from idgbr.labels import binary
    from idgbr.rasters.read import read_labels

    source, folder, table, count, (name, share) = READ[kind]
    classes = ""
    if table:
        classes = str(tmp_path / "t.json")
        Path(classes).write_text((TABLE if table == "isprs" else binary(table)).to_json())
    config = DataConfig(source=source, root=str(SAMPLES / folder), classes=classes)
    datasets.prepare(config, tmp_path / "out")
    dataset = datasets.load(tmp_path / "out", config)
    assert len(dataset.rasters) == count
    at = dataset.table.names.index(name)
    seen = np.zeros(2, np.int64)
    for raster in dataset.rasters:
        found = read_labels(raster.label, dataset.table)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found == at, _truth(raster.label, source, name))  # type: ignore[arg-type]
        seen += [(found == at).sum(), (found != 255).sum()]
    if share is not None:
        assert seen[0] / seen[1] == pytest.approx(share, abs=5e-4)


def test_labels_without_images_say_so() -> None:
    from idgbr.errors import Missing

    with pytest.raises(Missing, match=r"no folder train/images.*labels in .*gt, but no images.*unpack the images"):
        scan.find(DataConfig(source="inria", root=str(SAMPLES / "INRIA")))
