"""Mean, spread and percentiles of bands, gathered raster by raster: exact counts of values for 8- and 16-bit images,
sums and a regular sample of pixels for others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idgbr.datasets.index import BandStats
from idgbr.errors import Disagreement

SAMPLES = 4_000_000  # pixels of all rasters that count for the percentiles, where values are not counted
QUANTILES = (0.01, 0.99)


@dataclass
class Moments:
    """Of one raster or several. `counts` [C, 256 or 65536] for unsigned integers, else None and `total`, `squares`
    [C], `samples`."""

    n: int
    counts: NDArray[np.int64] | None
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    samples: list[NDArray[np.float32]]  # each [C, n]

    @property
    def flat(self) -> bool:
        """Whether every band has one value: an empty picture, which says nothing about where it is from."""
        if self.counts is not None:
            return bool(((self.counts > 0).sum(1) <= 1).all())
        return all((part == part[:, :1]).all() for part in self.samples)

    def __add__(self, other: Moments) -> Moments:
        """Raises:
        Disagreement: 8-bit and 16-bit or float images in one data set.
        """
        mine, theirs = self.counts, other.counts
        if (None if mine is None else mine.shape) != (None if theirs is None else theirs.shape):
            raise Disagreement(
                "rasters of different types (8-bit, 16-bit, float)", hint="convert them to one, or leave some out: data.where"
            )
        counts = mine + theirs if mine is not None and theirs is not None else None
        return Moments(self.n + other.n, counts, self.total + other.total, self.squares + other.squares, [*self.samples, *other.samples])


class Gatherer:
    """Add the valid pixels of a raster strip by strip.

    Args:
        dtype: of the file; decides how values are gathered.
        area: pixels of the raster in all.
        samples: how many of them are kept for the percentiles, where values are not counted.
    """

    def __init__(self, n_bands: int, dtype: str, area: int, samples: int = SAMPLES):
        sizes = {"uint8": 256, "uint16": 65536}
        self.counts = np.zeros((n_bands, sizes[dtype]), np.int64) if dtype in sizes else None
        self.n, self.every = 0, max(1, area // max(1, samples))
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
        """The sums over all that was added."""
        return Moments(self.n, self.counts, self.total, self.squares, self.samples)


def band_stats(moments: Moments) -> BandStats:
    """Raises:
    Disagreement: no valid pixel, or a band of one value.
    """
    n = moments.n
    if not n:
        raise Disagreement(
            "the training rasters have no valid pixel: nothing to measure the bands on", hint="check nodata and alpha of the images"
        )
    if moments.counts is not None:
        counts = moments.counts
        values = np.arange(counts.shape[1], dtype=np.float64)
        mean = counts @ values / n
        variance = np.stack([c @ (values - m) ** 2 for c, m in zip(counts, mean)]) / n
        shares = np.cumsum(counts, 1) / n
        low, high = (np.array([np.searchsorted(share, q) for share in shares], np.float64) for q in QUANTILES)
    else:
        mean = moments.total / n
        variance = np.maximum(moments.squares / n - mean**2, 0)
        low, high = np.quantile(np.concatenate(moments.samples, 1), QUANTILES, axis=1)
    std = np.sqrt(variance)
    flat = np.flatnonzero(std <= 1e-6 * np.maximum(1, np.abs(mean)))
    if len(flat):
        raise Disagreement(
            "a band has one value everywhere in the training rasters",
            value=f"the band at place {flat[0] + 1} of data.bands is {mean[flat[0]]:g}",
            hint="choose other data.bands",
        )
    return BandStats(*(tuple(float(v) for v in numbers) for numbers in (mean, std, low, high)))
