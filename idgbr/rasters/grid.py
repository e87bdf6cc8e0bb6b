"""The grid a raster lies on, and a small pool of open files. Every raster file is opened by `opened`."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shlex
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio
from affine import Affine
from rasterio._env import set_gdal_config
from rasterio._err import CPLE_BaseError, stack_errors
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from idgbr.errors import BadRequest, Disagreement, IdgbrError, Missing
from idgbr.rasters.beside import AUX, vrt_sources

SQUARE = 1.05  # sides of a pixel on the ground may differ by this factor where a length in metres is asked for
OPEN_FILES = 64  # data sets kept open in one process
# libjpeg only warns of a truncated file and fills the rest with grey; a scene that is not all there must not be read in silence
READ_OPTIONS = {"GDAL_ERROR_ON_LIBJPEG_WARNING": "YES"}
CACHE_BYTES = 256 * 2**20  # GDAL's cache of blocks in one process; a strip of a scene needs less


@dataclass(frozen=True)
class Grid:
    """Where the pixels lie. Two grids are equal only if every number is."""

    height: int
    width: int
    transform: Affine = Affine.identity()  # noqa: RUF009 - an immutable value
    crs: CRS | None = None

    @classmethod
    def of(cls, path: str | Path) -> Grid:
        """Raises:
        Missing: no such file. Disagreement: not a raster GDAL can read.
        """
        with opened(path) as source:
            return grid_of(source)

    @property
    def pixel(self) -> float:
        """Side of a pixel in units of the CRS (square root of its area)."""
        return math.sqrt(abs(self.transform.determinant))

    def metres(self) -> float | None:
        """Side of a pixel on the ground at the middle of the raster, from its area on the WGS 84 ellipsoid; None without a CRS.

        Right for geographic CRS and for Mercator, whose map unit is not a metre on the ground.
        """
        t = self.transform
        steps = self._on_ground((t.a, t.d), (t.b, t.e))
        if steps is None:
            return None
        (east, north), (east2, north2) = steps
        side = math.sqrt(abs(east * north2 - east2 * north))
        return side if math.isfinite(side) and side > 0 else None

    def sides_m(self) -> tuple[float, float] | None:
        """Width and height of a pixel on the ground in metres, at the middle of the raster; None without a CRS.

        They differ where degrees are the unit: a degree of longitude is cos(latitude) times as long as one of latitude.
        """
        t = self.transform
        steps = self._on_ground((t.a, t.d), (t.b, t.e))
        return None if steps is None else (math.hypot(*steps[0]), math.hypot(*steps[1]))

    def unit_m(self) -> tuple[float, float] | None:
        """Metres on the ground of one unit of the CRS along its x and along its y axis, at the middle of the raster; None without a CRS."""
        steps = self._on_ground((self.pixel, 0.0), (0.0, self.pixel)) if self.pixel else None
        return None if steps is None else (math.hypot(*steps[0]) / self.pixel, math.hypot(*steps[1]) / self.pixel)

    def _on_ground(self, *steps: tuple[float, float]) -> list[tuple[float, float]] | None:
        """(east, north) in metres of steps (dx, dy) in CRS units from the middle of the raster, on the WGS 84 ellipsoid."""
        if self.crs is None:
            return None
        from rasterio.warp import transform as reproject

        t, (col, row) = self.transform, (self.width / 2, self.height / 2)
        x, y = t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f
        try:
            lon, lat = reproject(self.crs, CRS.from_epsg(4326), [x, *(x + dx for dx, _ in steps)], [y, *(y + dy for _, dy in steps)])
        except (RasterioError, CPLE_BaseError):
            return None  # an engineering CRS that has no place on the earth
        if not all(map(math.isfinite, (*lon, *lat))):
            return None  # coordinates beyond what the CRS is for
        phi, axis, e2 = math.radians(lat[0]), 6378137.0, 0.00669437999014  # WGS 84
        prime = axis / math.sqrt(1 - e2 * math.sin(phi) ** 2)  # radius of curvature in the prime vertical, and in the meridian below
        meridian = axis * (1 - e2) / (1 - e2 * math.sin(phi) ** 2) ** 1.5
        return [
            (math.radians(lon[i] - lon[0]) * prime * math.cos(phi), math.radians(lat[i] - lat[0]) * meridian)
            for i in range(1, len(steps) + 1)
        ]

    def require_square(self, asked_by: str) -> None:
        """Raises:
        BadRequest: a pixel's width and height on the ground differ by more than 5 %, so that a length in metres is no number of pixels.
        """
        sides = self.sides_m()
        if sides is None or min(sides) <= 0 or max(sides) <= SQUARE * min(sides):
            return
        raise BadRequest(
            f"{asked_by} is given in metres, but pixels are not square on the ground",
            value=f"a pixel is {sides[0]:.3g} m wide and {sides[1]:.3g} m high ({self})",
            hint="give the length in pixels, or warp image, labels and maps to a projected CRS first (gdalwarp -t_srs EPSG:...)",
        )

    def pixels(self, metres: float, asked_by: str) -> float:
        """A length in metres as pixels.

        Raises:
            BadRequest: the raster has no CRS, so metres mean nothing; or its pixels are not square on the ground.
        """
        self.require_square(asked_by)
        side = self.metres()
        if side is None:
            why = "the raster has no coordinate reference system" if self.crs is None else "its coordinates have no place on the earth"
            raise BadRequest(
                f"{asked_by} is given in metres, but {why}",
                value=f"{metres} m on {self}",
                hint="give the length in pixels, or assign the right CRS first (rio edit-info --crs EPSG:... FILE)",
            )
        return metres / side

    def __str__(self) -> str:
        t = self.transform
        name = "no CRS" if self.crs is None else self.crs.to_string()
        if len(name) > 60:  # WKT of a CRS without an authority code
            name = name[:57] + "..."
        if self.crs is None and t == Affine.identity():
            return f"{self.width} x {self.height} px, not georeferenced"
        unit = (
            "deg"
            if self.crs is not None and self.crs.is_geographic
            else "m"
            if self.crs is not None and self.crs.linear_units == "metre"
            else "units"
        )
        if t.b or t.d:
            size = f"matrix ({t.a!r}, {t.b!r}, {t.d!r}, {t.e!r})"
        elif t.a == -t.e:
            size = f"{t.a!r} {unit}"
        else:
            size = f"{t.a!r} x {-t.e!r} {unit}"
        return f"{self.width} x {self.height} px, {size}, {name}, corner ({t.c!r}, {t.f!r})"


def require_same_grid(grid: Grid, other: Grid, name: str, other_name: str, out: str = "ALIGNED.tif") -> None:
    """Raises:
    Disagreement: the grids differ; the message has both and the command that aligns them.
    """
    if grid != other:
        raise Disagreement(
            f"`{other_name}` and `{name}` are on different grids. {Path(name).name}: {grid}; {Path(other_name).name}: {other}. "
            "Class maps are never resampled unasked",
            hint=f"align by nearest neighbour: `{shlex.join(['idgbr', 'align', other_name, '--like', name, '-o', out])}`",
        )


# ---- reading ------------------------------------------------------------------------------------------------------------

_lock = threading.RLock()
_open: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
_of_parent: list[Any] = []


def _after_fork() -> None:
    # The child shares file offsets with its parent: it must open its own, and must not close (flush) the parent's.
    global _lock, _open
    _of_parent.append(_open)
    _lock, _open = threading.RLock(), OrderedDict()


os.register_at_fork(after_in_child=_after_fork)


def file_key(path: str | Path) -> tuple[Any, ...]:
    """What identifies the present content of a file without reading it: path, modification time (ns), size (bytes), inode.

    The same of its .aux.xml and .msk follows, which hold nodata, palette and mask where the format cannot.

    Raises:
        Missing: no such file.
    """
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise Missing(f"no such raster: {path}", value=getattr(error, "strerror", error), hint="check the path") from error
    return str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino, *_stamp(f"{path}{AUX}"), *_stamp(f"{path}.msk")


def _stamp(path: str) -> tuple[int, ...]:
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


@functools.cache
def limit_cache() -> None:
    """Limit GDAL's cache of blocks to `CACHE_BYTES`, once a process, before its first raster; GDAL_CACHEMAX in the environment wins.

    GDAL's own limit is 5 % of the machine's memory in every process, workers included.
    """
    if "GDAL_CACHEMAX" not in os.environ:
        set_gdal_config("GDAL_CACHEMAX", CACHE_BYTES)


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A rasterio data set, one at a time in a process, from a small pool of open files.

    Raises:
        Missing: no such file, or no permission. Disagreement: not a raster, a truncated one, or a container without bands of its own.
    """
    path = Path(path)
    key = file_key(path)
    limit_cache()
    with _lock, rasterio.Env(**READ_OPTIONS), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a photograph without a CRS is a fair input
        with stack_errors():  # rasterio leaves GDAL's error of a failed read standing, and may raise it for the next file: forget it
            pass
        try:
            source = _open.pop(key, None)
            if source is None:
                _check_complete(path)
                source = rasterio.open(path)
                if source.count == 0:
                    raise _without_bands(path, source)
            _open[key] = source
            while len(_open) > OPEN_FILES:
                _open.popitem(last=False)[1].close()
            yield source
        except (RasterioError, CPLE_BaseError) as error:
            raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> IdgbrError:
    """The error for a file that GDAL cannot read, to be raised: no permission, or damaged."""
    if not os.access(path, os.R_OK):
        return Missing(f"no permission to read {path}", hint=f"chmod u+r {shlex.quote(str(path))}")
    cause = f"{error.__cause__}" if error.__cause__ is not None else f"{error}"
    return Disagreement(
        f"cannot read {path}: the file is truncated, damaged, or not a raster ({cause})",
        hint=f"copy or download it again; `rio info {shlex.quote(str(path))}` shows what GDAL sees",
    )


def _without_bands(path: Path, source: Any) -> IdgbrError:
    with source:
        parts = list(source.subdatasets)
        driver = source.driver
    shown = ", ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")
    return Disagreement(
        f"{path} is a container ({driver}) without bands of its own",
        value=f"subdatasets {shown}" if parts else "no subdatasets",
        hint=f"write one subdataset as a file: gdal_translate {shlex.quote(parts[0])} ONE.tif" if parts else "another file",
    )


def _check_complete(path: Path) -> None:
    """GDAL reads a truncated PNG without a word; its end marker tells."""
    if not path.is_file() or not os.access(path, os.R_OK):
        return  # GDAL says what is wrong with it
    with open(path, "rb") as file:
        start = file.read(12)
        if start.lstrip().startswith(b"<VRT"):
            _check_sources(path)
        if not start.startswith(b"\x89PNG\r\n\x1a\n"):
            return
        file.seek(max(0, path.stat().st_size - 4096))
        if b"IEND" not in file.read():
            raise Disagreement(f"{path} is a truncated PNG: its end is missing", hint="copy or download it again")


def _check_sources(path: Path) -> None:
    """A virtual raster whose files are gone was seen to be read without an error: each must be there."""
    for source in vrt_sources(path):
        if not source.exists():
            raise Disagreement(f"{path} names a file that is not there", value=source, hint="copy the files of the virtual raster too")


def grid_of(source: Any) -> Grid:
    """The grid of an open rasterio data set."""
    return Grid(source.height, source.width, source.transform, source.crs or None)
