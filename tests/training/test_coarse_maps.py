"""Coarse maps: each raster by the right backbone, simulated ones with the wanted IoU, external ones as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from idgbr.coarse import backbone
from idgbr.coarse import stage as coarse
from idgbr.coarse.simulate import class_iou, corrupt
from idgbr.config import BackboneConfig, CoarseConfig
from idgbr.datasets import Dataset
from idgbr.errors import Disagreement, Missing
from idgbr.rasters.coarse_map import coarse_path, read_coarse
from idgbr.rasters.read import Grid, Reader, read_labels, write_class_map, write_probabilities

WINDOW = CoarseConfig(tile_px=64, overlap_px=16, folds=2)
TINY = BackboneConfig(encoder="test_resnet", decoder="fpn", crop_px=64, batch_images=2, train_images=2)


@pytest.fixture(scope="module")
def backbones(scenes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("backbones")
    for n, name in enumerate(("full", "fold0", "fold1")):
        backbone.fit(TINY, scenes, scenes.of("train"), seed=n, out=root / name)
    return {name: root / name for name in ("full", "fold0", "fold1")}


def predicted(folder: Path, dataset: Dataset, image: Path) -> np.ndarray:
    return np.concatenate([part for _, part in backbone.predict(backbone.load(folder), Reader(image, dataset.bands), 64, 16)], axis=1)


def test_training_rasters_are_mapped_by_the_fold_that_never_saw_them(scenes: Dataset, backbones: dict[str, Path], tmp_path: Path) -> None:
    reports: list[dict] = []
    coarse.write(WINDOW, scenes, backbones, seed=0, out=tmp_path, report=lambda **values: reports.append(values))
    folds = scenes.folds(2)
    for raster in scenes.rasters:
        name = "full" if raster.split == "val" else next(f"fold{n}" for n, ids in enumerate(folds) if raster.id in ids)
        found = read_coarse(tmp_path, raster.id)
        assert found.shape == (2, raster.height, raster.width)
        assert found.sum(0) == pytest.approx(1, abs=1e-5)
        assert found == pytest.approx(predicted(backbones[name], scenes, raster.image), abs=0.006)
        assert Grid.of(coarse_path(tmp_path, raster.id)) == Grid.of(raster.image)
        part = read_coarse(tmp_path, raster.id, (10, 20, 30, 40))
        assert (part == found[:, 10:40, 20:60]).all()
    assert reports[-1]["done"] == reports[-1]["total"] == len(scenes.rasters)


def test_in_fold_maps_are_all_by_the_full_backbone(scenes: Dataset, backbones: dict[str, Path], tmp_path: Path) -> None:
    coarse.write(dataclasses.replace(WINDOW, source="in_fold"), scenes, {"full": backbones["full"]}, seed=0, out=tmp_path)
    raster = scenes.of("train")[0]
    assert read_coarse(tmp_path, raster.id) == pytest.approx(predicted(backbones["full"], scenes, raster.image), abs=0.006)


def test_simulated_maps_have_the_wanted_iou_and_leave_held_out_scenes_to_the_backbone(
    scenes: Dataset, backbones: dict[str, Path], tmp_path: Path
) -> None:
    config = dataclasses.replace(WINDOW, source="simulated", iou=0.7)
    coarse.write(config, scenes, backbones, seed=4, out=tmp_path / "a")
    coarse.write(config, scenes, backbones, seed=4, out=tmp_path / "b")
    for raster in scenes.of("train"):
        assert raster.label is not None
        target = read_labels(raster.label, scenes.table)
        found = read_coarse(tmp_path / "a", raster.id)
        iou = class_iou(found.argmax(0).astype(np.uint8), target, 2)
        counts = np.bincount(target[target != 255], minlength=2)
        assert iou[counts.argmin()] == pytest.approx(0.7, abs=0.01)
        assert (found == read_coarse(tmp_path / "b", raster.id)).all()
    val = scenes.of("val")[0]
    assert read_coarse(tmp_path / "a", val.id) == pytest.approx(predicted(backbones["full"], scenes, val.image), abs=0.006)
    coarse.write(config, scenes, {}, seed=4, out=tmp_path / "alone")
    for raster in scenes.of("train"):
        assert (read_coarse(tmp_path / "alone", raster.id) == read_coarse(tmp_path / "a", raster.id)).all()
    assert len(list((tmp_path / "alone").rglob("*.tif"))) == len(scenes.of("train"))


def test_mixed_maps_lie_between_predicted_and_simulated(scenes: Dataset, backbones: dict[str, Path], tmp_path: Path) -> None:
    for source in ("out_of_fold", "simulated", "mixed"):
        coarse.write(dataclasses.replace(WINDOW, source=source), scenes, backbones, seed=4, out=tmp_path / source)
    near_one, near_other = 0, 0
    for raster in scenes.of("train"):
        one, other, mixed = (read_coarse(tmp_path / s, raster.id) for s in ("out_of_fold", "simulated", "mixed"))
        assert (mixed >= np.minimum(one, other) - 0.01).all()
        assert (mixed <= np.maximum(one, other) + 0.01).all()
        near_one += int((abs(mixed - one) < abs(mixed - other)).sum())
        near_other += int((abs(mixed - one) > abs(mixed - other)).sum())
    assert 0.2 < near_one / (near_one + near_other) < 0.8


def test_thirds_are_out_of_fold_in_fold_and_in_fold_corrupted_to_the_iou_of_validation_maps(
    scenes: Dataset, backbones: dict[str, Path], tmp_path: Path
) -> None:
    for source in ("out_of_fold", "in_fold", "thirds"):
        coarse.write(dataclasses.replace(WINDOW, source=source), scenes, backbones, seed=4, out=tmp_path / source)
    val, train = scenes.of("val"), scenes.of("train")
    for raster in val:
        assert (read_coarse(tmp_path / "thirds", raster.id) == read_coarse(tmp_path / "out_of_fold", raster.id)).all()
    target = np.concatenate([read_labels(r.label, scenes.table).ravel() for r in val])  # type: ignore[arg-type]
    index = np.concatenate([read_coarse(tmp_path / "thirds", r.id).argmax(0).ravel() for r in val])
    labelled = target != 255
    wanted = [((index == c) & (target == c)).sum() / (((index == c) & labelled) | (target == c)).sum() for c in range(2)]
    assert coarse.validation_iou(scenes, tmp_path / "thirds") == pytest.approx(np.clip(wanted, 0.05, 1))
    pixels, like = 0, np.zeros(2)
    for raster in train:
        out_of_fold, in_fold, thirds = (read_coarse(tmp_path / s, raster.id)[0] for s in ("out_of_fold", "in_fold", "thirds"))
        apart = abs(out_of_fold - in_fold) > 0.02
        like += [(abs(thirds - part)[apart] < 0.005).sum() for part in (out_of_fold, in_fold)]
        pixels += int(apart.sum())
    assert like / pixels == pytest.approx([1 / 3, 1 / 3], abs=0.25)  # few patches in small scenes


def test_errors_are_added_to_a_map_that_has_some_already() -> None:
    rng = np.random.default_rng(0)
    rows, cols = np.indices((192, 192))
    target = ((rows // 24 % 2) & (cols // 24 % 2)).astype(np.uint8)
    start = np.roll(target, 2, 1)
    before = class_iou(start, target, 2)[1]
    for iou in (before - 0.2, before + 0.1):  # worse than the map is, and better
        found = corrupt(target, 2, iou, ("jitter", "missed"), rng, start)
        assert class_iou(found, target, 2)[1] == pytest.approx(iou, abs=0.01)
        assert (found != start).mean() < (start != target).mean() + 0.2
    alone = np.zeros_like(target)
    assert (corrupt(alone, 2, 0.5, ("jitter",), rng, start) == start).all()


def test_external_class_maps_and_probabilities_arrive(scenes: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(WINDOW, source="external", root=str(tmp_path / "maps"))
    (tmp_path / "maps").mkdir()
    rng = np.random.default_rng(0)
    given: dict[str, np.ndarray] = {}
    for n, raster in enumerate(scenes.rasters):
        grid = Grid.of(raster.image)
        if n % 2:
            p = rng.random((2, raster.height, raster.width), np.float32)
            given[raster.id] = p / p.sum(0)
            write_probabilities(tmp_path / "maps" / f"{raster.id}.tif", given[raster.id], grid)
        else:
            index = rng.integers(0, 2, (raster.height, raster.width)).astype(np.uint8)
            codes = np.array([c.codes[0] for c in scenes.table.classes], np.uint8)[index]
            given[raster.id] = np.stack([index == 0, index == 1]).astype(np.float32)
            write_class_map(tmp_path / "maps" / f"{raster.image.stem}.tif", codes, grid)
    coarse.write(config, scenes, {}, seed=0, out=tmp_path / "out")
    for raster in scenes.rasters:
        assert read_coarse(tmp_path / "out", raster.id) == pytest.approx(given[raster.id], abs=0.006)


def test_external_maps_that_do_not_fit_are_refused_and_leave_no_half_file(scenes: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(WINDOW, source="external", root=str(tmp_path / "maps"))
    with pytest.raises(Missing, match="no folder of external"):
        coarse.write(config, scenes, {}, seed=0, out=tmp_path / "out")
    (tmp_path / "maps").mkdir()
    with pytest.raises(Missing, match="no external coarse map of"):
        coarse.write(config, scenes, {}, seed=0, out=tmp_path / "out")
    raster = scenes.rasters[0]
    path = tmp_path / "maps" / f"{raster.id}.tif"
    write_class_map(path, np.zeros((16, 16), np.uint8), Grid(16, 16))
    with pytest.raises(Disagreement, match="different grids"):
        coarse.write(config, scenes, {}, seed=0, out=tmp_path / "out")
    write_probabilities(path, np.zeros((7, raster.height, raster.width), np.float32), Grid.of(raster.image))
    with pytest.raises(Disagreement, match="7 data bands"):
        coarse.write(config, scenes, {}, seed=0, out=tmp_path / "out")
    write_class_map(path, np.full((raster.height, raster.width), 77, np.uint8), Grid.of(raster.image))
    with pytest.raises(Disagreement, match="77"):
        coarse.write(config, scenes, {}, seed=0, out=tmp_path / "out")
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_a_backbone_or_a_map_that_is_not_there_is_named(scenes: Dataset, backbones: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no backbone fold1"):
        coarse.write(WINDOW, scenes, {k: v for k, v in backbones.items() if k != "fold1"}, seed=0, out=tmp_path)
    no_val = dataclasses.replace(scenes, rasters=scenes.of("train"))
    with pytest.raises(Missing, match="no labelled validation raster"):
        coarse.write(dataclasses.replace(WINDOW, source="thirds"), no_val, backbones, seed=0, out=tmp_path)
    with pytest.raises(Missing, match="no coarse map of nowhere"):
        read_coarse(tmp_path, "nowhere")


def test_a_seed_changes_simulated_errors_only(four_classes: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    grid = Grid.of(four_classes.of("train")[0].image)
    config = dataclasses.replace(WINDOW, source="simulated")
    raster = four_classes.of("train")[0]
    one, two = (np.concatenate([p for _, p in coarse._simulated(config, four_classes, raster, grid, seed)], axis=1) for seed in (1, 2))
    assert one.shape == two.shape == (4, raster.height, raster.width)
    assert (one != two).any()
