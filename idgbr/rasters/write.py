"""Writing rasters, whole or not at all: a temporary name in the same folder, read back and compared, then renamed.

GDAL reports some failed writes only when it flushes, and then only in its log; blocks that never reached the disk
read as zeros. So pixels, mask, transform and CRS are read back and compared before the file gets its name.
"""

from __future__ import annotations

import functools
import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window as GdalWindow

from idgbr.errors import Disagreement, IdgbrError, Missing
from idgbr.files import check_output, not_written, publish, remove_beginning, sync, temporary_beside
from idgbr.labels import IGNORE
from idgbr.rasters.grid import Grid
from idgbr.rasters.meaning import PREFIX

if TYPE_CHECKING:
    from idgbr.labels import ClassTable

BLOCK_PX = 256


# Masks go into the file, and nothing into a file beside it, which would not be renamed with it
_ENV = {"GDAL_TIFF_INTERNAL_MASK": "YES", "GDAL_PAM_ENABLED": "NO"}


def check_crs(grid: Grid) -> None:
    """
    Raises:
        Disagreement: GeoTIFF cannot hold the CRS of the grid (some, as rotated poles, GDAL keeps only in a file
            beside it).
    """
    if grid.crs is not None and not _survives(grid.crs.to_wkt()):
        raise Disagreement(
            "GeoTIFF cannot hold the coordinate reference system, and rasters are written as GeoTIFF",
            value=f"{grid.crs.to_string()[:120]}",
            allowed="geographic and projected systems that GeoTIFF knows, as all with an EPSG code",
            hint="warp the inputs to such a system first: gdalwarp -t_srs EPSG:4326 -r cubic SCENE OUT.tif (class maps: -r near)",
        )


@functools.lru_cache(maxsize=256)
def _survives(wkt: str) -> bool:
    """Whether a CRS reads back from a GeoTIFF of one pixel, held in memory."""
    crs = CRS.from_wkt(wkt)
    try:
        with warnings.catch_warnings(), rasterio.Env(**_ENV), MemoryFile() as memory:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with memory.open(driver="GTiff", height=1, width=1, count=1, dtype="uint8", crs=crs, transform=_PLACE) as file:
                file.write(np.zeros((1, 1, 1), np.uint8))
            with memory.open() as file:
                return _same_crs(crs, file.crs or None)
    except (RasterioError, CPLE_BaseError):
        return False


_PLACE = Affine(1, 0, 10, 0, -1, 50)


def _same_crs(wanted: CRS | None, found: CRS | None) -> bool:
    """Equal, or at least the same projection and datum: names and remarks of a CRS without a code may get lost."""
    if wanted is None or found is None or wanted == found:
        return wanted is found or (wanted is not None and wanted == found)
    if wanted.is_geographic != found.is_geographic or wanted.is_projected != found.is_projected:
        return False
    first, second = wanted.to_dict(projjson=False), found.to_dict(projjson=False)
    return bool(first) and {k: v for k, v in first.items() if k not in _NO_MATTER} == {
        k: v for k, v in second.items() if k not in _NO_MATTER
    }


_NO_MATTER = ("no_defs", "wktext", "type")


class RasterWriter:
    """A GeoTIFF written in rows from top to bottom; a context manager. Leaving it by an exception leaves nothing
    behind.

    Args:
        path: `.tif` or `.tiff`; an existing file is replaced at the end, in one step.
        grid: written exactly.
        count, dtype: bands.
        nodata: declared if given.
        colours: palette of band 1, by value, RGB.
        marks: colour interpretation of the bands; default: grey and undefined.
        bits: of a sample, where they are fewer than its type has.
        masked: an internal mask is written too; give `valid` to `write`.
        tags: of the file. descriptions: of the bands.
        cog: a Cloud Optimized GeoTIFF with overviews (nearest, so that every overview pixel is a class that is there).

    Raises:
        BadRequest: another suffix. Missing: no folder, no permission, no space.
        Disagreement: a CRS that GeoTIFF cannot hold.
    """

    def __init__(
        self,
        path: str | Path,
        grid: Grid,
        count: int = 1,
        dtype: str = "uint8",
        *,
        nodata: float | None = None,
        colours: Mapping[int, tuple[int, int, int]] | None = None,
        tags: Mapping[str, str] | None = None,
        descriptions: tuple[str, ...] = (),
        marks: Sequence[ColorInterp] = (),
        bits: int | None = None,
        masked: bool = False,
        cog: bool = False,
    ):
        self.path, self.grid, self.cog, self.masked = Path(path), grid, cog, masked
        check_output(self.path)
        check_crs(grid)
        self._temporary = temporary_beside(self.path.with_suffix(".tif"))
        self._sums: list[tuple[int, int, int, int]] = []  # row, height, crc of the bands and of the mask
        profile: dict[str, Any] = {
            "driver": "GTiff", "height": grid.height, "width": grid.width, "count": count, "dtype": dtype, "nodata": nodata,
            "crs": grid.crs, "transform": grid.transform, "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX,
            "compress": "deflate", "interleave": "band", "photometric": "palette" if colours else "minisblack", "bigtiff": "if_safer",
        }  # fmt: skip
        self._bits = {"nbits": bits} if bits is not None and bits < np.dtype(dtype).itemsize * 8 else {}
        profile |= self._bits
        marks = [ColorInterp.gray] + [ColorInterp.undefined] * (count - 1) if not marks else list(marks)
        if not colours and marks[:3] == [ColorInterp.red, ColorInterp.green, ColorInterp.blue]:
            profile["photometric"] = "rgb"
        try:
            with warnings.catch_warnings(), rasterio.Env(**_ENV):
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                self._file = rasterio.open(self._temporary, "w", **profile)
                if colours:
                    table = {value: (*colour, 255) for value, colour in colours.items()}
                    unknown = {} if nodata is None or int(nodata) in table else {int(nodata): (0, 0, 0, 0)}
                    self._file.write_colormap(1, table | unknown)
                    if count > 1:
                        self._file.colorinterp = [ColorInterp.palette, *marks[1:]]
                else:
                    self._file.colorinterp = marks
                if tags:
                    self._file.update_tags(**tags)
                for band, text in enumerate(descriptions, 1):
                    self._file.set_band_description(band, text)
        except (RasterioError, CPLE_BaseError, OSError) as error:
            self._discard()
            raise self._diagnose(error) from error

    def write(self, row: int, block: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> None:
        """Rows [count, h, width] (or [h, width] for one band) from `row` on, and with `masked` which pixels are
        valid, [h, width]."""
        block = np.ascontiguousarray(block if block.ndim == 3 else block[None])
        window = GdalWindow(0, row, self.grid.width, block.shape[1])
        mask = np.where(valid, 255, 0).astype(np.uint8) if valid is not None else None
        try:
            with rasterio.Env(**_ENV):
                self._file.write(block, window=window)
                if mask is not None:
                    self._file.write_mask(mask, window=window)
        except (RasterioError, CPLE_BaseError) as error:
            raise self._diagnose(error) from error
        self._sums.append((row, block.shape[1], zlib.crc32(block.tobytes()), 0 if mask is None else zlib.crc32(mask.tobytes())))

    def __enter__(self) -> RasterWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._finish()
        except (RasterioError, CPLE_BaseError, OSError) as failure:
            raise self._diagnose(failure) from failure
        finally:
            self._discard()

    def _finish(self) -> None:
        with warnings.catch_warnings(), rasterio.Env(**_ENV):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._file.close()
            self._verify(self._temporary)
            if self.cog:
                target = self._temporary.with_name(self._temporary.name.removesuffix(".tif") + ".cog.tif")
                rasterio.shutil.copy(
                    self._temporary,
                    target,
                    driver="COG",
                    compress="deflate",
                    blocksize=512,
                    overview_resampling="nearest",
                    bigtiff="if_safer",
                    **self._bits,
                )
                self._verify(target)
            else:
                target = self._temporary
        publish(target, self.path)

    def _verify(self, path: Path) -> None:
        with rasterio.open(path) as file:
            if (file.transform, file.height, file.width) != (self.grid.transform, self.grid.height, self.grid.width):
                raise OSError(f"the grid that was written does not read back: {file.transform[:6]}")
            if not _same_crs(self.grid.crs, file.crs or None):
                raise OSError(f"the CRS that was written does not read back: {file.crs}")
            for row, height, crc, mask_crc in self._sums:
                window = GdalWindow(0, row, self.grid.width, height)
                if zlib.crc32(file.read(window=window).tobytes()) != crc:
                    raise OSError(f"what was written at row {row} does not read back")
                if self.masked and zlib.crc32(file.read_masks(1, window=window).tobytes()) != mask_crc:
                    raise OSError(f"the mask that was written at row {row} does not read back")

    def _discard(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None and not file.closed:
            try:
                file.close()
            except (RasterioError, CPLE_BaseError):  # closing a file that could not be written; it is deleted next
                file = None
        remove_beginning(self.path.parent, self._temporary.name.removesuffix(".tif"))

    def _diagnose(self, error: BaseException) -> IdgbrError:
        """GDAL's text says little; the system call that fails the same way says which it is."""
        if isinstance(error, OSError) and error.errno:
            return not_written(self.path, error)
        probe = temporary_beside(self.path)
        try:
            probe.write_bytes(bytes(1 << 20))
            sync(probe)
        except OSError as cause:
            return not_written(self.path, cause)
        finally:
            if probe.exists():  # a read-only file system refuses to remove even what is not there
                probe.unlink()
        return Missing(f"cannot write {self.path}: {error.__cause__ or error}", hint="another folder, or more free space")


def class_tags(table: ClassTable | None) -> dict[str, str]:
    """Tags that say what the numbers of a class map mean."""
    return (
        {}
        if table is None
        else {f"{PREFIX}CLASSES": json.dumps(json.loads(table.to_json())), **{f"CLASS_{i}": n for i, n in enumerate(table.names)}}
    )


def class_colours(table: ClassTable | None) -> dict[int, tuple[int, int, int]] | None:
    """Class index -> RGB for the colour table of a class map; None without a class table."""
    return None if table is None else dict(enumerate(table.colors))


def class_map_writer(
    path: str | Path, grid: Grid, table: ClassTable | None = None, tags: Mapping[str, str] | None = None, *, cog: bool = False
) -> RasterWriter:
    """Writer of class indices uint8 in one band, 255 declared as nodata, with the table's colours and names.

    Raises:
        BadRequest, Missing: as `RasterWriter`.
    """
    return RasterWriter(
        path,
        grid,
        nodata=IGNORE,
        colours=class_colours(table),
        tags={**class_tags(table), **(tags or {})},
        descriptions=("class",),
        cog=cog,
    )


def write_class_map(
    path: str | Path,
    index: NDArray[np.uint8],
    grid: Grid,
    table: ClassTable | None = None,
    tags: Mapping[str, str] | None = None,
    *,
    cog: bool = False,
) -> None:
    """Class indices uint8 [H, W] as `class_map_writer` writes them.

    Raises:
        BadRequest, Missing: as `RasterWriter`.
    """
    with class_map_writer(path, grid, table, tags, cog=cog) as writer:
        writer.write(0, index)


def quantise(probabilities: NDArray[np.floating]) -> NDArray[np.uint8]:
    """[0, 1] to 0..255, rounded to the nearest."""
    return np.rint(np.clip(probabilities, 0, 1) * 255).astype(np.uint8)


def write_probabilities(
    path: str | Path,
    probabilities: NDArray[np.floating],
    grid: Grid,
    names: tuple[str, ...] = (),
    tags: Mapping[str, str] | None = None,
    *,
    cog: bool = False,
) -> None:
    """Probabilities [K, H, W] as K uint8 bands, 255 for 1; `read_probabilities` divides by the sum, so they sum to 1
    again.

    Raises:
        BadRequest, Missing: as `RasterWriter`.
    """
    with RasterWriter(
        path, grid, len(probabilities), descriptions=names, tags={f"{PREFIX}KIND": "probabilities", **(tags or {})}, cog=cog
    ) as writer:
        writer.write(0, quantise(probabilities))
