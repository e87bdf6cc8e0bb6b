"""One scale for the pixels of all scenes: bands of unlike sensors, light and bit depth look alike to one network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from idgbr.datasets.index import BandStats

MIDDLE, SPREAD = 127.5, 42.5  # of the scaled values, in steps of 8 bits: 0 and 255 are three standard deviations away

# what every scaled band has by construction
STATS = BandStats((MIDDLE,) * 3, (SPREAD,) * 3, (MIDDLE - 2.33 * SPREAD,) * 3, (MIDDLE + 2.33 * SPREAD,) * 3)


def scaled(
    image: NDArray[np.float32], mean: NDArray[np.floating] | tuple[float, ...], std: NDArray[np.floating] | tuple[float, ...]
) -> NDArray[np.float32]:
    """Bands [..., C, H, W] with mean 127.5 and standard deviation 42.5, clipped to 0..255.

    Args:
        mean, std: of each band over the scene, [C]. A band of one value becomes 127.5.
    """
    middle, spread = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (mean, std))
    return np.clip(MIDDLE + (image - middle) * (SPREAD / np.maximum(spread, 1e-6)), 0, 255).astype(np.float32)


def moments(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the bands [C] of an image [C, H, W] over its valid pixels; 0 and 1 without
    any."""
    pixels = image[:, valid].astype(np.float64)
    if not pixels.shape[1]:
        return np.zeros(len(image)), np.ones(len(image))
    return pixels.mean(axis=1), pixels.std(axis=1)
