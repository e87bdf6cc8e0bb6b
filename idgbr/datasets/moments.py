"""Mean, spread and percentiles of bands, gathered raster by raster: exact counts of values for 8- and 16-bit images, sums and a regular
sample of pixels for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idgbr.datasets.index import BandStats
from idgbr.errors import Disagreement

SAMPLES = 40_000  # pixels of a raster that count for the percentiles, where values are not counted
QUANTILES = (0.01, 0.99)


@dataclass
class Moments:
    """Of one raster. `counts` [C, 256 or 65536] for unsigned integers, else None and `total`, `squares`, `samples` [C, n]."""

    n: int
    counts: NDArray[np.int64] | None
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    samples: NDArray[np.float32]


class Gatherer:
    """Add the valid pixels of a raster strip by strip.

    Args:
        dtype: of the file; decides how values are gathered.
        area: pixels of the raster in all.
    """

    def __init__(self, n_bands: int, dtype: str, area: int):
        sizes = {"uint8": 256, "uint16": 65536}
        self.counts = np.zeros((n_bands, sizes[dtype]), np.int64) if dtype in sizes else None
        self.n, self.every = 0, max(1, area // SAMPLES)
        self.total, self.squares = np.zeros(n_bands), np.zeros(n_bands)
        self.samples: list[NDArray[np.float32]] = []

    def add(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """image [C,H,W], valid [H,W]."""
        pixels = image.reshape(len(image), -1) if valid.all() else image[:, valid]
        self.n += pixels.shape[1]
        if self.counts is not None:
            for band, values in enumerate(pixels):
                self.counts[band] += np.bincount(values.astype(np.uint16), minlength=self.counts.shape[1])
            return
        self.total += pixels.sum(1, dtype=np.float64)
        self.squares += np.square(pixels, dtype=np.float64).sum(1)
        self.samples.append(pixels[:, :: self.every].copy())

    def result(self) -> Moments:
        samples = np.concatenate(self.samples, 1) if self.samples else np.zeros((len(self.total), 0), np.float32)
        return Moments(self.n, self.counts, self.total, self.squares, samples)


def band_stats(parts: Sequence[Moments]) -> BandStats:
    """Over all rasters together.

    Raises:
        Disagreement: no valid pixel; a band of one value; 8-bit and 16-bit or float images in one data set.
    """
    n = sum(part.n for part in parts)
    if not n:
        raise Disagreement(
            "the training rasters have no valid pixel: nothing to measure the bands on", hint="check nodata and alpha of the images"
        )
    if len({None if part.counts is None else part.counts.shape[1] for part in parts}) > 1:
        raise Disagreement(
            "training rasters of different types (8-bit, 16-bit, float)", hint="convert them to one, or take some out of the split table"
        )
    if parts[0].counts is not None:
        counts: Any = sum(part.counts for part in parts if part.counts is not None)
        values = np.arange(counts.shape[1], dtype=np.float64)
        mean = counts @ values / n
        variance = np.stack([c @ (values - m) ** 2 for c, m in zip(counts, mean)]) / n
        shares = np.cumsum(counts, 1) / n
        low, high = (np.array([np.searchsorted(share, q) for share in shares], np.float64) for q in QUANTILES)
    else:
        mean = sum(part.total for part in parts) / n
        variance = np.maximum(sum(part.squares for part in parts) / n - mean**2, 0)
        low, high = np.quantile(np.concatenate([part.samples for part in parts], 1), QUANTILES, axis=1)
    std = np.sqrt(variance)
    flat = np.flatnonzero(std <= 1e-6 * np.maximum(1, np.abs(mean)))
    if len(flat):
        raise Disagreement(
            "a band has one value everywhere in the training rasters",
            value=f"the band at place {flat[0] + 1} of data.bands is {mean[flat[0]]:g}",
            hint="choose other data.bands",
        )
    return BandStats(*(tuple(float(v) for v in numbers) for numbers in (mean, std, low, high)))
