"""Windows over a raster of any size, and blending of what was computed in them. numpy only.

A scene is covered by square tiles that overlap; tile results (probabilities) are averaged with Hann weights, one row
of tiles at a time, so that memory depends on the width of the scene and the side of a tile, never on the height.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from idgbr.errors import BadRequest


class Window(NamedTuple):
    """Part of a raster in pixels; (row, col) is the upper left corner. May reach beyond the frame (a scene smaller
    than a tile)."""

    row: int
    col: int
    height: int
    width: int


class Ground(NamedTuple):
    """Where a tile lies, for noise that belongs to the ground: the seed of the raster, and the tile's upper left
    pixel."""

    seed: int
    row: int
    col: int


Seed = int | Ground  # of a tile: its own noise, or that of the ground it lies on


def starts(length: int, tile_px: int, overlap_px: int) -> list[int]:
    """First pixels of tiles along one axis. The last tile is shifted inside; an axis shorter than a tile has one tile
    at 0.

    Raises:
        BadRequest: the overlap is not smaller than the tile, or a size is not positive.
    """
    if not 0 <= overlap_px < tile_px:
        raise BadRequest(
            "the overlap of tiles must be smaller than the tile",
            value=f"overlap {overlap_px} px, tile {tile_px} px",
            allowed=f"0 to {tile_px - 1}",
        )
    if length < 1:
        raise BadRequest("a raster needs at least one pixel", value=length)
    if length <= tile_px:
        return [0]
    return [*range(0, length - tile_px, tile_px - overlap_px), length - tile_px]


def windows(height: int, width: int, tile_px: int, overlap_px: int) -> list[Window]:
    """Tiles that cover [height, width], row by row. Every tile has side `tile_px`, also where the raster is
    smaller."""
    cols = starts(width, tile_px, overlap_px)
    return [Window(row, col, tile_px, tile_px) for row in starts(height, tile_px, overlap_px) for col in cols]


def hann(tile_px: int, overlap_px: int) -> NDArray[np.float32]:
    """Blending weights [tile_px, tile_px]: 1 inside, falling over `overlap_px` to every side like sin^2 (half a Hann
    window).

    At regular steps two neighbours' weights sum to 1; they are never 0, so a pixel seen by one tile only keeps that
    tile's value.
    """
    starts(tile_px, tile_px, overlap_px)  # the same check of the two numbers
    line = np.ones(tile_px)
    if overlap_px:
        ramp = np.sin(0.5 * np.pi * (np.arange(overlap_px) + 0.5) / overlap_px) ** 2
        line[:overlap_px] *= ramp
        line[tile_px - overlap_px :] *= ramp[::-1]
    return np.outer(line, line).astype(np.float32)


class Strip:
    """Blends tiles into rows of the raster.

    `add` tiles in any order within a row of tiles (rows from top to bottom); when a row of tiles is complete, the
    raster rows that no later tile touches come back. Sums are taken in one fixed order, whatever the order of
    arrival, so the result does not depend on batches or workers.

    Args:
        channels: K, channels of a tile.
        height, width: of the raster.
        tile_px, overlap_px: as given to `windows`.
    """

    def __init__(self, channels: int, height: int, width: int, tile_px: int, overlap_px: int):
        self.height, self.width, self.tile_px = height, width, tile_px
        self.rows = starts(height, tile_px, overlap_px)
        self.cols = starts(width, tile_px, overlap_px)
        self.weights = hann(tile_px, overlap_px)
        self.next = 0  # index into rows of the row of tiles that is being filled
        self._pending: dict[tuple[int, int], NDArray[np.float32] | None] = {}
        span = max(self.cols[-1] + tile_px, width)
        self._sum = np.zeros((channels, tile_px, span), np.float32)  # raster rows rows[next] .. rows[next] + tile_px
        self._weight = np.zeros((tile_px, span), np.float32)

    def add(self, window: Window, values: NDArray[np.float32] | None) -> list[tuple[int, NDArray[np.float32]]]:
        """Put in one tile [K, tile_px, tile_px], or None for a tile that was not computed; pixels that no tile gave
        have 0.

        Returns:
            The raster rows that became final: (first row, [K, rows, width]).
        """
        if (window.row, window.col) in self._pending or window.row not in self.rows[self.next :] or window.col not in self.cols:
            raise ValueError(f"{window} is not due: the strip is at row {self.rows[self.next] if self.next < len(self.rows) else 'end'}")
        if values is not None and values.shape != (self._sum.shape[0], self.tile_px, self.tile_px):
            raise ValueError(f"tile of shape {values.shape}, wanted {(self._sum.shape[0], self.tile_px, self.tile_px)}")
        self._pending[window.row, window.col] = values
        done = []
        while self.next < len(self.rows) and Counter(row for row, _ in self._pending)[self.rows[self.next]] == len(self.cols):
            done.append(self._blend_row())
        return done

    def _blend_row(self) -> tuple[int, NDArray[np.float32]]:
        row = self.rows[self.next]
        for col in self.cols:
            values = self._pending.pop((row, col))
            if values is None:
                continue
            span = slice(col, col + self.tile_px)
            self._sum[:, :, span] += self.weights * values
            self._weight[:, span] += self.weights
        self.next += 1
        last = self.next == len(self.rows)
        n = min(self.height - row, self.tile_px) if last else self.rows[self.next] - row
        weight = self._weight[:n, : self.width]
        out: NDArray[np.float32] = np.divide(
            self._sum[:, :n, : self.width], weight, out=np.zeros((len(self._sum), n, self.width), np.float32), where=weight > 0
        )
        if not last:
            keep = self.tile_px - n
            for buffer in (self._sum, self._weight):
                buffer[..., :keep, :] = buffer[..., n:, :].copy()
                buffer[..., keep:, :] = 0
        return row, out

    def restart(self, first_row: int) -> None:
        """Go on in a new process whose earlier one delivered all rows above `first_row`.

        Begins at the first row of tiles that reaches below it; rows above `first_row` come out once more, incomplete:
        drop them. The others are bitwise what they would have been, because every tile that touches them is put in
        again.
        """
        if self.next or self._pending:
            raise ValueError("restart before the first tile")
        self.next = next((i for i, row in enumerate(self.rows) if row + self.tile_px > first_row), len(self.rows))

    @property
    def due(self) -> list[int]:
        """Rows of tiles still to come."""
        return self.rows[self.next :]


def tile_seed(seed: int, raster_id: str, row: int, col: int) -> int:
    """Seed of the tile with upper left pixel (row, col) of a raster: 63 bits of BLAKE2b, the same in every process
    and Python."""
    digest = hashlib.blake2b(f"{seed}|{raster_id}|{row}|{col}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
