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
from rasterio.enums import ColorInterp

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


@pytest.fixture
def mask() -> np.ndarray:
    """Buildings on 4 of 48 rows and more background than building, uint8 [32, 48]."""
    out = np.zeros((32, 48), np.uint8)
    out[4:12, 10:30] = 1
    return out


@pytest.fixture
def write_map(tmp_path: Path, grid: Callable[[int, int], Grid], write_image: Callable[..., Path]) -> Callable[..., Path]:
    """Writes bands [h, w] or [c, h, w] as a GeoTIFF with colour interpretation and palette."""

    def write(bands: np.ndarray, name: str = "a.tif", marks: tuple[ColorInterp, ...] = (), palette: Any = None, **profile: Any) -> Path:
        bands = bands if bands.ndim == 3 else bands[None]
        path = write_image(tmp_path / name, bands, grid(*bands.shape[1:]), **profile)
        with rasterio.open(path, "r+") as file:
            if palette:
                file.write_colormap(1, {k: (*v, 255)[:4] for k, v in palette.items()})
            if marks:
                file.colorinterp = marks
        return path

    return write
