"""A coarse map as the refiner wants it: any model's class map, or probabilities, read in strips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.labels import IGNORE, ClassTable
from idgbr.rasters.codes import class_bands, coding_of, drawn_colours, index_table
from idgbr.rasters.grid import Grid
from idgbr.rasters.meaning import Meaning, meaning_of, values_of, why_no_probabilities
from idgbr.rasters.read import known_and_normalised, normalised, read_labels, read_probabilities

__all__ = ["CoarseMap", "CoarseStrip", "MemoryCoarse", "coarse_path", "index_table", "read_coarse"]


@dataclass(frozen=True)
class CoarseStrip:
    """Whole rows of a coarse map.

    index: uint8 [h, W], 255 where nothing is known. values: float32 [K, h, W] summing to 1, or None for a class map.
    """

    n_classes: int
    index: NDArray[np.uint8]
    values: NDArray[np.float32] | None

    def rows(self, start: int, stop: int) -> CoarseStrip:
        """Rows [start, stop) of this strip."""
        return CoarseStrip(self.n_classes, self.index[start:stop], None if self.values is None else self.values[:, start:stop])

    def probabilities(self, row: int, col: int, height: int, width: int) -> NDArray[np.float32]:
        """[K, height, width]; a class map is one-hot, alike for all classes at 255; beyond the strip the edge is
        repeated."""
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

    A file written by this program says in its tags what it is. Otherwise one data band, a palette, or three bands
    with the table's colours are a class map, read as `idgbr.rasters.codes` says (class indices where the table has
    only colours). As many data bands as classes are probabilities if they look so over the whole file
    (`why_no_probabilities`). Anything else is refused. Transparency is never a class.

    Args:
        table: the model's classes.
        codes: the same classes, in any order, with the codes or colours of this file (another program's); a class may
            have several.

    Raises (when made):
        Missing: no such file. Disagreement: unreadable, no class map and no probabilities, another number of classes,
        other class names, codes that the table does not have (as far as the file must be looked at to decide).
        BadRequest: `codes` for a file of probabilities.
    """

    def __init__(self, path: str | Path, table: ClassTable, codes: ClassTable | None = None):
        self.path, self.table = Path(path), table
        meaning = meaning_of(self.path)
        self.grid: Grid = meaning.grid
        self.reading = table
        self._by_tags = codes is None
        self.is_probabilities = meaning.probabilities
        if codes is not None:
            self._read_as(codes)
            if self.is_probabilities or (len(meaning.data) > 1 and meaning.is_float) or len(meaning.data) > 4:
                bands = f"{len(meaning.data)} bands of numbers"
                raise BadRequest(f"{path} has {bands}; a table of codes says nothing about it", hint="without --classes")
        elif meaning.written_as and not self.is_probabilities:
            self.reading = index_table(table)
        elif not self.is_probabilities:
            self.is_probabilities = _are_probabilities(meaning, table)
            has_numbers = any(isinstance(code, int) for c in table.classes for code in c.codes)
            if not self.is_probabilities and len(meaning.data) == 1 and not has_numbers and meaning.palette is None:
                self.reading = index_table(table)
        if self.is_probabilities:
            _check_classes(meaning, table)
        if not self.is_probabilities:
            coding_of(self.path, self.reading, by_tags=self._by_tags)

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
        """What the file holds, for messages: probability bands, or a class map and its codes."""
        return f"{self.table.n_classes} probability bands" if self.is_probabilities else f"class map ({self.reading.describe_codes()})"

    def strip(self, row: int, height: int) -> CoarseStrip:
        """Rows [row, row + height), cut to the frame."""
        row, stop = max(row, 0), min(row + height, self.grid.height)
        k, width = self.table.n_classes, self.grid.width
        if not self.is_probabilities:
            index = read_labels(self.path, self.reading, row, 0, stop - row, width, by_tags=self._by_tags)
            return CoarseStrip(k, index, None)
        values, known = known_and_normalised(self.path, row, 0, stop - row, width)
        index = values.argmax(axis=0).astype(np.uint8)
        index[~known] = IGNORE
        return CoarseStrip(k, index, values)


def _check_classes(meaning: Meaning, table: ClassTable) -> None:
    if len(meaning.data) != table.n_classes:
        raise Disagreement(
            f"{meaning.path} has probabilities of {len(meaning.data)} classes, the model has {table.n_classes}",
            value=f"{len(meaning.data)} data bands",
            allowed=", ".join(table.names),
        )


def _are_probabilities(meaning: Meaning, table: ClassTable) -> bool:
    """Of a file without this program's tags.

    Raises:
        Disagreement: several data bands that are neither a class map nor probabilities of the table's classes.
    """
    data, path = meaning.data, meaning.path
    if len(data) == 1:
        return False
    if meaning.is_float or len(data) > 4:
        _check_classes(meaning, table)
    whole = all(np.dtype(meaning.dtypes[band - 1]).kind in "iu" for band in data)
    if whole and len(meaning.rgb) == 3 and (len(data) == 3 or len(data) == table.n_classes + 1 or table.has_colors):
        found = values_of(path, meaning.rgb)
        colours = table.rgb if table.has_colors else drawn_colours(table)
        if not found.many and set(found.numbers) <= colours.keys():
            return False
    why = why_no_probabilities(path) if len(data) == table.n_classes else f"{len(data)} data bands for {table.n_classes} classes"
    if why is None:
        return True
    try:
        class_bands(meaning)
    except Disagreement:
        raise Disagreement(
            f"{path} is neither a class map nor probabilities of the model's {table.n_classes} classes",
            value=f"{len(data)} data bands; {why}",
            allowed=f"1 band of codes, 3 of colours, or {table.n_classes} bands with one sum everywhere, each with more than one value",
            hint="mark probabilities with the tag IDGBR_KIND=probabilities (rio edit-info --tag IDGBR_KIND=probabilities FILE)",
        ) from None
    return False


class MemoryCoarse:
    """A coarse map that is in memory already; same interface as `CoarseMap`."""

    def __init__(self, values: NDArray[np.float32] | NDArray[np.uint8], n_classes: int, grid: Grid):
        """`values`: probabilities float [K, H, W], or class indices uint8 [H, W]."""
        self.grid, self.n_classes = grid, n_classes
        self.is_probabilities = values.ndim == 3
        self._values: Any = normalised(values.astype(np.float32), "coarse map") if self.is_probabilities else values

    def strip(self, row: int, height: int) -> CoarseStrip:
        """Rows [row, row + height), cut to the frame."""
        row, stop = max(row, 0), min(row + height, self.grid.height)
        if self.is_probabilities:
            part = self._values[:, row:stop]
            return CoarseStrip(self.n_classes, part.argmax(axis=0).astype(np.uint8), part)
        return CoarseStrip(self.n_classes, self._values[row:stop], None)


def coarse_path(folder: Path, raster_id: str) -> Path:
    """The file of one raster in a folder of coarse maps."""
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
