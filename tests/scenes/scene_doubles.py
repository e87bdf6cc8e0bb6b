"""A refiner without a network whose answers are known, a small one with random weights, and class maps with curved borders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from idgbr.commands import refine as command
from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.labels import ClassTable, LabelClass
from idgbr.scene.geotiff import SceneRequest


def refine(scene: Path, coarse: Path, out: Path, *, classes: Path | None = None, **given: Any) -> None:
    """`idgbr refine` with its flags as keywords."""
    parts = []
    for kind in (command.ModelChoice, command.SamplerChanges):
        parts.append(kind(**{name: given.pop(name) for name in kind.__dataclass_fields__ if name in given}))
    command.refine(SceneRequest(scene, coarse, out, **given), *parts, classes=classes)


def blobs(rng: np.random.Generator, height: int, width: int, n_classes: int = 3, size: int = 24) -> np.ndarray:
    """A class map of patches with curved borders."""
    noise = rng.standard_normal((n_classes, height, width)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(layer, (0, 0), size / 4) for layer in noise])
    return smooth.argmax(axis=0).astype(np.uint8)


class KnowingRefiner:
    """Reads the class from the image's first band (value = 10 x class), so that it mends any coarse map; with noise from its seeds.

    It looks at every pixel alone, so tiles agree where they overlap, except for the noise.
    """

    def __init__(self, n_classes: int, noise: float = 0.0):
        self.n_classes, self.noise, self.batches = n_classes, noise, []

    def condition(self, image: np.ndarray, coarse: np.ndarray, valid: np.ndarray) -> Any:
        assert image.shape[0] == coarse.shape[0] == valid.shape[0]
        assert image.shape[2:] == coarse.shape[2:] == valid.shape[1:]
        self.batches.append(len(image))
        return image, coarse

    def draw(self, condition: Any, seeds: Sequence[int], sampler: SamplerConfig) -> np.ndarray:
        image, _ = condition
        truth = np.rint(image[:, 0] / 10).astype(int).clip(0, self.n_classes - 1)
        sharp = np.eye(self.n_classes, dtype=np.float32)[truth].transpose(0, 3, 1, 2) * 0.8 + 0.2 / self.n_classes
        out = np.empty((sampler.samples, *sharp.shape), np.float32)
        for b, seed in enumerate(seeds):
            rng = np.random.default_rng(seed)
            for s in range(sampler.samples):
                out[s, b] = sharp[b] + self.noise * rng.random(sharp.shape[1:], dtype=np.float32)
        return out / out.sum(axis=2, keepdims=True)


def small_refiner(folder: Path) -> Path:
    """A refiner of land and building with random weights, so large that it changes maps."""
    import torch

    from idgbr.datasets import BandStats
    from idgbr.refiner.refiner import Refiner

    torch.manual_seed(0)
    table = ClassTable((LabelClass("land", (0,), (40, 40, 40)), LabelClass("building", (1, 255), (255, 80, 40))))
    config = RefinerConfig(channels=(16, 24), condition_channels=(16, 24), guidance_width=16, guidance_heads=2, crop_px=32)
    refiner = Refiner.build(config, 3, table, BandStats((100.0,) * 3, (50.0,) * 3, (0.0,) * 3, (255.0,) * 3))
    with torch.no_grad():
        for p in refiner.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    refiner.save(folder)
    return folder
