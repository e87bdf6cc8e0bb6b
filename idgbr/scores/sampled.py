"""What is known of a map beside its classes: probabilities and samples, kept beside refined maps where
score.uncertainty asks for it. numpy only until something is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROBABILITIES, SAMPLES = "_probabilities", "_samples"  # folders beside refined maps, with a file of each raster


@dataclass(frozen=True)
class Sampled:
    """Of one window. probabilities: float [K,H,W], sum 1. samples: class indices uint8 [S,H,W], at least one."""

    probabilities: NDArray[np.float32]
    samples: NDArray[np.uint8]


ReadSampled = Callable[[int, int, int, int], Sampled]  # (row, col, height, width)


def sampled_reader(probabilities: Path, samples: Path | None) -> ReadSampled:
    """Reads probabilities and samples of a refined map; without a file of samples the most probable class is the
    only one."""
    from idgbr.rasters.meaning import meaning_of
    from idgbr.rasters.read import Reader, read_probabilities

    reader = Reader(samples, meaning_of(samples).data) if samples is not None and samples.is_file() else None

    def read(row: int, col: int, height: int, width: int) -> Sampled:
        p = read_probabilities(probabilities, row, col, height, width)
        drawn = p.argmax(0)[None] if reader is None else reader.read(row, col, height, width)[0]
        return Sampled(p, drawn.astype(np.uint8))

    return read
