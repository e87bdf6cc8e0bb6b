"""One refiner of one class against the rest, for scenes of any classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS

from idgbr.config import RefinerConfig, Runtime, SamplerConfig
from idgbr.errors import Disagreement, Missing
from idgbr.general.one_class import OneAgainstRest, shipped
from idgbr.general.scale import STATS
from idgbr.general.tiles import TABLE
from idgbr.labels import ClassTable, LabelClass
from idgbr.rasters.grid import Grid
from idgbr.rasters.write import write_class_map, write_probabilities
from idgbr.refiner import Refiner
from idgbr.scene import model as models
from idgbr.scene.any_classes import classes_of
from idgbr.scene.geotiff import SceneRequest, refine_scene

GRID = Grid(96, 96, Affine(0.5, 0, 500000.0, 0, -0.5, 4600000.0), CRS.from_epsg(32633))


class Sure:
    """Refines the probability p of the class to p^2 / (p^2 + (1 - p)^2); remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def condition(self, image: np.ndarray, coarse: np.ndarray, valid: np.ndarray) -> Any:
        self.seen.append((image, coarse))
        return coarse

    def draw(self, condition: Any, seeds: Sequence[int], sampler: SamplerConfig) -> np.ndarray:
        assert len(seeds) == len(condition)
        powers = condition**2
        return (powers / powers.sum(1, keepdims=True))[None]


def probabilities(n_classes: int, seed: int = 0) -> np.ndarray:
    p = np.random.default_rng(seed).random((2, n_classes, 12, 10)).astype(np.float32) ** 3
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_classes_are_refined_one_by_one_and_joined_by_their_sum(n_classes: int) -> None:
    p = probabilities(n_classes)
    tiles = Sure()
    joined = OneAgainstRest(tiles, (100, 100, 100), (20, 20, 20))
    image = np.random.default_rng(1).normal(100, 20, (2, 3, 12, 10)).astype(np.float32)
    found = joined.draw(joined.condition(image, p, np.ones((2, 12, 10), bool)), [1, 2], SamplerConfig())
    each = p**2 / (p**2 + (1 - p) ** 2)
    assert found[0] == pytest.approx(each / each.sum(1, keepdims=True), abs=1e-5)
    assert len(tiles.seen) == (1 if n_classes == 2 else n_classes)
    assert abs(tiles.seen[0][0].mean() - 127.5) < 4


def test_a_class_that_is_in_no_pixel_of_a_tile_is_not_run_there() -> None:
    p = probabilities(3)
    p[0, 2] = 0
    p /= p.sum(1, keepdims=True)
    tiles = Sure()
    joined = OneAgainstRest(tiles, (0, 0, 0), (1, 1, 1))
    found = joined.draw(joined.condition(np.zeros((2, 3, 12, 10), np.float32), p, np.ones((2, 12, 10), bool)), [1, 2], SamplerConfig())
    assert [len(coarse) for _, coarse in tiles.seen] == [2, 2, 1]
    assert (found[0, 0, 2] == 0).all()
    alone = joined.draw(joined.condition(np.zeros((1, 3, 12, 10), np.float32), p[1:], np.ones((1, 12, 10), bool)), [2], SamplerConfig())
    assert (alone[0, 0] == found[0, 1]).all()  # a tile does not depend on its neighbours


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A general refiner with random weights that adds to the coarse map."""
    torch.manual_seed(0)
    config = RefinerConfig(
        kind="one_pass",
        channels=(16, 32),
        condition_channels=(16, 32),
        guidance_width=16,
        crop_px=32,
        class_channels=True,
        pixel_channels=8,
    )
    refiner = Refiner.build(config, 3, TABLE, STATS)
    with torch.no_grad():
        for parameter in refiner.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder: Path = tmp_path_factory.mktemp("general")
    refiner.save(folder)
    return folder


def scene(folder: Path, dtype: str = "uint16", bands: int = 4) -> Path:
    values = np.random.default_rng(0).integers(200, 900, (bands, GRID.height, GRID.width)).astype(dtype)
    profile = {"driver": "GTiff", "count": bands, "height": GRID.height, "width": GRID.width, "crs": GRID.crs, "transform": GRID.transform}
    with rasterio.open(folder / "scene.tif", "w", dtype=dtype, **profile) as file:
        file.write(values)
    return folder / "scene.tif"


def stripes(n_classes: int) -> np.ndarray:
    return (np.indices((GRID.height, GRID.width))[1] // 25 % n_classes).astype(np.uint8)


def test_a_scene_of_any_classes_and_bands_is_refined_and_keeps_its_codes(general: Path, tmp_path: Path) -> None:
    index = stripes(5)
    table = ClassTable(tuple(LabelClass(f"kind {i}", (i,), (10 * i, 80, 200)) for i in range(5)))
    write_class_map(tmp_path / "coarse.tif", index, GRID, table)
    loaded = models.load_model(str(general), str(tmp_path / "store"), Runtime(device="cpu"))
    assert loaded.one_class
    request = SceneRequest(scene(tmp_path), tmp_path / "coarse.tif", tmp_path / "refined.tif")
    tally, _ = refine_scene(loaded, loaded.sampler, request)
    assert tally.pixels == index.size
    with rasterio.open(tmp_path / "refined.tif") as file:
        refined = file.read(1)
        assert file.crs == GRID.crs
        assert file.tags()["CLASS_3"] == "kind 3"
        assert file.colormap(1)[3][:3] == (30, 80, 200)
    assert set(np.unique(refined)) <= set(range(5))


def test_a_scene_gives_what_the_same_arrays_give(general: Path, tmp_path: Path) -> None:
    index = stripes(2)
    write_class_map(tmp_path / "coarse.tif", index, GRID)
    path = scene(tmp_path, bands=3)
    loaded = models.load_model(str(general), str(tmp_path / "store"), Runtime(device="cpu"))
    whole = models.with_settings(loaded.sampler, tile_px=96)
    refine_scene(loaded, whole, SceneRequest(path, tmp_path / "coarse.tif", tmp_path / "refined.tif"))
    with rasterio.open(tmp_path / "refined.tif") as file, rasterio.open(path) as image:
        refined, pixels = file.read(1), image.read()
    found = Refiner.general(general).refine(pixels, index)
    assert (found == refined).mean() > 0.999  # the sums of the band statistics are rounded differently
    assert (found != index).any()


def test_without_a_model_and_with_an_empty_store_the_general_refiner_is_taken_and_named(
    general: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "shipped", lambda: general)
    monkeypatch.setattr(models, "BY_DEFAULT", True)
    assert models.find_model("", str(tmp_path)) == (general, None)
    assert "general refiner" in capsys.readouterr().err
    assert models.find_model("general", str(tmp_path))[0] == general
    monkeypatch.setattr(models, "shipped", lambda: None)
    with pytest.raises(Missing, match="no general refiner"):
        models.find_model("general", str(tmp_path))
    for by_default in (True, False):
        monkeypatch.setattr(models, "BY_DEFAULT", by_default)
        with pytest.raises(Missing, match="no refiner in the store"):
            models.find_model("", str(tmp_path))


def test_the_installed_refiner_loads_and_names_no_machine() -> None:
    folder = shipped()
    assert folder is not None
    assert (folder / "model.safetensors").stat().st_size < 20e6
    config = json.loads((folder / "config.json").read_text())
    assert not [v for v in config["refiner"].values() if isinstance(v, str) and v.startswith("/")]
    refiner = Refiner.general()
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3, 64, 64)).astype(np.uint8)
    coarse = (np.indices((64, 64))[1] > 30).astype(np.uint8)
    refined = refiner.refine(image, coarse)
    assert refined.shape == coarse.shape
    assert (refined == coarse).mean() > 0.9  # noise says nothing sure


def test_classes_come_from_tags_bands_and_values(tmp_path: Path) -> None:
    def write(name: str, bands: np.ndarray, **profile: Any) -> Path:
        with rasterio.open(
            tmp_path / name, "w", driver="GTiff", count=len(bands), height=96, width=96, dtype=bands.dtype, **profile
        ) as file:
            file.write(bands)
        return tmp_path / name

    assert classes_of(write("mask.tif", stripes(2)[None] * np.uint8(255))).names == ("background", "object")
    assert classes_of(write("codes.tif", stripes(4)[None])).n_classes == 4
    p = np.random.default_rng(0).random((5, 96, 96)).astype(np.float32)
    assert classes_of(write("soft.tif", p / p.sum(0))).n_classes == 5
    write_probabilities(tmp_path / "named.tif", (p / p.sum(0))[:], GRID, ("a", "b", "c", "d", "e"))
    assert classes_of(tmp_path / "named.tif").names == ("a", "b", "c", "d", "e")
    colours = np.random.default_rng(0).integers(0, 3, (3, 96, 96)).astype(np.uint8) * 100
    with pytest.raises(Disagreement, match="colours"):
        classes_of(write("rgb.tif", colours, photometric="rgb"))


def test_a_refiner_of_other_classes_is_no_general_one(tmp_path: Path) -> None:
    config = RefinerConfig(kind="one_pass", channels=(16, 32), condition_channels=(16, 32), guidance_width=16, crop_px=32)
    table = ClassTable((LabelClass("land", (0,), (0, 0, 0)), LabelClass("water", (1,), (0, 0, 255))))
    Refiner.build(config, 3, table, STATS).save(tmp_path)
    with pytest.raises(Disagreement, match="one class against the rest"):
        Refiner.general(tmp_path)
