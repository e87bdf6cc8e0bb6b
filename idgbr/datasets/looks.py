"""Near-duplicates: images that show the same although their bytes differ (re-encoded, brightened, flipped or turned
copies).

Every raster is reduced to a grey picture of 32 x 32 px while it is read. Two rasters look alike where these pictures
correlate in one of the eight symmetries. Crops that overlap in part are not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 32
ALIKE = 0.97  # correlation of two pictures, of their largest detail (16 px) and of their finer detail
AT_ONCE = 1000  # rasters whose correlations with all others are held in memory
FILE = "looks.npz"


class Looker:
    """Grey picture [SIDE, SIDE] of a raster, gathered strip by strip (whole rows)."""

    def __init__(self, height: int):
        self.height = height
        self.total = np.zeros((SIDE, SIDE))
        self.count = np.zeros(SIDE)

    def add(self, row: int, image: NDArray[np.float32]) -> None:
        """image [C,h,W]: the rows from `row` on."""
        grey = image.mean(0)
        narrow = cv2.resize(grey, (SIDE, len(grey)), interpolation=cv2.INTER_AREA)
        at = np.arange(row, row + len(grey)) * SIDE // self.height
        np.add.at(self.total, at, narrow)
        np.add.at(self.count, at, 1)

    def result(self) -> NDArray[np.float32]:
        """The picture float32 [SIDE, SIDE]: means over its cells, of what was seen."""
        there = self.count > 0
        picture = self.total[there] / self.count[there, None]
        return np.asarray(cv2.resize(picture.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), np.float32)


def save(folder: Path, ids: Sequence[str], pictures: Sequence[NDArray[np.float32]]) -> None:
    """Write the pictures float32 [SIDE, SIDE] of the rasters `ids` into the prepared folder."""
    np.savez_compressed(folder / FILE, ids=np.array(ids, str), pictures=np.asarray(pictures, np.float32).reshape(-1, SIDE, SIDE))


def load(folder: Path) -> dict[str, NDArray[np.float32]] | None:
    """Pictures by id; None where the folder was prepared before there were any."""
    if not (folder / FILE).is_file():
        return None
    with np.load(folder / FILE) as file:
        return dict(zip(file["ids"].tolist(), file["pictures"].astype(np.float32)))


def alike(first: dict[str, NDArray[np.float32]], second: dict[str, NDArray[np.float32]]) -> list[tuple[str, str, float]]:
    """(id of `first`, id of `second`, correlation) of all pairs that look alike, the most alike first."""
    if not first or not second:
        return []
    names, others = list(first), list(second)
    a = [_detail(np.stack([first[n] for n in names]), sigma) for sigma in (0.0, 1.5)]
    found: dict[tuple[int, int], float] = {}
    for symmetry in range(8):
        turned = np.rot90(np.stack([second[n] for n in others]), symmetry % 4, axes=(1, 2))
        b = [_detail(turned[:, :, ::-1] if symmetry > 3 else turned, sigma) for sigma in (0.0, 1.5)]
        for start in range(0, len(names), AT_ONCE):
            both = np.minimum(*(x[start : start + AT_ONCE] @ y.T for x, y in zip(a, b)))
            for i, j in zip(*np.nonzero(both >= ALIKE)):
                pair = int(i) + start, int(j)
                found[pair] = max(found.get(pair, 0.0), float(both[i, j]))
    return sorted(((names[i], others[j], c) for (i, j), c in found.items()), key=lambda pair: (-pair[2], *pair[:2]))


def _detail(pictures: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """[n, SIDE * SIDE] of mean 0 and length 1; `sigma` > 0: without what is smooth at that many px; a flat picture is
    all 0."""
    rows = np.stack([p - cv2.GaussianBlur(np.ascontiguousarray(p), (0, 0), sigma) if sigma else p for p in pictures])
    flat = rows.reshape(len(rows), -1) - rows.reshape(len(rows), -1).mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(np.where(length > 1e-3, flat / np.maximum(length, 1e-12), 0), np.float32)
