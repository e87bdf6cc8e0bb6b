"""Boundary scores as local counts: boundary IoU, boundary F, trimap, mBA, distance to the boundary.

All take label maps uint8 [H,W] in which values >= K are no class (ignored pixels, in both maps: the "zero_both"
convention), look at a window that may be larger than the tile (halo), and count inside `inner` = (row0, row1, col0,
col1). With the halo named at each function, counts of tiles add up to the counts of the scene.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.labels import IGNORE
from idgbr.rasters.edges import widen
from idgbr.scores.region import Counts, Map, joint

Inner = tuple[int, int, int, int]


def crop(array: NDArray, inner: Inner) -> NDArray:
    """The inner part [top, bottom) x [left, right) of an array [H,W,...]."""
    return array[inner[0] : inner[1], inner[2] : inner[3]]


# ---- boundary IoU (Cheng et al., CVPR 2021) -------------------------------------------------------------------------------


def inner_boundary(labels: Map, width_px: int, *, frame: bool) -> Map:
    """Labels where a pixel lies within `width_px` (chessboard) of another label, 255 elsewhere: the inner side of
    every class's boundary.

    Args:
        frame: whether the frame of the array counts as boundary (boundary-iou-api pads one pixel of background).
    """
    size = 2 * width_px + 1
    kernel = np.ones((size, size), np.uint8)
    if frame:  # a frame of a value no class has
        padded = cv2.copyMakeBorder(labels, width_px, width_px, width_px, width_px, cv2.BORDER_CONSTANT, value=(IGNORE,))
        low, high = cv2.erode(padded, kernel), cv2.dilate(padded, kernel)
        low, high = (a[width_px:-width_px, width_px:-width_px] for a in (low, high))
    else:
        low, high = cv2.erode(labels, kernel), cv2.dilate(labels, kernel)
    return np.where(low != high, labels, np.uint8(IGNORE))


def boundary_iou(pred: Map, target: Map, n_classes: int, width_px: int, inner: Inner) -> tuple[Counts, Counts]:
    """(intersection, union) of the inner boundaries of each class, [K]. Halo: width_px."""
    a, b = (crop(inner_boundary(m, width_px, frame=True), inner) for m in (pred, target))
    both = joint([np.minimum(b, np.uint8(n_classes)), np.minimum(a, np.uint8(n_classes))], [n_classes + 1, n_classes + 1])
    inter = np.diagonal(both)[:n_classes].copy()
    return inter, both[:n_classes].sum(1) + both[:, :n_classes].sum(0) - inter


# ---- boundary F (DAVIS: Perazzi et al., CVPR 2016) --------------------------------------------------------------------------


def contours(labels: Map, first_class: int, n_classes: int) -> NDArray[np.uint8]:
    """seg2bmap of up to 8 classes at once, a bit each: a pixel whose E, S or SE neighbour is on the other side. The
    frame is no contour."""
    bits = np.zeros(256, np.uint8)
    for i in range(min(8, n_classes - first_class)):
        bits[first_class + i] = 1 << i
    m: NDArray[np.uint8] = cv2.LUT(labels, bits).astype(np.uint8, copy=False)
    b = np.zeros_like(m)
    b[:, :-1] |= m[:, :-1] ^ m[:, 1:]
    b[:-1] |= m[:-1] ^ m[1:]
    b[:-1, :-1] |= m[:-1, :-1] ^ m[1:, 1:]
    return b


def boundary_f(pred: Map, target: Map, n_classes: int, tolerance_px: float, inner: Inner) -> tuple[Counts, Counts, Counts, Counts]:
    """(hits of pred, contour of pred, hits of target, contour of target) in px, each [K]. Halo: floor(tolerance_px) +
    1."""
    out = np.zeros((4, n_classes), np.int64)
    for first in range(0, n_classes, 8):
        a, b = (contours(m, first, n_classes) for m in (pred, target))
        if not a.any() and not b.any():
            continue
        maps = (a & widen(b, tolerance_px), a, b & widen(a, tolerance_px), b)
        for i, m in enumerate(maps):
            of_code = joint([crop(m, inner)], [256])
            for bit in range(min(8, n_classes - first)):
                out[i, first + bit] = of_code[(np.arange(256) >> bit) & 1 == 1].sum()
    return out[0], out[1], out[2], out[3]


# ---- trimap and distance --------------------------------------------------------------------------------------------------


def trimap_shells(edges: NDArray[np.uint8], widths_px: tuple[int, ...]) -> NDArray[np.uint8]:
    """Index of the narrowest trimap that holds a pixel (`widths_px` ascending), len(widths_px) beyond them all.

    Trimap of width w: `label_edges` dilated by a square of 2 w - 1, w px on either side. Halo: the largest width.
    """
    shells = np.full(edges.shape, len(widths_px), np.uint8)
    band: NDArray[np.uint8] = edges
    before = 1
    for width in widths_px:
        grow = 2 * (width - before) + 1
        if grow > 1:
            band = cv2.dilate(band, np.ones((grow, grow), np.uint8)).astype(np.uint8, copy=False)
        before = width
        shells -= band
    return shells


# ---- mBA (CascadePSP, Cheng et al., CVPR 2020) --------------------------------------------------------------------------------


def mba_radii(height: int, width: int) -> tuple[int, ...]:
    """The five radii in px of an image of this size."""
    return tuple(1 + int(((width + height) / 300 - 1) / 5 * i) for i in range(5))


def mba(pred: Map, target: Map, n_classes: int, radii: tuple[int, ...], inner: Inner) -> tuple[Counts, Counts]:
    """(right pixels, pixels) [5] in the morphological gradients of the target. Halo: the largest radius.

    As CascadePSP: for two classes ignored pixels are background in both maps; for more they are void, which makes
    edges but is not counted.
    """
    if n_classes == 2:
        pred, target = (np.where(target < n_classes, m, np.uint8(0)) for m in (pred, target))
    right = (pred == target) & (target < n_classes)
    hits, total = np.zeros(5, np.int64), np.zeros(5, np.int64)
    for radius in sorted(set(radii)):
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        region = crop((cv2.erode(target, kernel) != cv2.dilate(target, kernel)) & (target < n_classes), inner)
        here = [i for i, r in enumerate(radii) if r == radius]
        hits[here] = np.count_nonzero(region & crop(right, inner))
        total[here] = np.count_nonzero(region)
    return hits, total
