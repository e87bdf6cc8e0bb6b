"""Writing rasters, whole or not at all: a temporary name in the same folder, read back and compared, then renamed.

GDAL reports some failed writes only when it flushes, and then only in its log; blocks that never reached the disk read as zeros.
So what was written is read back and compared by checksum before the file gets its name.
"""

from __future__ import annotations

import json
import os
import uuid
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as GdalWindow

from idgbr.errors import IdgbrError, Missing
from idgbr.files import check_output, not_written, remove_beginning
from idgbr.rasters.grid import Grid

if TYPE_CHECKING:
    from idgbr.labels import ClassTable

IGNORE = 255  # the same number as labels.IGNORE
BLOCK_PX = 256
PREFIX = "IDGBR_"  # of the tags this program writes


class RasterWriter:
    """A GeoTIFF written in rows from top to bottom; a context manager. Leaving it by an exception leaves nothing behind.

    Args:
        path: `.tif` or `.tiff`; an existing file is replaced at the end, in one step.
        grid: written exactly.
        count, dtype: bands.
        nodata: declared if given.
        colours: of band 1, by value, RGB.
        tags: of the file. descriptions: of the bands.
        cog: a Cloud Optimized GeoTIFF with overviews (nearest, so that every overview pixel is a class that is there).

    Raises:
        BadRequest: another suffix. Missing: no folder, no permission, no space.
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
        cog: bool = False,
    ):
        self.path, self.grid, self.cog = Path(path), grid, cog
        check_output(self.path)
        self._temporary = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex}.tif")
        self._sums: list[tuple[int, int, int]] = []  # row, height, crc
        profile: dict[str, Any] = {
            "driver": "GTiff", "height": grid.height, "width": grid.width, "count": count, "dtype": dtype, "nodata": nodata,
            "crs": grid.crs, "transform": grid.transform, "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX,
            "compress": "deflate", "interleave": "band", "photometric": "palette" if colours else "minisblack", "bigtiff": "if_safer",
        }  # fmt: skip
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                self._file = rasterio.open(self._temporary, "w", **profile)
                if colours:
                    table = {value: (*colour, 255) for value, colour in colours.items()}
                    self._file.write_colormap(1, table | ({int(nodata): (0, 0, 0, 0)} if nodata is not None else {}))
                else:
                    self._file.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (count - 1)
                if tags:
                    self._file.update_tags(**tags)
                for band, text in enumerate(descriptions, 1):
                    self._file.set_band_description(band, text)
        except (RasterioError, CPLE_BaseError, OSError) as error:
            self._discard()
            raise self._diagnose(error) from error

    def write(self, row: int, block: NDArray[Any]) -> None:
        """Rows [count, h, width] (or [h, width] for one band) from `row` on."""
        block = np.ascontiguousarray(block if block.ndim == 3 else block[None])
        try:
            self._file.write(block, window=GdalWindow(0, row, self.grid.width, block.shape[1]))
        except (RasterioError, CPLE_BaseError) as error:
            raise self._diagnose(error) from error
        self._sums.append((row, block.shape[1], zlib.crc32(block.tobytes())))

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
        with warnings.catch_warnings():
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
                )
                self._verify(target)
            else:
                target = self._temporary
        with open(target, "rb") as file:
            os.fsync(file.fileno())
        os.replace(target, self.path)

    def _verify(self, path: Path) -> None:
        with rasterio.open(path) as file:
            for row, height, crc in self._sums:
                if zlib.crc32(file.read(window=GdalWindow(0, row, self.grid.width, height)).tobytes()) != crc:
                    raise OSError(f"what was written at row {row} does not read back")

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
        probe = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex}.probe")
        try:
            with open(probe, "wb") as file:
                file.write(bytes(1 << 20))
                file.flush()
                os.fsync(file.fileno())
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
    return None if table is None else dict(enumerate(table.colors))


def write_class_map(
    path: str | Path,
    index: NDArray[np.uint8],
    grid: Grid,
    table: ClassTable | None = None,
    tags: Mapping[str, str] | None = None,
    *,
    cog: bool = False,
) -> None:
    """Class indices uint8 [H, W] as one band, 255 declared as nodata, with the table's colours and names.

    Raises:
        BadRequest, Missing: as `RasterWriter`.
    """
    with RasterWriter(
        path,
        grid,
        nodata=IGNORE,
        colours=class_colours(table),
        tags={**class_tags(table), **(tags or {})},
        descriptions=("class",),
        cog=cog,
    ) as writer:
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
    """Probabilities [K, H, W] as K uint8 bands, 255 for 1; `read_probabilities` divides by the sum, so they sum to 1 again.

    Raises:
        BadRequest, Missing: as `RasterWriter`.
    """
    with RasterWriter(
        path, grid, len(probabilities), descriptions=names, tags={f"{PREFIX}KIND": "probabilities", **(tags or {})}, cog=cog
    ) as writer:
        writer.write(0, quantise(probabilities))
