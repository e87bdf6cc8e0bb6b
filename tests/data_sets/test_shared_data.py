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
    assert dataset.fold_unit(3) == "block"  # zanzibar_a is four fifths of the training area


def test_dubai_landcover_follows_its_split_table() -> None:
    config = DataConfig(source="dubai_landcover", root=str(DATA / "dubai-landcover"))
    found = scan.find(config)
    assert [sum(e.split == split for e in found.entries) for split in ("train", "val", "test")] == [36, 9, 8]
    assert {e.scene for e in found.entries if e.split == "train"} == {"tile_5", "tile_6", "tile_7_8"}
    row, _ = scan.inspect(next(e for e in found.entries if e.id == "tile1_part3"), scan.layout(config.source).table, (1, 2, 3))
    shares = np.array([*row["class_px"], row["ignored_px"]]) / (row["height"] * row["width"])
    np.testing.assert_allclose(shares, [0.0303, 0.6412, 0.1404, 0.0697, 0.1149, 0.0035], atol=6e-5)  # its splits.csv
