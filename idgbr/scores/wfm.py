"""Weighted F-measure (Margolin, Zelnik-Manor, Tal: How to evaluate foreground maps?, CVPR 2014), as sums that add up
over tiles.

For one class: P prediction, G target, E = |P - G|. Et = E, on background Et = E at the nearest pixel of G (ties:
smallest column, then smallest row, as scipy's distance transform breaks them). EA = Et * gaussian, 7 x 7, sigma 5,
zero padded. M = min(E, EA) on G, E elsewhere. B = 1 on G, 2 - exp(ln(0.5) / 5 * distance to G) elsewhere. Ew = M B.

    R = 1 - mean_G Ew;  TPw = |G| - sum_G Ew;  FPw = sum of Ew off G;  precision = TPw / (TPw + FPw);  F = 2 R
    precision / (R + precision)

So |G|, sum_G Ew (`target_loss`) and the sum off G (`rest_loss`) are sufficient, and they are sums over pixels. Two
facts keep them cheap: Et matters only within 3 px of false negatives, where the nearest pixel of G is at most 4 px
away in either axis; the distance matters only at false positives.

Halo for exact sums: HALO_PX for target_loss; for rest_loss, a false positive whose nearest G lies beyond a halo of h
px gets B = 2 instead of 2 - 2^(-d/5), wrong by less than 2^(-h/5).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.labels import IGNORE
from idgbr.scores.boundary import Inner, crop
from idgbr.scores.nearest import places, squared_distances
from idgbr.scores.region import Counts, Map, joint

HALO_PX = 3 + 4
FAR_HALO_PX = 128  # 2^(-128/5) = 2e-8 of one pixel
EDGE_PX = 2  # corrected edge band: the inner side, as wide as half of the authors' 4-px band at kernel 3

_GAUSS = np.exp(-(np.arange(-3, 4, dtype=np.float64) ** 2) / (2 * 5.0**2))
_GAUSS /= _GAUSS.sum()
_WEIGHTS = np.outer(_GAUSS, _GAUSS).reshape(49)


@dataclass(frozen=True)
class WeightedSums:
    """Per class [K]: pixels of target and of prediction, and the weighted losses on and off the target."""

    target: Counts
    pred: Counts
    target_loss: NDArray[np.float64]
    rest_loss: NDArray[np.float64]


def weighted_f(target: NDArray, target_loss: NDArray, rest_loss: NDArray) -> NDArray[np.float64]:
    """F of sums of any shape; NaN where there is no target pixel. beta = 1, eps = 2^-52 as in the authors' code."""
    eps = 2.0**-52
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = 1 - target_loss / target
        hits = target - target_loss
        precision = hits / (eps + hits + rest_loss)
        return np.where(target > 0, 2 * recall * precision / (eps + recall + precision), np.nan)


@dataclass(frozen=True)
class Far:
    """A wider window of the target, for false positives whose nearest target pixel lies beyond the near one."""

    target: Map
    row: int  # where the near window begins in it
    col: int
    certain_px: int  # distances up to the near halo are exact already
    edges_of: int = 0  # the near maps are edge labels of so many classes; 0: the maps themselves


def sums(pred: Map, target: Map, n_classes: int, inner: Inner, far: Far | None = None) -> WeightedSums:
    """Sufficient sums of label maps [H,W] (values >= K: no class), counted at the pixels of `inner`."""
    p, t = crop(pred, inner), crop(target, inner)
    rows, cols = places((p != t) & ((p < n_classes) | (t < n_classes)))
    is_pred, is_target = p[rows, cols], t[rows, cols]
    rows, cols = rows + inner[0], cols + inner[2]
    out = WeightedSums(_pixels(t, n_classes), _pixels(p, n_classes), np.zeros(n_classes), np.zeros(n_classes))
    false_positive = is_pred < n_classes
    if false_positive.any():
        classes = is_pred[false_positive].astype(np.int64)
        y, x = rows[false_positive], cols[false_positive]
        squared = squared_distances(target, n_classes, y, x, classes)
        if far is not None and (unsure := squared > far.certain_px**2).any():
            wide = edge_labels(far.target, far.edges_of) if far.edges_of else far.target
            for c in np.unique(classes[unsure]):  # mostly one object that is not there: few pixels, close together
                these = np.flatnonzero(unsure & (classes == c))
                squared[these] = _far_squared(wide, n_classes, y[these] + far.row, x[these] + far.col, classes[these])
        distance = np.sqrt(squared)
        out.rest_loss[:] = np.bincount(classes, 2 - np.exp(np.log(0.5) / 5 * distance), n_classes)
    missed = is_target < n_classes
    rows, cols, is_target = rows[missed], cols[missed], is_target[missed]
    for c in np.unique(is_target):
        these = is_target == c
        out.target_loss[c] = _missed_loss(pred, target, int(c), rows[these], cols[these])
    return out


def _far_squared(wide: Map, n_classes: int, rows: NDArray, cols: NDArray, classes: NDArray) -> NDArray[np.float64]:
    """Squared distances in px^2, exact up to FAR_HALO_PX: only that much of `wide` around the pixels is searched."""
    window = _around(rows, wide.shape[0]), _around(cols, wide.shape[1])
    here = np.ascontiguousarray(wide[window])
    return squared_distances(here, n_classes, rows - window[0].start, cols - window[1].start, classes)


def _around(places: NDArray, size: int) -> slice:
    return slice(max(0, int(places.min()) - FAR_HALO_PX), min(size, int(places.max()) + FAR_HALO_PX + 1))


def _pixels(labels: Map, n_classes: int) -> Counts:
    return joint([labels], [n_classes])


# Candidate order of the nearest pixel of G: squared distance, then column, then row.
_UNSET8, _UNSET16 = 128, 20_000
_COLUMN_KEY = np.full(256, _UNSET16, np.uint16)  # dy^2 * 4 + (below) * 2 + E  ->  dy^2 * 32 + E
_COLUMN_KEY[:_UNSET8] = [(key >> 2) * 32 + (key & 1) for key in range(_UNSET8)]


def _missed_loss(pred: Map, target: Map, c: int, rows: NDArray, cols: NDArray) -> float:
    """sum over the false negatives of min(1, EA): M is 0 on the rest of G."""
    height, width = target.shape
    # Et is needed within 3 px of the false negatives, and G within 4 px of there.
    r0, r1, c0, c1 = rows.min() - 7, rows.max() + 8, cols.min() - 7, cols.max() + 8
    inside = slice(max(r0, 0), min(r1, height)), slice(max(c0, 0), min(c1, width))
    at = slice(inside[0].start - r0, inside[0].stop - r0), slice(inside[1].start - c0, inside[1].stop - c0)
    keys = np.full((r1 - r0, c1 - c0), _UNSET8, np.uint8)
    np.not_equal(target[inside], c, out=keys[at].view(np.bool_))
    keys[at] <<= 7  # _UNSET8 off G, and its lowest bit is not looked at there
    keys[at] |= (pred[inside] != c).view(np.uint8)
    et = nearest_error(keys)
    # Zero padding: pixels beyond the frame hold no error.
    et[: max(at[0].start - 4, 0)] = 0
    et[at[0].stop - 4 :] = 0
    et[:, : max(at[1].start - 4, 0)] = 0
    et[:, at[1].stop - 4 :] = 0
    n = len(rows)
    if n * 50 < et.size:
        around = np.lib.stride_tricks.sliding_window_view(et, (7, 7))[rows - (r0 + 7), cols - (c0 + 7)]
        smooth = around.reshape(n, 49).astype(np.float64) @ _WEIGHTS
    else:
        smooth = cv2.sepFilter2D(et, cv2.CV_64F, _GAUSS, _GAUSS, borderType=cv2.BORDER_CONSTANT)[rows - (r0 + 4), cols - (c0 + 4)]
    return float(np.minimum(smooth, 1.0).sum())


def nearest_error(keys: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """E at the nearest pixel of G, [h-8, w-8], for a window [h, w] of E on G (128 or 129 off G); 0 where G is farther
    than 4 px in an axis.

    Two passes of minima over keys in which smaller means nearer, then smaller column, then smaller row.
    """
    h, w = keys.shape[0] - 8, keys.shape[1] - 8
    column = keys[4 : 4 + h].copy()
    step = np.empty_like(column)
    for d in (1, 2, 3, 4):
        np.add(keys[4 + d : 4 + d + h], 2, out=step)
        np.minimum(keys[4 - d : 4 - d + h], step, out=step)
        np.add(step, 4 * d * d, out=step)
        np.minimum(column, step, out=column)
    by_column: NDArray[np.uint16] = cv2.LUT(column, _COLUMN_KEY).astype(np.uint16, copy=False)
    best = by_column[:, 4 : 4 + w] + np.uint16(8)
    wide = np.empty_like(best)
    for d in (1, 2, 3, 4):
        np.add(by_column[:, 4 + d : 4 + d + w], 4 * d, out=wide)
        np.minimum(by_column[:, 4 - d : 4 - d + w], wide, out=wide)
        np.add(wide, 32 * d * d + 2 * (4 - d), out=wide)
        np.minimum(best, wide, out=best)
    return ((best < _UNSET16) & np.bitwise_and(best, 1)).astype(np.uint8)


# ---- edges ----------------------------------------------------------------------------------------------------------------


def edge_labels(labels: Map, n_classes: int) -> Map:
    """Corrected edge classes: labels within EDGE_PX (chessboard) of another valid label, 255 elsewhere. Halo: EDGE_PX.

    Unlike the authors' edge map it is taken a class at a time on class indices (no dependence on file values, no
    cancellation on thin structures), keeps the side (swapped classes are errors), and sees no edge at ignored pixels.
    """
    valid = labels < n_classes
    size = 2 * EDGE_PX + 1
    kernel = np.ones((size, size), np.uint8)
    low = cv2.erode(labels, kernel)  # values that are no class are the largest
    high = cv2.dilate(np.where(valid, labels, np.uint8(0)), kernel)
    return np.where(valid & ((low != labels) | (high != labels)), labels, np.uint8(IGNORE))
