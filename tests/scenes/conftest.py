"""Scenes made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from idgbr.labels import ClassTable, LabelClass
from idgbr.rasters.read import Grid

UTM = CRS.from_epsg(32633)


@pytest.fixture
def table() -> ClassTable:
    return ClassTable((
        LabelClass("background", (0,), (40, 40, 40)),
        LabelClass("building", (1,), (255, 80, 40)),
        LabelClass("road", (2,), (80, 80, 255)),
    ))  # fmt: skip


@pytest.fixture
def grid() -> Callable[[int, int], Grid]:
    return lambda height, width: Grid(height, width, Affine(0.5, 0, 500000.0, 0, -0.5, 4600000.0), UTM)


@pytest.fixture
def write_image() -> Callable[..., Path]:
    def write(path: Path, array: np.ndarray, grid: Grid, **profile: Any) -> Path:
        with rasterio.open(
            path, "w", **{"driver": "GTiff", "count": len(array), "height": grid.height, "width": grid.width, "dtype": array.dtype,
                          "crs": grid.crs, "transform": grid.transform, **profile},
        ) as file:  # fmt: skip
            file.write(array)
        return path

    return write
