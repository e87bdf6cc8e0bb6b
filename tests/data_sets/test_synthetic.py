"""Synthetic scenes: the same for ever, true to their images, and not trivial."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import rasterio

from idgbr import datasets
from idgbr.config import DataConfig
from idgbr.datasets import synthetic


def test_scenes_are_the_same_in_every_run_and_different_from_each_other() -> None:
    image, label = synthetic.scene(0, 3, 128)
    again, label_again = synthetic.scene(0, 3, 128)
    assert (image == again).all()
    assert (label == label_again).all()
    assert (image != synthetic.scene(1, 3, 128)[0]).mean() > 0.5
    assert (image != synthetic.scene(0, 4, 128)[0]).mean() > 0.5


def test_every_class_is_there_in_fair_shares() -> None:
    labels = np.stack([synthetic.scene(0, n, 256)[1] for n in range(12)])
    shares = np.bincount(labels.ravel(), minlength=4) / labels.size
    assert len(shares) == 4
    assert 0.08 < shares[1] < 0.35  # building
    assert (shares > 0.05).all()
    assert (labels == 1).any((1, 2)).all()  # a scene without a building has nothing to refine


def test_the_label_lies_where_the_image_changes() -> None:
    """The image's gradient along the roofs' outlines is greatest where the label says, and falls off to both sides."""
    profile = np.zeros(7)
    for n in range(10):
        image, label = synthetic.scene(0, n, 256)
        grey = image.mean(0).astype(np.float32)
        gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        roof = (label == 1).astype(np.uint8)
        inside = cv2.distanceTransform(roof, cv2.DIST_L2, 5)
        outside = cv2.distanceTransform(1 - roof, cv2.DIST_L2, 5)
        signed = np.where(roof > 0, inside - 0.5, 0.5 - outside)
        for i, at in enumerate(range(-3, 4)):
            profile[i] += gradient[np.abs(signed - at) <= 0.5].mean()
    assert profile.argmax() == 3
    assert profile[3] > 1.5 * max(profile[0], profile[6])


def test_colour_alone_does_not_tell_roofs() -> None:
    """The best threshold classifier on colour, trained on other scenes, must fail often: roofs share colours with soil, yards and roads."""
    train = [synthetic.scene(0, n, 256) for n in range(6)]
    test = [synthetic.scene(0, n, 256) for n in range(6, 9)]

    def bins(image: np.ndarray) -> np.ndarray:
        return (image >> 4).astype(np.int64).transpose(1, 2, 0) @ np.array([256, 16, 1])

    counts = np.zeros((2, 4096))
    for image, label in train:
        for k in (0, 1):
            counts[k] += np.bincount(bins(image)[(label == 1) == k], minlength=4096)
    roof = counts[1] > counts[0]
    hits = [(roof[bins(image)], label == 1) for image, label in test]
    iou = sum((a & b).sum() for a, b in hits) / sum((a | b).sum() for a, b in hits)
    assert iou < 0.6


def test_scenes_are_georeferenced_and_apart(tmp_path: Path) -> None:
    config = DataConfig(train_scenes=2, val_scenes=1, test_scenes=1, scene_px=96, n_classes=4)
    datasets.prepare(config, tmp_path)
    dataset = datasets.load(tmp_path, config)
    assert [len(dataset.of(split)) for split in ("train", "val", "test")] == [2, 1, 1]
    assert dataset.table.names == ("background", "building", "road", "field")
    boxes = []
    for raster in dataset.rasters:
        with rasterio.open(raster.image) as image, rasterio.open(raster.label) as label:
            assert image.crs == label.crs == rasterio.CRS.from_epsg(32633)
            assert image.transform == label.transform
            assert image.res == (0.3, 0.3)
            boxes.append((image.bounds.left, image.bounds.right))
    assert all(a[1] < b[0] for a, b in pairwise(boxes))
    moved = tmp_path.rename(tmp_path.with_name("moved"))  # an artefact fetched from a store elsewhere
    assert all(r.image.is_file() for r in datasets.load(moved, config).rasters)


def test_two_classes_are_building_or_not(tmp_path: Path) -> None:
    config = DataConfig(train_scenes=1, val_scenes=0, test_scenes=0, scene_px=96)
    datasets.prepare(config, tmp_path)
    with rasterio.open(tmp_path / "train_0000_label.tif") as file:
        np.testing.assert_array_equal(file.read(1), synthetic.scene(0, 0, 96)[1] == 1)
