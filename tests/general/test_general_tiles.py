"""Training tiles of the general refiner: an ordinary data set of one class against the rest, at many ground sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from idgbr import datasets
from idgbr.coarse.simulate import class_iou, fresh, roughly
from idgbr.config import CoarseConfig, DataConfig
from idgbr.errors import BadRequest
from idgbr.general.scale import scaled
from idgbr.general.tiles import SHARES, TileSet, one_class, write_tiles
from idgbr.rasters.coarse_map import read_coarse
from idgbr.rasters.read import read_labels
from idgbr.training.samples import TrainSamples

MODES = CoarseConfig().modes


@pytest.fixture(scope="session")
def tiles(scenes: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("tiles")
    write_tiles([TileSet("roofs", scenes, "train", 6, (0.7, 1.6)), TileSet("roofs", scenes, "val", 2, into="val")], out, tile_px=128)
    return out


def test_tiles_are_an_ordinary_data_set_of_two_classes(tiles: Path, tmp_path: Path) -> None:
    config = DataConfig(source="folder", root=str(tiles))
    datasets.prepare(config, tmp_path / "index")
    dataset = datasets.load(tmp_path / "index", config)
    assert dataset.table.names == ("rest", "class")
    assert (len(dataset.of("train")), len(dataset.of("val"))) == (6, 2)
    assert np.abs(np.array(dataset.stats.mean) - 127.5).max() < 40  # each scene has one scale, its windows differ
    for raster in dataset.rasters:
        label = read_labels(raster.label, dataset.table)
        share = (label == 1).mean()
        assert SHARES[0] * 0.6 < share < 1 - SHARES[0] * 0.6
        coarse = read_coarse(tiles / "coarse", raster.id)
        assert coarse.shape == (2, raster.height, raster.width)
        iou = class_iou(coarse.argmax(0).astype(np.uint8), label, 2)
        assert (iou[iou == iou] > 0.1).all()


def test_the_same_request_gives_the_same_files(scenes: datasets.Dataset, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiles([TileSet("roofs", scenes, "train", 2)], tmp_path / name, tile_px=128, seed=3)
    for file in sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*") if p.suffix != ".tif"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    for file in (tmp_path / "a" / "coarse").iterdir():
        assert (read_coarse(file.parent, file.stem) == read_coarse(tmp_path / "b" / "coarse", file.stem)).all()


def test_a_users_coarse_maps_come_along(scenes: datasets.Dataset, tmp_path: Path) -> None:
    from idgbr.coarse.stage import write

    labels = tmp_path / "labels"
    labels.mkdir()
    for raster in scenes.of("train"):
        cv2.imwrite(str(labels / f"{raster.id}.png"), read_labels(raster.label, scenes.table))
    write(CoarseConfig(source="external", root=str(labels)), datasets.Dataset(scenes.of("train"), scenes.table, scenes.stats, scenes.bands),
          {}, seed=0, out=tmp_path / "coarse")  # fmt: skip
    write_tiles([TileSet("own", scenes, "train", 3, (1, 1), coarse_dir=tmp_path / "coarse")], tmp_path / "out", tile_px=128, turned=0)
    for file in (tmp_path / "out" / "masks").iterdir():
        mask = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        coarse = read_coarse(tmp_path / "out" / "coarse", file.stem).argmax(0)
        assert (coarse == mask)[mask != 255].all()  # coarse maps that are the truth stay the truth


def test_rasters_that_are_too_small_are_refused(scenes: datasets.Dataset, tmp_path: Path) -> None:
    low = tuple(dataclasses.replace(r, height=64) for r in scenes.of("val"))
    with pytest.raises(BadRequest, match="no raster of roofs"):
        write_tiles([TileSet("roofs", datasets.Dataset(low, scenes.table, scenes.stats, scenes.bands), "val", 1)], tmp_path / "out")


def test_one_class_is_the_majority_of_what_becomes_a_pixel() -> None:
    labels = np.repeat(np.repeat(np.array([[0, 1], [2, 255]], np.uint8), 4, 0), 4, 1)
    labels[:4, :4][0] = 1
    assert (one_class(labels, 1, 2) == [[0, 1], [0, 255]]).all()
    assert (one_class(labels, 1, 8) == np.where(labels == 255, 255, labels == 1)).all()


def test_scaled_bands_have_one_mean_and_spread_whatever_the_sensor() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal([[[900.0]], [[0.2]], [[7.0]]], [[[100.0]], [[0.01]], [[0.0]]], (3, 64, 64)).astype(np.float32)
    found = scaled(image, image.mean((1, 2)), image.std((1, 2)))
    assert found[:2].mean((1, 2)) == pytest.approx([127.5] * 2, abs=0.5)
    assert found[:2].std((1, 2)) == pytest.approx([42.5] * 2, abs=0.7)
    assert (found[2] == 127.5).all()


def square(side: int = 96) -> np.ndarray:
    target = np.zeros((side, side), np.uint8)
    target[20:60, 16:70] = 1
    target[70:80, 10:30] = 1
    target[:6] = 255
    return target


@pytest.mark.parametrize("wanted", [0.5, 0.7, 0.9])
def test_rough_maps_are_near_the_wanted_iou(wanted: float) -> None:
    got = [class_iou(roughly(square(), 2, wanted, MODES, np.random.default_rng(s)), square(), 2)[1] for s in range(24)]
    assert np.median(np.abs(np.array(got) - wanted)) < 0.08


def test_fresh_maps_differ_from_call_to_call_and_keep_their_class() -> None:
    rng = np.random.default_rng(1)
    maps = [fresh(square(), 2, (0.5, 0.95), rng) for _ in range(12)]
    assert all(m.shape == (2, 96, 96) and np.allclose(m.sum(0), 1, atol=1e-5) for m in maps)
    assert any(set(np.unique(m)) == {0.0, 1.0} for m in maps)
    assert len({m.argmax(0).tobytes() for m in maps}) == 12


def test_samples_with_fresh_coarse_maps_are_a_pure_function_of_seed_and_index(tiles: Path, tmp_path: Path) -> None:
    config = DataConfig(source="folder", root=str(tiles))
    datasets.prepare(config, tmp_path / "index")
    dataset = datasets.load(tmp_path / "index", config)
    made = [
        TrainSamples(dataset, dataset.of("train"), 64, 2, coarse_dir=tiles / "coarse", boundary_share=1.0, fresh_coarse=share)
        for share in (1.0, 1.0, 0.0)
    ]
    for i in range(4):
        a, b, stored = (m[i] for m in made)
        assert all((a[name] == b[name]).all() for name in a)
        assert not (a["coarse"] == stored["coarse"]).all()


def test_a_range_of_ious_gives_every_raster_its_own(scenes: datasets.Dataset, tmp_path: Path) -> None:
    from idgbr.coarse.stage import write

    train = datasets.Dataset(scenes.of("train"), scenes.table, scenes.stats, scenes.bands)
    write(CoarseConfig(source="simulated", iou=0.5, iou_high=0.95), train, {}, seed=1, out=tmp_path)
    means = []
    for raster in train.rasters:
        index = read_coarse(tmp_path, raster.id).argmax(0).astype(np.uint8)
        iou = class_iou(index, read_labels(raster.label, train.table), 4)
        means.append(np.median(iou[iou == iou]))
    assert all(0.45 < m < 0.97 for m in means)
    assert abs(means[0] - means[1]) > 0.02
