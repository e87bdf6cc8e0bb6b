"""Surface distances of one image: HD95 and ASSD (MedPy's definitions), and HD95 as the larger of the directed
percentiles (MONAI's).

Border of a mask = mask & ~eroded(mask, cross); the frame counts as border. Both directed lists of nearest distances
are taken: `hd95` is the 95th percentile (linear) of both lists together, `hd95_directed` the larger of the two
percentiles, `assd` the mean of both lists together. They differ (by up to 161 px on the reference masks), so each is
named. Undefined (null) if either mask is empty; never 0.

Not local: borders at the frame of a tile are not borders of the scene. Values belong to the tile taken by itself.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.interfaces import Json
from idgbr.labels import IGNORE
from idgbr.scores.nearest import places, squared_distances
from idgbr.scores.region import Map

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def borders(labels: Map) -> Map:
    """Labels at pixels with a 4-neighbour of another label or at the frame, 255 elsewhere."""
    padded = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(IGNORE,))
    low, high = cv2.erode(padded, _CROSS)[1:-1, 1:-1], cv2.dilate(padded, _CROSS)[1:-1, 1:-1]
    return np.where((low != labels) | (high != labels), labels, np.uint8(IGNORE))


def directed(pred: Map, target: Map, n_classes: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]] | None]:
    """Per class: distances in px from the border of pred to that of target, and back; None where either is empty."""
    maps = borders(pred), borders(target)
    lists = []
    for a, b in (maps, maps[::-1]):
        rows, cols = places(a < n_classes)
        classes = a[rows, cols].astype(np.int64)
        distance = np.sqrt(squared_distances(b, n_classes, rows, cols, classes))
        order = np.argsort(classes, kind="stable")
        lists.append(np.split(distance[order], np.cumsum(np.bincount(classes, minlength=n_classes))[:-1]))
    return [(a, b) if len(a) and len(b) else None for a, b in zip(*lists)]


def fill(rows: list[Json], pred: Map, target: Map, n_classes: int) -> None:
    """Columns hd95, hd95_directed, hausdorff, assd_sum and assd_pixels (their ratio is the ASSD) of the rows of the
    classes."""
    for row, lists in zip(rows, directed(pred, target, n_classes)):
        if lists is not None:
            row.update(describe(*lists))


def describe(there: NDArray[np.float64], back: NDArray[np.float64]) -> dict[str, float | int]:
    """The columns of one class from its two lists of nearest distances in px."""
    both = np.concatenate([there, back])
    return {
        "hd95": float(np.percentile(both, 95)),
        "hd95_directed": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "hausdorff": float(both.max()),
        "assd_sum": float(both.sum()),
        "assd_pixels": len(both),
    }
