"""Folds: every training raster in exactly one, scenes kept together where there are enough, ground blocks where not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idgbr.datasets import BandStats, Dataset, Raster
from idgbr.datasets.index import block, grouped_folds
from idgbr.errors import BadRequest
from idgbr.labels import binary

STATS = BandStats((0.0,), (1.0,), (0.0,), (1.0,))


def raster(i: int, scene: str, split: str = "train", side: int = 100, x: float = 0.0, y: float = 0.0) -> Raster:
    return Raster(f"r{i}", scene, split, Path("i.tif"), Path("l.tif"), None, side, side, 0.5, x, y)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 400), st.integers(0, 900)), min_size=5, max_size=40), st.integers(2, 5))
def test_folds_are_a_partition_that_keeps_scenes_or_blocks_together(parts: list[tuple[int, int, int]], k: int) -> None:
    rasters = tuple(raster(i, f"s{s}", side=side, x=float(x)) for i, (s, side, x) in enumerate(parts))
    dataset = Dataset((*rasters, raster(999, "other", "val")), binary("a"), STATS, (1,))
    folds = dataset.folds(k)
    assert sorted(name for fold in folds for name in fold) == sorted(r.id for r in rasters)
    assert len(folds) == k
    assert all(folds)
    assert folds == dataset.folds(k)
    unit = {"scene": lambda r: r.scene, "block": lambda r: (r.scene, block(r, 150.0)), "raster": lambda r: r.id}[
        grouped_folds(dataset.of("train"), k, dataset.block_m)[0]
    ]
    home = {name: i for i, fold in enumerate(folds) for name in fold}
    together: dict[object, set[int]] = {}
    for r in rasters:
        together.setdefault(unit(r), set()).add(home[r.id])
    assert all(len(where) == 1 for where in together.values())


def test_scenes_are_kept_whole_where_they_are_alike_in_size() -> None:
    rasters = tuple(raster(i, f"s{i % 6}") for i in range(12))
    dataset = Dataset(rasters, binary("a"), STATS, (1,))
    assert grouped_folds(dataset.of("train"), 3, dataset.block_m)[0] == "scene"
    assert [len(fold) for fold in dataset.folds(3)] == [4, 4, 4]


def test_one_scene_that_outweighs_the_others_is_cut_into_blocks() -> None:
    """By scene, one of the three networks would be trained on a tenth of the area and judge the rest."""
    rasters = tuple(raster(i, "large" if i < 18 else f"small{i}", x=60.0 * i) for i in range(20))
    dataset = Dataset(rasters, binary("a"), STATS, (1,))
    assert grouped_folds(dataset.of("train"), 3, dataset.block_m)[0] == "block"
    assert max(len(fold) for fold in dataset.folds(3)) <= 8


def test_fewer_rasters_than_folds_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"coarse.folds=3, 1 training rasters"):
        Dataset((raster(0, "s"),), binary("a"), STATS, (1,)).folds(3)
