"""A refiner of one class against the rest, run on maps of any classes: each class by itself, joined by their sum.

For K classes, r_k is the refined probability of class k against all others; the result is r_k / sum of r over the
classes. Two classes need one pass: the second against the first.

Shape letters: S samples, B tiles, K classes, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from idgbr.config import SamplerConfig
from idgbr.general.scale import scaled
from idgbr.labels import ClassTable
from idgbr.rasters.tiling import Seed

ABSENT = 0.02  # a class that no pixel of a tile has with this probability is left as it is there
NAMES = ("rest", "class")  # of the classes of such a refiner
BY_DEFAULT = False  # whether the shipped one is taken where no model is named: not before it reaches its targets (docs/models.md)

Floats = NDArray[np.float32]


class TwoClasses(Protocol):
    """What computes tiles of a refiner of two classes; as `idgbr.scene.strips.TileRefiner`."""

    def condition(self, image: Floats, coarse: Floats, valid: NDArray[np.bool_]) -> Any:
        """Image [B,3,H,W], coarse probabilities [B,2,H,W], valid [B,H,W] -> what `draw` needs."""

    def draw(self, condition: Any, seeds: Sequence[Seed], sampler: SamplerConfig) -> Floats:
        """Probabilities [S,B,2,H,W]."""


@dataclass(frozen=True)
class Conditions:
    """Of a batch of tiles: coarse probabilities [B,K,H,W], and for every class run the tiles that hold it and their
    condition."""

    coarse: Floats
    runs: tuple[tuple[int, NDArray[np.intp], Any], ...]


class OneAgainstRest:
    """A two-class refiner behind the interface of one for K classes.

    Args:
        tiles: the refiner of one class against the rest.
        mean, std: of the bands over the scene [3]; see `scale.py`.
    """

    def __init__(self, tiles: TwoClasses, mean: Sequence[float] | NDArray[np.floating], std: Sequence[float] | NDArray[np.floating]):
        self.tiles, self.mean, self.std = tiles, tuple(map(float, mean)), tuple(map(float, std))

    def condition(self, image: Floats, coarse: Floats, valid: NDArray[np.bool_]) -> Conditions:
        """Raw image [B,3,H,W], coarse probabilities [B,K,H,W], valid [B,H,W] -> what `draw` needs."""
        image, n_classes = scaled(image, self.mean, self.std), coarse.shape[1]
        runs = []
        for k in (1,) if n_classes == 2 else range(n_classes):
            rows = np.flatnonzero(coarse[:, k].max(axis=(1, 2)) >= ABSENT)
            if len(rows):
                p = coarse[rows, k]
                runs.append((k, rows, self.tiles.condition(image[rows], np.stack([1 - p, p], axis=1), valid[rows])))
        return Conditions(coarse, tuple(runs))

    def draw(self, condition: Conditions, seeds: Sequence[Seed], sampler: SamplerConfig) -> Floats:
        """Probabilities [S,B,K,H,W] by one seed a tile; the draws of one sample are joined across classes."""
        coarse, found = condition.coarse, None
        for k, rows, of_class in condition.runs:
            refined = self.tiles.draw(of_class, [seeds[row] for row in rows], sampler)
            if found is None:
                found = np.repeat(coarse[None], len(refined), axis=0)
            found[:, rows, k] = refined[:, :, 1]
            if coarse.shape[1] == 2:
                found[:, rows, 0] = refined[:, :, 0]
        if found is None:
            return coarse[None].repeat(sampler.samples, axis=0)
        return np.asarray(found / np.maximum(found.sum(axis=2, keepdims=True), 1e-6), np.float32)


def is_one_class(table: ClassTable) -> bool:
    """Whether a refiner with these classes is one of one class against the rest."""
    return table.names == NAMES


def shipped() -> Path | None:
    """Folder of the general refiner that is installed with idgbr; None: this installation has none."""
    folder = Path(__file__).parent / "weights"
    return folder if (folder / "model.safetensors").is_file() else None
