"""Blocks of training ground that train nothing, so that decisions can be tuned on them. numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from idgbr.datasets.index import Raster
from idgbr.labels import IGNORE

BLOCK_PX = 256

Corners = tuple[tuple[int, int], ...]


def held_out_blocks(rasters: Iterable[Raster], share: float) -> dict[str, Corners]:
    """Upper left pixels of the blocks that are held out, by raster id: `share` of all blocks of 256 px, at least one;
    none for share 0.

    Chosen by a digest of raster and place, so always the same.
    """
    every = [(r.id, row, col) for r in rasters for row in range(0, r.height, BLOCK_PX) for col in range(0, r.width, BLOCK_PX)]
    n = max(1, round(share * len(every))) if share else 0
    chosen = sorted(every, key=lambda place: hashlib.sha256("|".join(map(str, place)).encode()).digest())[:n]
    found: dict[str, Corners] = {}
    for name, row, col in sorted(chosen):
        found[name] = (*found.get(name, ()), (row, col))
    return found


def hide(target: NDArray[np.uint8], corners: Corners, row: int = 0, col: int = 0) -> NDArray[np.uint8]:
    """Labels [h,w] of the window at (row, col), 255 within the held out blocks."""
    if not corners:
        return target
    target = target.copy()
    for top, left in corners:
        target[max(top - row, 0) : max(top + BLOCK_PX - row, 0), max(left - col, 0) : max(left + BLOCK_PX - col, 0)] = IGNORE
    return target
