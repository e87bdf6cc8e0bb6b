"""A coarse map as the refiner wants it: any model's class map, or probabilities, read in strips."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.labels import ClassTable, LabelClass
from idgbr.rasters.grid import Grid, grid_of, opened
from idgbr.rasters.read import IGNORE, Reader, normalised, read_labels, read_probabilities
from idgbr.rasters.write import PREFIX


def index_table(table: ClassTable) -> ClassTable:
    """The same classes, written as 0 .. K-1 with 255 for none: how this program writes class maps."""
    return ClassTable(tuple(LabelClass(c.name, (i,), c.color) for i, c in enumerate(table.classes)), (IGNORE,))


@dataclass(frozen=True)
class CoarseStrip:
    """Whole rows of a coarse map.

    index: uint8 [h, W], 255 where nothing is known. values: float32 [K, h, W] summing to 1, or None for a class map.
    """

    n_classes: int
    index: NDArray[np.uint8]
    values: NDArray[np.float32] | None

    def rows(self, start: int, stop: int) -> CoarseStrip:
        return CoarseStrip(self.n_classes, self.index[start:stop], None if self.values is None else self.values[:, start:stop])

    def probabilities(self, row: int, col: int, height: int, width: int) -> NDArray[np.float32]:
        """[K, height, width]; a class map is one-hot, alike for all classes at 255; beyond the strip the edge is repeated."""
        index = self.index[row : row + height, col : col + width]
        if self.values is not None:
            out = self.values[:, row : row + height, col : col + width]
        else:
            out = np.empty((self.n_classes, *index.shape), np.float32)
            np.equal(index, np.arange(self.n_classes, dtype=np.uint8)[:, None, None], out=out, casting="unsafe")
            out[:, index == IGNORE] = 1 / self.n_classes
        below, right = height - index.shape[0], width - index.shape[1]
        return np.pad(out, ((0, 0), (0, below), (0, right)), mode="edge") if below or right else out

    def confidence(self) -> NDArray[np.float32]:
        """Probability of the coarse class [h, W]; 1 for a class map."""
        return np.ones(self.index.shape, np.float32) if self.values is None else self.values.max(axis=0)


class CoarseMap:
    """A file with class codes, class colours, or K probability bands.

    What is read as what: a file written by this program says it in its tags. Otherwise as many bands as classes, of floating point or
    (not three or four bands) with a constant sum, are probabilities; three bands hold the table's colours; a single band holds the
    table's number codes, or class indices where the table has only colours.

    Args:
        table: the model's classes.
        codes: the same classes, in any order, with the codes or colours of this file (another program's); a class may have several.

    Raises (when made):
        Missing: no such file. Disagreement: unreadable, another number of classes, other class names.
        BadRequest: `codes` for a file of probabilities.
    """

    def __init__(self, path: str | Path, table: ClassTable, codes: ClassTable | None = None):
        self.path, self.table = Path(path), table
        with opened(self.path) as source:
            self.grid: Grid = grid_of(source)
            tags: dict[str, Any] = source.tags()
            count, dtypes, interp = source.count, source.dtypes, source.colorinterp
        self.reading = table
        self.is_probabilities = tags.get(f"{PREFIX}KIND") == "probabilities"
        if codes is not None:
            self._read_as(codes)
        elif f"{PREFIX}CLASSES" in tags and not self.is_probabilities:
            names = tuple(c["name"] for c in json.loads(tags[f"{PREFIX}CLASSES"])["classes"])
            if names != table.names:
                raise Disagreement(f"{self.path} has other classes than the model", value=", ".join(names), allowed=", ".join(table.names))
            self.reading = index_table(table)
        elif not self.is_probabilities:
            rgb = interp[0] == ColorInterp.red or table.has_colors
            floats = all(np.dtype(d).kind == "f" for d in dtypes)
            self.is_probabilities = (
                count > 1 and count == table.n_classes and (floats or (not (rgb and count in (3, 4)) and self._sums_alike()))
            )
            has_numbers = any(isinstance(code, int) for c in table.classes for code in c.codes)
            if not self.is_probabilities and count == 1 and not has_numbers and interp[0] != ColorInterp.palette:
                self.reading = index_table(table)
        bands_of_numbers = count > 4 or (count > 1 and any(np.dtype(d).kind == "f" for d in dtypes))
        if codes is not None and (self.is_probabilities or bands_of_numbers):
            raise BadRequest(f"{self.path} has {count} bands of numbers; a table of codes says nothing about it", hint="without --classes")
        if (self.is_probabilities or bands_of_numbers) and count != table.n_classes:
            raise Disagreement(
                f"{self.path} has probabilities of {count} classes, the model has {table.n_classes}",
                value=self.path,
                allowed=", ".join(table.names),
            )
        self._reader = Reader(self.path, ())

    def _read_as(self, codes: ClassTable) -> None:
        by_name = {each.name: each for each in codes.classes}
        if by_name.keys() != set(self.table.names):
            raise Disagreement(
                "the class table for the coarse map has other classes than the model",
                value=", ".join(by_name),
                allowed=", ".join(self.table.names),
                hint="the model's names; one class may have several codes",
            )
        self.reading = ClassTable(tuple(by_name[name] for name in self.table.names), codes.ignore)

    def describe(self) -> str:
        return f"{self.table.n_classes} probability bands" if self.is_probabilities else f"class map ({self.reading.describe_codes()})"

    def strip(self, row: int, height: int) -> CoarseStrip:
        """Rows [row, row + height), cut to the frame."""
        row, stop = max(row, 0), min(row + height, self.grid.height)
        k = self.table.n_classes
        if not self.is_probabilities:
            return CoarseStrip(k, read_labels(self.path, self.reading, row, 0, stop - row, self.grid.width), None)
        raw, valid = self._reader.read(row, 0, stop - row, self.grid.width)
        index = raw.argmax(axis=0).astype(np.uint8)
        index[~valid | (raw.sum(axis=0) == 0)] = IGNORE
        return CoarseStrip(k, index, normalised(raw, self.path))

    def _sums_alike(self) -> bool:
        grid = self.grid
        values, valid = Reader(self.path, ()).read(grid.height // 2, 0, min(64, grid.height), grid.width)
        sums = values.sum(axis=0)[valid]
        return bool(len(sums)) and float(sums.max() - sums.min()) <= 2 * self.table.n_classes


class MemoryCoarse:
    """A coarse map that is in memory already; same interface as `CoarseMap`."""

    def __init__(self, values: NDArray[np.float32] | NDArray[np.uint8], n_classes: int, grid: Grid):
        """`values`: probabilities float [K, H, W], or class indices uint8 [H, W]."""
        self.grid, self.n_classes = grid, n_classes
        self.is_probabilities = values.ndim == 3
        self._values: Any = normalised(values.astype(np.float32), "coarse map") if self.is_probabilities else values

    def strip(self, row: int, height: int) -> CoarseStrip:
        row, stop = max(row, 0), min(row + height, self.grid.height)
        if self.is_probabilities:
            part = self._values[:, row:stop]
            return CoarseStrip(self.n_classes, part.argmax(axis=0).astype(np.uint8), part)
        return CoarseStrip(self.n_classes, self._values[row:stop], None)


def coarse_path(folder: Path, raster_id: str) -> Path:
    return Path(folder) / f"{raster_id}.tif"


def read_coarse(folder: Path, raster_id: str, window: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
    """Probabilities float32 [K, h, w] of a window (row, col, height, width), or of the whole raster; they sum to 1.

    Raises:
        Missing: no coarse map of this raster.
    """
    path = coarse_path(folder, raster_id)
    if not path.is_file():
        raise Missing(f"no coarse map of {raster_id} in {folder}", hint="the stage `coarse` of the same data set")
    return read_probabilities(path, *(window or ()))
