"""Class edges, distances to them, and which pixels a refiner may change.

Shape letters: H, W pixels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.labels import IGNORE

_DISK_PX = 32


def widen(planes: NDArray[np.uint8], radius_px: float) -> NDArray[np.uint8]:
    """OR of every bit over the Euclidean disk d <= radius_px."""
    reach = math.floor(radius_px)
    widths = [math.isqrt(math.floor(radius_px * radius_px) - dy * dy) for dy in range(reach + 1)]
    out = np.zeros_like(planes)
    row = planes.copy()  # OR over the horizontal run of half width `done`
    done = 0
    for dy in range(reach, -1, -1):
        while done < widths[dy]:
            done += 1
            row[:, done:] |= planes[:, :-done]
            row[:, :-done] |= planes[:, done:]
        if dy:
            out[dy:] |= row[:-dy]
            out[:-dy] |= row[dy:]
        else:
            out |= row
    return out


def label_edges(target: NDArray[np.uint8], n_classes: int = IGNORE) -> NDArray[np.uint8]:
    """1 at both pixels of every 4-neighbour pair with different labels below `n_classes`; others (255: ignored) have
    no edges."""
    valid = target < n_classes
    out = np.zeros(target.shape, np.uint8)
    across = (target[:, :-1] != target[:, 1:]) & valid[:, :-1] & valid[:, 1:]
    down = (target[:-1] != target[1:]) & valid[:-1] & valid[1:]
    out[:, :-1] |= across.view(np.uint8)
    out[:, 1:] |= across.view(np.uint8)
    out[:-1] |= down.view(np.uint8)
    out[1:] |= down.view(np.uint8)
    return out


def distance_bands(edges: NDArray[np.uint8], edges_px: tuple[float, ...]) -> NDArray[np.uint8]:
    """Index of the band of distance to the target boundary: 0 is [.., edges_px[0]], then (edges_px[i-1],
    edges_px[i]], last is beyond.

    Distance in px = 1 + Euclidean distance to the nearest of `label_edges`, so the two pixels at a boundary have
    distance 1. Halo: the largest edge. Where the window has no boundary, all pixels are beyond.
    """
    out = np.full(edges.shape, len(edges_px), np.uint8)
    if not edges.any():
        return out
    if edges_px[-1] <= _DISK_PX:  # a few disks cost less than a distance transform
        for edge in edges_px:
            if edge >= 1:
                out -= widen(edges, edge - 1)
        return out
    distance = cv2.distanceTransform(1 - edges, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    squared = np.rint(np.square(distance, dtype=np.float64))  # squared distances between pixels are integers
    for edge in edges_px:
        if edge >= 1:
            out -= squared <= math.floor((edge - 1) ** 2)
    return out


def changeable(
    index: NDArray[np.uint8], confidence: NDArray[np.floating] | None, reach_px: float, keep_confidence: float
) -> NDArray[np.bool_]:
    """Which pixels of a coarse map a refiner may change [H,W].

    Those no farther than `reach_px` (Euclidean, centre to centre) from a pixel with a 4-neighbour of another class,
    and with a coarse probability of at most `keep_confidence`; 0 switches either limit off. In a map of one class
    nothing is within a reach.

    Args:
        index: coarse classes [H,W], 255 for none. confidence: probability of the coarse class [H,W]; None without
            `keep_confidence`.
    """
    may = np.ones(index.shape, bool)
    if reach_px:
        may &= distance_bands(label_edges(index), (reach_px + 1,)) == 0  # `distance_bands` gives the pixels at an edge the distance 1
    if keep_confidence:
        assert confidence is not None
        may &= confidence <= keep_confidence
    return may
