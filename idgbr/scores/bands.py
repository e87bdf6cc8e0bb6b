"""Frequency bands of the error field, in exact integers.

e_c = [pred is c] - [target is c], 0 where ignored. T_j = sum over all shifts, on the zero-extended plane, of (sum of
e_c in a box of 2^j x 2^j px)^2. S_j = sum_c T_j / 16^j / (2 N) with N valid pixels. Band j (structures of about 2^j
px) is S_j - S_{j+1} >= 0, low is S_J, high is S_0 - S_J, and bands + low = S_0 = pixel error rate: a box mean of
twice the side is the mean of four shifted box means, so Jensen's inequality makes every band non-negative. For two
classes the two fields are opposite and sum_c T / 2 is T of class 1.

Adding up over tiles is exact: a shift belongs to the tile that holds its upper left pixel (shifts that begin above or
left of the scene belong to the first tiles), and a tile needs 2^J - 1 px of halo below and to the right.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.scores.region import Map


def energies(
    pred: Map, target: Map, n_classes: int, levels: int, inner: tuple[int, int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """T_0 .. T_levels of every class, and of the classes together with whatever was predicted outside of them.

    Args:
        pred, target: [H,W]; values >= K are no class. Where the target is none, pred is not looked at.
        inner: (row0, row1, col0, col1) of the tile in the arrays; a side at 0 or at H (W) is the frame of the scene.

    Returns:
        per class int64 [K, levels + 1], total int64 [levels + 1].
    """
    out = np.zeros((n_classes, levels + 1), np.int64)
    valid = target < n_classes
    wrong = valid & (pred != target)
    if not wrong.any():
        return out, out.sum(0)
    if n_classes == 2 and not (pred[wrong] > 1).any():
        out[:] = _field_energies(_difference(pred, target, wrong, 1), levels, inner)  # e_0 = -e_1
        return out, out.sum(0)
    for c in range(n_classes):
        out[c] = _field_energies(_difference(pred, target, wrong, c), levels, inner)
    total = out.sum(0)
    outside = wrong & (pred >= n_classes)
    if outside.any():  # one more class, so that S_0 stays the pixel error rate
        total = total + _field_energies(outside.astype(np.int8), levels, inner)
    return out, total


def _difference(pred: Map, target: Map, wrong: NDArray[np.bool_], c: int) -> NDArray[np.int8]:
    return ((pred == c) & wrong).view(np.int8) - ((target == c) & wrong).view(np.int8)


def _field_energies(e: NDArray[np.int8], levels: int, inner: tuple[int, int, int, int]) -> NDArray[np.int64]:
    """T_j of one field [H,W] for shifts whose (clipped) upper left pixel lies in `inner`."""
    out = np.zeros(levels + 1, np.int64)
    reach = (1 << levels) - 1
    r0, r1, c0, c1 = inner
    # Crop to the errors that these shifts can see: elsewhere the boxes are empty.
    view = e[r0 : r1 + reach, c0 : c1 + reach]
    x, y, width, height = cv2.boundingRect((view != 0).view(np.uint8))
    if not width:
        return out
    # b[i, j] is the box whose upper left pixel is (i + top, j + left); the range reaches one box above and left of
    # the errors.
    top, left = r0 + y - reach, c0 + x - reach
    kind = np.int16 if levels <= 7 else np.int32
    b = np.zeros((height + 2 * reach, width + 2 * reach), kind)
    b[reach : reach + height, reach : reach + width] = view[y : y + height, x : x + width]
    # Shifts owned by the tile: upper left pixel within inner; above or left of the scene's frame only if the tile
    # lies at that frame.
    row_from = 0 if r0 == 0 else max(0, r0 - top)
    col_from = 0 if c0 == 0 else max(0, c0 - left)
    row_to, col_to = min(b.shape[0], r1 - top), min(b.shape[1], c1 - left)
    for j in range(levels + 1):
        if j:
            half = 1 << (j - 1)
            b = b[:-half] + b[half:]
            b = b[:, :-half] + b[:, half:]
        owned = b[row_from : min(row_to, b.shape[0]), col_from : min(col_to, b.shape[1])]
        if owned.size:
            out[j] = round(cv2.norm(np.ascontiguousarray(owned), cv2.NORM_L2SQR))
    return out
