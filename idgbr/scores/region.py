"""Joint counts of class maps: the confusion matrix, and with a coarse map the repair ledger.

K classes. Maps are uint8 [H,W]; target values >= K are not scored (ignore).
Predictions >= K are `outside`: wrong wherever the target is a class.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.uint8]
Counts = NDArray[np.int64]

_EXACT = 1 << 23  # cv2.calcHist returns float32, exact below 2^24


def joint(maps: list[Map], sizes: list[int]) -> Counts:
    """How often each combination of values occurs: int64 [*sizes]. Pixels with any value >= its size are left out."""
    maps = [np.ascontiguousarray(m) for m in maps]
    height, width = maps[0].shape
    out = np.zeros(sizes, np.int64)
    if not maps[0].size:
        return out
    rows = max(1, _EXACT // width)
    # One-dimensional histograms have a fast path in OpenCV: fold small value ranges into one code.
    if len(maps) == 1 and sizes[0] <= 256:
        for top in range(0, height, rows):
            full = cv2.calcHist([maps[0][top : top + rows]], [0], None, [256], [0, 256])
            out += full.reshape(256)[: sizes[0]].astype(np.int64)
        return out
    ranges = [float(v) for size in sizes for v in (0, size)]
    for top in range(0, height, rows):
        part = [m[top : top + rows] for m in maps]
        out += cv2.calcHist(part, list(range(len(maps))), None, list(sizes), ranges).reshape(sizes).astype(np.int64)
    return out


def confusion(pred: Map, target: Map, n_classes: int) -> Counts:
    """[K, K+1]: rows are target classes, columns predicted classes; the last column is predictions outside the
    classes."""
    return joint([target, np.minimum(pred, np.uint8(n_classes))], [n_classes, n_classes + 1])


def rates(table: Counts) -> tuple[Counts, Counts, Counts]:
    """(tp, fp, fn), each [..., K], of confusion matrices [..., K, K+1]."""
    k = table.shape[-2]
    tp = np.diagonal(table[..., :k], axis1=-2, axis2=-1).copy()
    return tp, table[..., :k].sum(-2) - tp, table.sum(-1) - tp


def ledger(cells: Counts) -> dict[str, Counts]:
    """What refinement did, from joint counts [..., K, K+1, K+1] of (target, coarse, refined), by target class [...,
    K].

    kept: right before and after; repaired: wrong, then right; damaged: right, then wrong; still_wrong. Their sum is
    the valid pixels.
    """
    k = cells.shape[-3]
    i = np.arange(k)
    kept = cells[..., i, i, i]
    repaired = cells[..., i, :, i].sum(-1) if cells.ndim == 3 else np.moveaxis(cells[..., i, :, i], 0, -2).sum(-1)
    right = cells[..., i, i, :].sum(-1)
    repaired = repaired - kept
    damaged = right - kept
    total = cells.sum((-1, -2))
    return {"kept": kept, "repaired": repaired, "damaged": damaged, "still_wrong": total - kept - repaired - damaged}


def one_vs_rest_cells(cells: Counts) -> Counts:
    """[K, 8] joint cells n(target, coarse, refined) of each class against the rest, from [K, K+1, K+1]; index = 4 t +
    2 c + r."""
    k = len(cells)
    out = np.zeros((k, 8), np.int64)
    total = cells.sum()
    for c in range(k):
        tcr = cells[c, c, c]
        tc, tr, cr = cells[c, c, :].sum(), cells[c, :, c].sum(), cells[:, c, c].sum()
        t, co, r = cells[c].sum(), cells[:, c, :].sum(), cells[:, :, c].sum()
        out[c] = [
            total - t - co - r + tc + tr + cr - tcr,
            r - tr - cr + tcr,
            co - tc - cr + tcr,
            cr - tcr,
            t - tc - tr + tcr,
            tr - tcr,
            tc - tcr,
            tcr,
        ]
    return out
