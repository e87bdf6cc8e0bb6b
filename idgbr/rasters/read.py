"""Reading rasters in windows: images, class maps, probabilities.

Class indices are uint8 with `IGNORE` for "no class"; probabilities are kept as uint8 bands, 255 for 1.
What the samples of a file mean is decided by `idgbr.rasters.meaning` (bands, masks) and `idgbr.rasters.codes` (classes).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window as GdalWindow

from idgbr.errors import Disagreement
from idgbr.labels import IGNORE, UNKNOWN
from idgbr.rasters.codes import coding_of
from idgbr.rasters.grid import Grid, opened, require_same_grid
from idgbr.rasters.meaning import TOLERANCE, Meaning, is_nodata, is_transparency, known_probabilities, meaning_of
from idgbr.rasters.write import RasterWriter, write_class_map, write_probabilities

if TYPE_CHECKING:
    from idgbr.labels import ClassTable

__all__ = [
    "IGNORE",
    "Grid",
    "RasterWriter",
    "Reader",
    "opened",
    "read_labels",
    "read_probabilities",
    "require_placed",
    "require_same_grid",
    "write_class_map",
    "write_probabilities",
]


@dataclass(frozen=True)
class _Facts:
    """What a `Reader` needs to know of its file. bands: as numbered in the file, or in its palette (1 red, 2 green, 3 blue)."""

    meaning: Meaning
    bands: tuple[int, ...]
    alpha: int | None  # band that masks pixels
    nodata: bool  # some data band declares one

    @property
    def masked(self) -> bool:
        return self.alpha is not None or self.nodata or self.meaning.masked


class Reader:
    """Windows of an image file as numbers. Opens the file when first asked, in every process anew; may be pickled, and shared by threads.

    A palette is read as its colours (bands 1, 2, 3); where white is zero, samples are turned so that black is.
    Which pixels are valid does not depend on the bands read. A band marked as alpha masks pixels if it holds transparency; if it holds
    data (near infrared in published RGBIR files), it is a band like the others. `alpha_is_data` decides that for a set of files.

    Args:
        path: anything GDAL reads.
        bands: numbered from 1, in the order wanted; an empty tuple: all of them.
        alpha_is_data: a band that is marked as alpha holds data in this set; else what it holds decides.

    Raises (when first used):
        Missing: no such file. Disagreement: unreadable, complex, or fewer bands than asked for.
    """

    def __init__(self, path: str | Path, bands: tuple[int, ...] = (1, 2, 3), *, alpha_is_data: bool = False):
        self.path = Path(path)
        self.bands = tuple(bands)
        self.alpha_is_data = alpha_is_data
        self._facts: _Facts | None = None

    def __repr__(self) -> str:
        return f"Reader({str(self.path)!r}, bands={self.bands})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "bands": self.bands, "alpha_is_data": self.alpha_is_data, "_facts": None}

    @property
    def grid(self) -> Grid:
        """The grid of the file."""
        return self._look().meaning.grid

    @property
    def nodata(self) -> float | None:
        """The declared nodata value of the first band asked for, or None."""
        facts = self._look()
        return facts.meaning.nodata[0 if facts.meaning.palette is not None else facts.bands[0] - 1]

    @property
    def note(self) -> str | None:
        """What was decided against the marks of the file, for reports; or None."""
        facts = self._look()
        marked = facts.meaning.alpha
        if marked is None or facts.alpha is not None:
            return None
        return f"{self.path.name}: band {marked} is marked as alpha but holds data (infrared?), so it hides no pixel"

    @property
    def n_bands(self) -> int:
        """Number of bands that `read` returns."""
        return len(self._look().bands)

    def _look(self) -> _Facts:
        if self._facts is None:
            meaning = meaning_of(self.path)
            there = (1, 2, 3) if meaning.palette is not None else tuple(range(1, len(meaning.dtypes) + 1))
            bands = self.bands or there
            absent = [band for band in bands if band not in there]
            if absent:
                raise Disagreement(
                    f"{self.path} has {len(there)} band(s), but band {absent[0]} was asked for",
                    value=f"data.bands={bands}",
                    allowed=", ".join(map(str, there)),
                    hint=f"data.bands={','.join(map(str, there[: len(bands)]))}, with a model trained on these bands",
                )
            masks = meaning.alpha is not None and not self.alpha_is_data and is_transparency(self.path)
            alpha = meaning.alpha if masks else None
            nodata = any(meaning.nodata[band - 1] is not None for band in meaning.data)
            self._facts = _Facts(meaning, bands, alpha, nodata)
        return self._facts

    def read(self, row: int, col: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Pixels [row, row+height) x [col, col+width).

        Returns:
            image float32 [C, height, width], numbers of the file; beyond the frame the nearest edge pixel is repeated.
            valid bool [height, width]: False beyond the frame, at nodata (a pixel is nodata only if it is so in all data bands), at
            NaN and infinity in a band read (which come as 0), where a mask or transparency says so.
        """
        facts = self._look()
        image = np.zeros((len(facts.bands), height, width), np.float32)
        valid = np.zeros((height, width), bool)
        inside, top, left = _clip(facts.meaning.grid, row, col, height, width)
        if inside is None:
            return image, valid
        with opened(self.path) as source:
            part, ok = _inside(source, facts, inside)
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
        facts = self._look()
        if facts.masked or any(np.dtype(kind).kind == "f" for kind in facts.meaning.dtypes):
            return self.read(row, col, height, width)[1]
        out = np.zeros((height, width), bool)
        grid = facts.meaning.grid
        out[max(-row, 0) : max(grid.height - row, 0), max(-col, 0) : max(grid.width - col, 0)] = True
        return out


def _inside(source: Any, facts: _Facts, window: GdalWindow) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Samples and validity within the frame; NaN and infinity are left in."""
    meaning = facts.meaning
    wanted = (1,) if meaning.palette is not None else facts.bands
    all_data = meaning.data if facts.alpha == meaning.alpha else tuple(range(1, len(meaning.dtypes) + 1))
    bands = tuple(sorted({*wanted, *all_data})) if facts.nodata else wanted
    mixed = len({meaning.dtypes[band - 1] for band in bands}) > 1
    raw = source.read(bands, window=window, **({"out_dtype": np.float64} if mixed else {}))
    ok = meaning.known(source, window) if facts.alpha == meaning.alpha else np.ones(raw.shape[1:], bool)
    if facts.nodata:
        ok &= ~np.all([is_nodata(raw[bands.index(band)], meaning.nodata[band - 1]) for band in all_data], axis=0)
    if meaning.palette is not None:
        colours = np.moveaxis(meaning.palette[raw[0]], -1, 0)[[band - 1 for band in facts.bands]]
        return colours.astype(np.float32), ok
    part = raw[[bands.index(band) for band in wanted]].astype(np.float32)
    if meaning.white_is_zero and meaning.full is not None:
        part = np.float32(meaning.full) - part
    return part, ok


def _clip(grid: Grid, row: int, col: int, height: int, width: int) -> tuple[GdalWindow | None, int, int]:
    """The part of a window inside the frame, and where its corner lies in the window."""
    top, left, bottom, right = max(row, 0), max(col, 0), min(row + height, grid.height), min(col + width, grid.width)
    if top >= bottom or left >= right:
        return None, 0, 0
    return GdalWindow(left, top, right - left, bottom - top), top - row, left - col  # pyright: ignore


def read_labels(
    path: str | Path,
    table: ClassTable,
    row: int = 0,
    col: int = 0,
    height: int | None = None,
    width: int | None = None,
    *,
    seen: frozenset[int] = frozenset(),
    unknown: int | None = None,
    by_tags: bool = True,
) -> NDArray[np.uint8]:
    """Class indices [h, w] of a label file: codes in one band, colours in three, or a palette, as `idgbr.rasters.codes` decides.

    255 at the table's ignore codes, beyond the frame, where a mask or transparency says so, and at declared nodata.

    Args:
        seen, by_tags: as in `coding_of`.
        unknown: given for codes that the table does not have; None: they are refused.

    Raises:
        Missing: no such file. Disagreement: unreadable, no class map, or a code the table does not know (with a histogram).
    """
    coding = coding_of(path, table, seen, strict=unknown is None, by_tags=by_tags)
    grid = coding.meaning.grid
    height = grid.height - row if height is None else height
    width = grid.width - col if width is None else width
    out = np.full((height, width), IGNORE, np.uint8)
    inside, top, left = _clip(grid, row, col, height, width)
    if inside is None:
        return out
    with opened(path) as source:
        index = coding.read(source, inside, strict=unknown is None)
    if unknown is not None:
        index[index == UNKNOWN] = unknown
    h, w = index.shape
    out[top : top + h, left : left + w] = index
    return out


def read_probabilities(
    path: str | Path, row: int = 0, col: int = 0, height: int | None = None, width: int | None = None
) -> NDArray[np.float32]:
    """Probabilities float32 [K, h, w], summing to 1, of a file by `write_probabilities` (or of any K bands of non-negative numbers).

    Beyond the frame the nearest edge pixel is repeated; where nothing is known (nodata, masked, or all bands 0), all classes are alike.

    Raises:
        Missing: no such file. Disagreement: unreadable, or negative numbers.
    """
    grid = Grid.of(path)
    return known_and_normalised(
        path, row, col, grid.height - row if height is None else height, grid.width - col if width is None else width
    )[0]


def known_and_normalised(path: str | Path, row: int, col: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Probabilities float32 [K, h, w] of the data bands, and where they are known, bool [h, w].

    Not known: beyond the frame, masked, nodata (see `known_probabilities`), all bands 0. Validity comes before any arithmetic.
    """
    meaning = meaning_of(path)
    bottom, right = min(row + height, meaning.grid.height), min(col + width, meaning.grid.width)
    top, left = max(row, 0), max(col, 0)
    if top >= bottom or left >= right:
        return np.full((len(meaning.data), height, width), 1 / len(meaning.data), np.float32), np.zeros((height, width), bool)
    values, valid = Reader(path, meaning.data).read(top, left, bottom - top, right - left)
    valid &= known_probabilities(values, [meaning.nodata[band - 1] for band in meaning.data])
    values[:, ~valid] = 0
    valid &= (values > 0).any(axis=0)
    around = ((top - row, row + height - bottom), (left - col, col + width - right))
    return np.pad(normalised(values, path), ((0, 0), *around), mode="edge"), np.pad(valid, around)


def normalised(values: NDArray[np.float32], where: object) -> NDArray[np.float32]:
    """Non-negative [K, ...] divided by its sum over K; alike for all classes where the sum is 0. Down to -1e-4 counts as 0."""
    if (values < -TOLERANCE).any():
        raise Disagreement(
            f"{where}: negative numbers where probabilities were expected",
            value=f"down to {values.min()}",
            hint="give softmax probabilities, not logits; declare what stands for unknown pixels as nodata",
        )
    values = np.maximum(values, 0)
    total = values.sum(axis=0, dtype=np.float32)
    empty = total == 0
    total[empty] = 1
    out: NDArray[np.float32] = values / total
    if empty.any():
        out[:, empty] = 1 / len(values)
    return out


def require_placed(scene: Path) -> None:
    """Raises:
    Disagreement: the scene is placed by ground control points, RPCs or geolocation arrays only, which the output could not carry; or so
    far from the origin that neighbouring pixels have the same coordinates.
    """
    with opened(scene) as source:
        t = source.transform
        if not t.is_identity:
            corner = max(abs(t.c), abs(t.f))
            if not np.isfinite(list(t)).all() or np.spacing(corner) > Grid.of(scene).pixel / 16:
                raise Disagreement(
                    f"{scene}: its coordinates cannot tell neighbouring pixels apart",
                    value=f"corner ({t.c!r}, {t.f!r}), pixel {t.a!r} x {t.e!r}",
                    hint="assign the right transform first: gdal_edit.py -a_ullr ULX ULY LRX LRY FILE",
                )
            return
        points, arrays = len(source.gcps[0]), source.tags(ns="GEOLOCATION")
        by = f"{points} ground control points" if points else "RPCs" if source.rpcs else "geolocation arrays" if arrays else ""
        how = "-rpc " if source.rpcs and not points else "-geoloc " if arrays and not points else ""
    if by:
        raise Disagreement(
            f"{scene} is placed by {by}, not by a transform",
            hint=f"rectify it first: gdalwarp {how}-r cubic {quote(str(scene))} RECTIFIED.tif",
        )
