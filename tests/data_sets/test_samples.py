"""Training samples: the i-th one depends on (seed, i) alone, and is an exact picture of the files."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature_layouts import drawn, picture, tiff

from idgbr import datasets
from idgbr.config import DataConfig
from idgbr.datasets import BandStats, Dataset, Raster
from idgbr.errors import BadRequest
from idgbr.labels import IGNORE, binary
from idgbr.rasters.edges import label_edges
from idgbr.rasters.read import Reader, read_labels
from idgbr.rasters.tiling import tile_seed
from idgbr.training.samples import TrainSamples, dihedral, radiometric, sample_seed


@pytest.fixture
def dataset(own_folder: Callable[..., DataConfig], tmp_path: Path) -> Dataset:
    config = own_folder(side=64)
    datasets.prepare(config, tmp_path / "prepared")
    return datasets.load(tmp_path / "prepared", config)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_sample_is_a_pure_function_of_seed_and_index(dataset: Dataset) -> None:
    samples = TrainSamples(dataset, dataset.of("train"), 24, seed=5, boundary_share=0.5)
    forward = [samples[i] for i in range(20)]
    fresh = TrainSamples(dataset, dataset.of("train"), 24, seed=5, boundary_share=0.5)
    assert all(same(forward[i], fresh[i]) for i in reversed(range(20)))
    assert not same(forward[0], TrainSamples(dataset, dataset.of("train"), 24, seed=6, boundary_share=0.5)[0])
    assert len({int(s["seed"]) for s in forward}) == 20


def test_a_spawned_worker_makes_the_same_samples(dataset: Dataset) -> None:
    samples = TrainSamples(dataset, dataset.of("train"), 24, seed=5)
    here = samples[7]
    assert pickle.loads(pickle.dumps(samples))._pixels == {}  # pixels are not sent along
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(_as_numpy, samples, 7).result()
    assert all((here[name].numpy() == there[name]).all() for name in here)


def _as_numpy(samples: TrainSamples, i: int) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in samples[i].items()}


@pytest.mark.parametrize("crop_px", [24, 70])
def test_reading_windows_gives_the_same_as_keeping_rasters_in_memory(dataset: Dataset, crop_px: int) -> None:
    kept, windowed = (TrainSamples(dataset, dataset.of("train"), crop_px, seed=1, boundary_share=0.4) for _ in range(2))
    assert kept.cached
    windowed.cached = False
    assert all(same(kept[i], windowed[i]) for i in range(12))


def test_without_augmentation_a_sample_is_a_window_of_the_files(dataset: Dataset) -> None:
    rasters = dataset.of("train")
    samples = TrainSamples(dataset, rasters, 24, seed=3, augment=False)
    whole = [(Reader(r.image).read(0, 0, r.height, r.width)[0], read_labels(r.label, dataset.table)) for r in rasters]
    for i in range(6):
        sample = samples[i]
        image, target = sample["image"].numpy(), sample["target"].numpy()
        assert (image.dtype, target.dtype, sample["valid"].dtype) == (np.float32, np.uint8, torch.bool)
        places = [
            (r, row, col)
            for r, (full, _) in enumerate(whole)
            for row, col in zip(*np.nonzero(full[0, : full.shape[1] - 23, : full.shape[2] - 23] == image[0, 0, 0]))
            if (full[:, row : row + 24, col : col + 24] == image).all()
        ]
        assert len(places) == 1
        r, row, col = places[0]
        np.testing.assert_array_equal(whole[r][1][row : row + 24, col : col + 24], target)


def test_a_symmetry_moves_all_maps_alike(tmp_path: Path) -> None:
    """Image, target and coarse map made from one another stay so: band 1 is 10 + 100 x class, the coarse map a one-hot of it."""
    index = np.kron(np.random.default_rng(0).integers(0, 2, (8, 8)), np.ones((8, 8))).astype(np.uint8)
    tiff(tmp_path / "image.tif", (10 + 100 * index)[..., None].astype(np.uint8))
    picture(tmp_path / "label.png", index)
    raster = Raster("a", "a", "train", tmp_path / "image.tif", tmp_path / "label.png", None, 64, 64, None)
    dataset = Dataset((raster,), binary("x"), BandStats((50.0,), (40.0,), (0.0,), (1.0,)), (1,))
    (tmp_path / "coarse").mkdir()
    tiff(tmp_path / "coarse" / "a.tif", np.stack([255 * (1 - index), 255 * index], -1).astype(np.uint8))
    samples = TrainSamples(dataset, (raster,), 32, seed=0, coarse_dir=tmp_path / "coarse")
    for i in range(16):
        sample = samples[i]
        target = sample["target"].numpy()
        np.testing.assert_array_equal(sample["coarse"].argmax(0).numpy(), target)
        assert np.corrcoef(sample["image"][0].numpy().ravel(), target.ravel())[0, 1] > 0.97  # light changes and noise, no move


def test_the_eight_symmetries_are_different_and_exact() -> None:
    array = np.arange(12).reshape(1, 3, 4) % 5 + np.arange(12).reshape(1, 3, 4)
    square = np.arange(9).reshape(3, 3)
    assert len({dihedral(square, s).tobytes() for s in range(8)}) == 8
    assert all(sorted(dihedral(array, s).ravel()) == sorted(array.ravel()) for s in range(8))


def test_rasters_smaller_than_the_crop_are_padded_as_invalid(dataset: Dataset) -> None:
    sample = TrainSamples(dataset, dataset.of("train")[:1], 100, seed=0, augment=False)[0]
    assert sample["image"].shape == (3, 100, 100)
    inside = np.zeros((100, 100), bool)
    inside[:64, :64] = True
    np.testing.assert_array_equal(sample["valid"].numpy(), inside)
    assert (sample["target"].numpy()[~inside] == IGNORE).all()


def test_nodata_is_invalid_and_ignored(tmp_path: Path) -> None:
    image, mask = drawn("holes", 2, height=64, width=64)
    image = np.maximum(image, 1)
    image[20:40, 10:30] = 0
    tiff(tmp_path / "a.tif", image, nodata=0)
    picture(tmp_path / "a.png", mask)
    raster = Raster("a", "a", "train", tmp_path / "a.tif", tmp_path / "a.png", None, 64, 64, None)
    dataset = Dataset((raster,), binary("x"), BandStats((1.0,) * 3, (1.0,) * 3, (0.0,) * 3, (9.0,) * 3), (1, 2, 3))
    sample = TrainSamples(dataset, (raster,), 64, seed=0, augment=False)[0]
    hole = (image == 0).all(-1)
    np.testing.assert_array_equal(~sample["valid"].numpy(), hole)
    np.testing.assert_array_equal(sample["target"].numpy(), np.where(hole, IGNORE, mask))


def test_rasters_are_drawn_by_area_and_crops_by_boundary(tmp_path: Path) -> None:
    """Two rasters of 1 : 3 area; the larger has one boundary, along column 128."""
    large = np.zeros((64, 192), np.uint8)
    large[:, 128:] = 1
    for name, mask in (("small", np.zeros((64, 64), np.uint8)), ("large", large)):
        tiff(tmp_path / f"{name}.tif", np.full((*mask.shape, 1), 7 if name == "small" else 9, np.uint8))
        picture(tmp_path / f"{name}.png", mask)
    rasters = tuple(
        Raster(n, n, "train", tmp_path / f"{n}.tif", tmp_path / f"{n}.png", None, 64, w, None) for n, w in (("small", 64), ("large", 192))
    )
    dataset = Dataset(rasters, binary("x"), BandStats((8.0,), (1.0,), (0.0,), (9.0,)), (1,))
    uniform = TrainSamples(dataset, rasters, 20, seed=0, augment=False)
    from_large = np.mean([bool((uniform[i]["image"] == 9).all()) for i in range(400)])
    assert abs(from_large - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 400)
    share = np.mean([len(uniform[i]["target"].unique()) == 2 for i in range(400)])
    at_boundary = TrainSamples(dataset, rasters, 20, seed=0, boundary_share=1.0, augment=False)
    assert all(len(at_boundary[i]["target"].unique()) == 2 for i in range(100))
    half = TrainSamples(dataset, rasters, 20, seed=0, boundary_share=0.5, augment=False)
    mixed = np.mean([len(half[i]["target"].unique()) == 2 for i in range(400)])
    assert abs(mixed - (0.5 + 0.5 * share)) < 4 * np.sqrt(0.25 / 400)


def test_label_edges_are_the_pixels_beside_another_class() -> None:
    index = np.array([[0, 0, 1], [0, 255, 1], [0, 0, 0]], np.uint8)
    expected = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 1]], bool)
    np.testing.assert_array_equal(label_edges(index) > 0, expected)


def test_light_changes_are_of_the_stated_size_whatever_the_bit_depth() -> None:
    rng = np.random.default_rng(0)
    eight = rng.normal(120, 30, (3, 64, 64)).astype(np.float32)
    stats = BandStats((120.0,) * 3, (30.0,) * 3, (60.0,) * 3, (190.0,) * 3)
    sixteen = BandStats(*(tuple(v * 100 for v in part) for part in (stats.mean, stats.std, stats.low, stats.high)))
    shifts = []
    for i in range(60):
        light = radiometric(eight, stats, np.random.default_rng(i))
        deep = radiometric(eight * 100, sixteen, np.random.default_rng(i))
        np.testing.assert_allclose(deep / 100, light, atol=0.01)
        shifts.append((light.mean() - eight.mean()) / 30)
        order = np.argsort(eight[0].ravel())[:: 64 * 8]
        assert (np.diff(light[0].ravel()[order]) > -0.4 * 30).all()  # darker stays darker, up to noise
    assert 0.1 < np.std(shifts) < 0.3
    assert np.abs(shifts).max() < 0.8


def test_rasters_without_labels_cannot_be_trained_on(dataset: Dataset) -> None:
    bare = Raster("bare", "s", "test", Path("a"), None, None, 9, 9, None)
    with pytest.raises(BadRequest, match=r"without labels.*bare"):
        TrainSamples(dataset, (bare,), 8, seed=0)
    with pytest.raises(BadRequest, match="no rasters"):
        TrainSamples(dataset, (), 8, seed=0)


def test_seeds_of_samples_and_tiles_never_change() -> None:
    """They are part of every result: a change of one number here is a change of the stage's version."""
    assert sample_seed(0, 0) == int(np.random.SeedSequence([0, 0]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    assert tile_seed(3, "a", 128, 256) == 1357068941440475833
    seeds = {tile_seed(s, r, row, col) for s in (0, 1) for r in ("a", "b") for row in (0, 96) for col in (0, 96)}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
