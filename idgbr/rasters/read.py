"""Rasters in and out: windowed reading, label files, class maps and probabilities.

Class indices are uint8 with 255 for "no class", declared as nodata; probabilities are kept as uint8 bands, 255 for 1.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window as GdalWindow

from idgbr.errors import Disagreement
from idgbr.rasters.grid import Grid, grid_of, opened, require_same_grid
from idgbr.rasters.write import IGNORE, RasterWriter, write_class_map, write_probabilities

if TYPE_CHECKING:
    from idgbr.labels import ClassTable

__all__ = [
    "IGNORE",
    "Grid",
    "RasterWriter",
    "Reader",
    "read_labels",
    "read_probabilities",
    "require_same_grid",
    "write_class_map",
    "write_probabilities",
]


class Reader:
    """Windows of an image file as raw numbers. Opens the file when first asked, in every process anew;
    may be pickled, and shared by threads.

    Args:
        path: anything GDAL reads.
        bands: numbered from 1, in the order wanted; an empty tuple: all of them.
        alpha_is_data: a band that is marked as alpha holds data (near infrared in published RGBIR files), whichever bands are read.

    Raises (when first used):
        Missing: no such file. Disagreement: unreadable, complex, or fewer bands than asked for.
    """

    def __init__(self, path: str | Path, bands: tuple[int, ...] = (1, 2, 3), *, alpha_is_data: bool = False):
        self.path = Path(path)
        self.bands = tuple(bands)
        self.alpha_is_data = alpha_is_data
        self._floats = False
        self._facts: tuple[Grid, float | None, tuple[int, ...], bool] | None = None

    def __repr__(self) -> str:
        return f"Reader({str(self.path)!r}, bands={self.bands})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "bands": self.bands, "alpha_is_data": self.alpha_is_data, "_facts": None, "_floats": False}

    @property
    def grid(self) -> Grid:
        return self._look()[0]

    @property
    def nodata(self) -> float | None:
        """The declared nodata value of the first band asked for, or None."""
        return self._look()[1]

    @property
    def n_bands(self) -> int:
        return len(self._look()[2])

    def _look(self) -> tuple[Grid, float | None, tuple[int, ...], bool]:
        if self._facts is None:
            with opened(self.path) as source:
                bands = self.bands or tuple(source.indexes)
                absent = [band for band in bands if band not in source.indexes]
                if absent:
                    few = ",".join(map(str, source.indexes[: len(bands)]))
                    raise Disagreement(
                        f"{self.path} has {source.count} band(s), but band {absent[0]} was asked for",
                        value=f"data.bands={bands}",
                        allowed=", ".join(map(str, source.indexes)),
                        hint=f"data.bands={few}, with a model trained on these bands",
                    )
                kinds = {source.dtypes[band - 1] for band in bands}
                if any("complex" in kind for kind in kinds):
                    raise Disagreement(
                        f"{self.path} has complex numbers", value=", ".join(sorted(kinds)), hint="write amplitude or intensity first"
                    )
                # Every band may carry its own kind of mask. All valid: no mask to read. A fourth band marked
                # as alpha but asked for by number is data (near infrared in published RGBIR files), not transparency.
                flags = [source.mask_flag_enums[band - 1] for band in bands]
                as_data = self.alpha_is_data or any(source.colorinterp[band - 1] == ColorInterp.alpha for band in bands)
                masked = any(MaskFlags.all_valid not in flag and not (as_data and MaskFlags.alpha in flag) for flag in flags)
                self._floats = any(np.dtype(kind).kind == "f" for kind in kinds)
                self._facts = (grid_of(source), source.nodatavals[bands[0] - 1], bands, masked)
        return self._facts

    def read(self, row: int, col: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Pixels [row, row+height) x [col, col+width).

        Returns:
            image float32 [C, height, width], raw numbers; beyond the frame the nearest edge pixel is repeated.
            valid bool [height, width]: False beyond the frame, at nodata (a pixel is nodata only if it is so in all bands),
            at NaN and infinity (which come as 0), where alpha is 0.
        """
        grid, _, bands, masked = self._look()
        image = np.zeros((len(bands), height, width), np.float32)
        valid = np.zeros((height, width), bool)
        inside, top, left = _clip(grid, row, col, height, width)
        if inside is None:
            return image, valid
        with opened(self.path) as source:
            part = source.read(bands, window=inside, out_dtype=np.float32)
            ok = source.read_masks(bands, window=inside).any(axis=0) if masked else np.ones(part.shape[1:], bool)
        finite = np.isfinite(part)
        if not finite.all():
            ok &= finite.all(axis=0)
            part[~finite] = 0
        h, w = ok.shape
        valid[top : top + h, left : left + w] = ok
        if (h, w) == (height, width):
            return part, valid
        return np.pad(part, ((0, 0), (top, height - top - h), (left, width - left - w)), mode="edge"), valid

    def valid(self, row: int, col: int, height: int, width: int) -> NDArray[np.bool_]:
        """The second half of `read`; whole-number rasters without any mask are not read for it."""
        grid, _, _, masked = self._look()
        if masked or self._floats:
            return self.read(row, col, height, width)[1]
        out = np.zeros((height, width), bool)
        out[max(-row, 0) : max(grid.height - row, 0), max(-col, 0) : max(grid.width - col, 0)] = True
        return out


def _clip(grid: Grid, row: int, col: int, height: int, width: int) -> tuple[GdalWindow | None, int, int]:
    """The part of a window inside the frame, and where its corner lies in the window."""
    top, left, bottom, right = max(row, 0), max(col, 0), min(row + height, grid.height), min(col + width, grid.width)
    if top >= bottom or left >= right:
        return None, 0, 0
    return GdalWindow(left, top, right - left, bottom - top), top - row, left - col  # pyright: ignore


def read_labels(
    path: str | Path, table: ClassTable, row: int = 0, col: int = 0, height: int | None = None, width: int | None = None
) -> NDArray[np.uint8]:
    """Class indices [h, w] of a label file: codes in one band, colours in three, or a palette
    (its colours if the table has colours, else its codes).

    255 at the table's ignore codes, beyond the frame, where alpha is 0, and at declared nodata unless that number is a code of the table.

    Raises:
        Missing: no such file. Disagreement: unreadable, or a code the table does not know (with a histogram).
    """
    known = {*(code for c in table.classes for code in c.codes), *table.ignore}
    with opened(path) as source:
        grid = grid_of(source)
        height = grid.height - row if height is None else height
        width = grid.width - col if width is None else width
        out = np.full((height, width), IGNORE, np.uint8)
        inside, top, left = _clip(grid, row, col, height, width)
        if inside is None:
            return out
        raw = source.read(window=inside)
        ok = np.ones(raw.shape[1:], bool)
        flags = source.mask_flag_enums[0]
        if MaskFlags.all_valid not in flags and (MaskFlags.nodata not in flags or source.nodatavals[0] not in known):
            ok = source.read_masks(1, window=inside) > 0
        palette = source.colormap(1) if source.colorinterp[0] == ColorInterp.palette else None
    if raw.dtype.kind == "f":
        ok &= np.isfinite(raw).all(axis=0)
    if palette is not None and table.has_colors:
        lut = np.zeros((256, 3), np.uint8)
        for index, colour in palette.items():
            lut[index] = colour[:3]
        codes = lut[raw[0]]
    elif len(raw) >= 3:
        codes = np.moveaxis(raw[:3], 0, -1)
    else:  # one band, or grey and alpha
        codes = raw[0]
    h, w = ok.shape
    if ok.all():
        encoded = table.encode(codes, path)
    else:
        encoded = np.full((h, w), IGNORE, np.uint8)
        if ok.any():
            encoded[ok] = table.encode(codes[ok][None], path)[0]
    out[top : top + h, left : left + w] = encoded
    return out


def read_probabilities(
    path: str | Path, row: int = 0, col: int = 0, height: int | None = None, width: int | None = None
) -> NDArray[np.float32]:
    """Probabilities float32 [K, h, w], summing to 1, of a file by `write_probabilities` (or of any K bands of non-negative numbers).

    Beyond the frame the nearest edge pixel is repeated; where all bands are 0 (nothing known), all classes are alike.

    Raises:
        Missing: no such file. Disagreement: unreadable, or negative numbers.
    """
    reader = Reader(path, bands=())
    grid = reader.grid
    values, _ = reader.read(row, col, grid.height - row if height is None else height, grid.width - col if width is None else width)
    return normalised(values, path)


def normalised(values: NDArray[np.float32], where: object) -> NDArray[np.float32]:
    """Non-negative [K, ...] divided by its sum over K; alike for all classes where the sum is 0."""
    if (values < 0).any():
        raise Disagreement(
            f"{where}: negative numbers where probabilities were expected",
            value=f"down to {values.min()}",
            hint="give softmax probabilities, not logits",
        )
    total = values.sum(axis=0, dtype=np.float32)
    empty = total == 0
    total[empty] = 1
    out: NDArray[np.float32] = values / total
    if empty.any():
        out[:, empty] = 1 / len(values)
    return out


def require_placed(scene: Path) -> None:
    """Raises:
    Disagreement: the scene is placed by ground control points or RPCs only, which the output could not carry.
    """
    from idgbr.rasters.grid import opened

    with opened(scene) as source:
        if source.crs is None and source.gcps[0]:
            raise Disagreement(f"{scene} is placed by {len(source.gcps[0])} ground control points, not by a transform",
                               hint=f"rectify it first: gdalwarp -r cubic {quote(str(scene))} RECTIFIED.tif")  # fmt: skip
