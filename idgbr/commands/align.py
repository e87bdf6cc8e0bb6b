"""`idgbr align`: a class map brought onto another raster's grid, by nearest neighbour only, so that no class is invented."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np

from idgbr.errors import BadRequest, Disagreement
from idgbr.interfaces import Json

if TYPE_CHECKING:
    from idgbr.rasters.grid import Grid
    from idgbr.rasters.meaning import Meaning

STRIP_PX = 512  # rows read at once
_VRT_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32", "uint64": "UInt64",
    "int64": "Int64", "float32": "Float32", "float64": "Float64",
}  # fmt: skip


def align(map: Path, like: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write `map` on the grid of `like`: every output pixel takes the value of the map's pixel its centre lies in.

    Bands, data type, colours, colour interpretation, nodata, tags and band names are kept. Pixels that a mask or transparency of the map
    leaves unknown, and those outside of the map, are unknown in the output: by its nodata, its transparency, or (where it has neither) the
    highest value that an 8-bit class map does not use, then declared as nodata; else by a mask within the file.
    Where white is zero in the map, black is in the output. A map without any georeference (a PNG) but of the scene's size is laid on it
    pixel by pixel. Prints the output's path.

    Raises:
        BadRequest: `map` or `like` has no CRS (pixels cannot be placed); `out` is there or no GeoTIFF. Missing: no such file, not writable.
        Disagreement: the two do not overlap; one is placed by control points or RPCs only; GeoTIFF cannot hold the CRS.
    """
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import CRSError, RasterioError

    from idgbr.files import check_apart, check_output
    from idgbr.rasters.grid import Grid, unreadable
    from idgbr.rasters.meaning import meaning_of
    from idgbr.rasters.read import require_placed

    map, like, out = Path(map), Path(like), Path(out)
    check_output(out, overwrite)
    check_apart(out, map, like)
    meaning, grid = meaning_of(map), Grid.of(like)
    for path in (map, like):
        require_placed(path)
    bare = meaning.grid == Grid(grid.height, grid.width)  # no georeference, same size
    for path, found in ((map, meaning.grid), (like, grid)):
        if found.crs is None and meaning.grid != grid and not bare:
            raise BadRequest(
                f"{path} has no coordinate reference system, so the two cannot be laid over each other",
                value=f"{map.name}: {meaning.grid}; {like.name}: {grid}",
                hint=f"assign it if you know it: rio edit-info --crs EPSG:... --transform ... {quote(str(path))}",
            )
    try:
        _write(meaning, grid, out, bare or meaning.grid == grid, f"{map.name}: {meaning.grid}; {like.name}: {grid}")
    except CRSError as error:
        raise Disagreement(f"no way from the CRS of {map} to that of {like}: {error}") from error
    except (RasterioError, CPLE_BaseError) as error:
        raise unreadable(map, error) from error
    print(f"{map.name}: {meaning.grid}\n{like.name}: {grid}", file=sys.stderr)
    print(out)


def _write(meaning: Meaning, grid: Grid, out: Path, same: bool, grids: str) -> None:
    """The map of `meaning` on `grid`, strip by strip, by nearest neighbour unless the grids are the `same`."""
    import rasterio
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.vrt import WarpedVRT
    from rasterio.windows import Window

    from idgbr.rasters.grid import opened
    from idgbr.rasters.write import RasterWriter

    turn = meaning.full if meaning.white_is_zero else None
    with opened(meaning.path) as source:
        marks = list(source.colorinterp)
        palette = source.colormap(1) if meaning.palette is not None else {}
        tags = {k: v for k, v in source.tags().items() if k not in ("AREA_OR_POINT", "OVR_RESAMPLING_ALG")}
        names = tuple(text or "" for text in source.descriptions)
    nodata, declared = _nodata(meaning), None
    unknown: Any = nodata
    if by_tag := nodata is None and all(value is not None for value in meaning.nodata):  # a transparent colour; its tag is kept
        unknown = np.array(meaning.nodata)[:, None]
    elif nodata is None and meaning.alpha is None and (meaning.masked or not same):
        unknown = nodata = declared = _unused(meaning)
    masked = nodata is None and not by_tag and meaning.alpha is None and (meaning.masked or not same)
    colours = {value: (r, g, b) for value, (r, g, b, _) in palette.items()}
    if declared is not None and colours:  # in a colour of its own, so that no reader takes it for a class
        colours[declared] = next(c for v in range(128, 0, -1) if (c := (v, v, v - 1)) not in colours.values())
    profile: Json = {
        "nodata": nodata if turn is None or nodata is None else turn - nodata,
        "colours": colours or None, "tags": tags, "descriptions": names,
        "marks": [ColorInterp.gray if turn is not None else mark for mark in marks], "bits": None if colours else meaning.bits,
        "masked": masked, "cog": True,
    }  # fmt: skip
    n = len(meaning.dtypes)
    overlap = same
    with warnings.catch_warnings(), rasterio.open(_with_validity(meaning)) as source:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        place = {"crs": grid.crs, "transform": grid.transform, "height": grid.height, "width": grid.width}
        with contextlib.ExitStack() as stack:
            view = source
            if not same:
                view = stack.enter_context(WarpedVRT(source, **place, resampling=Resampling.nearest, tolerance=1e-6, warp_mem_limit=64))
            writer = stack.enter_context(RasterWriter(out, grid, n, meaning.dtypes[0], **profile))
            for row in range(0, grid.height, STRIP_PX):
                window = Window(0, row, grid.width, min(STRIP_PX, grid.height - row))  # pyright: ignore
                rows = view.read(list(range(1, n + 1)), window=window).astype(meaning.dtypes[0])  # GDAL warps int8 as int16
                known = view.read(n + 1, window=window) > 0
                overlap |= bool(known.any())
                if meaning.alpha is not None:
                    rows[meaning.alpha - 1][~known] = 0
                elif unknown is not None:
                    rows[:, ~known] = unknown
                writer.write(row, rows if turn is None else turn - rows, known if masked else None)
            if not overlap:
                raise Disagreement(f"{meaning.path} and the raster to be like do not overlap", value=grids)


def _nodata(meaning: Meaning) -> Any:
    """The declared nodata of all bands; None if there is none, or one for each band by a tag (NODATA_VALUES), which GeoTIFF keeps."""
    found = {meaning.nodata[band - 1] for band in meaning.data}
    if len(found) > 1 and len({repr(value) for value in found}) > 1:  # NaN is not equal to itself
        if meaning.nodata_by_tag and meaning.alpha is None:
            return None
        raise Disagreement(
            f"the bands of {meaning.path} declare different nodata values, and GeoTIFF holds one for all",
            value=", ".join(map(str, found)),
            hint=f"declare one for all, or none: gdal_translate -a_nodata VALUE {quote(str(meaning.path))} ONE.tif",
        )
    return found.pop()


def _with_validity(meaning: Meaning) -> str:
    """A virtual raster: the bands of the file, and one more that is above 0 at pixels that its mask or transparency leaves.

    Without either it is so at all pixels; declared nodata stay what they are, band by band.
    """
    t = meaning.grid.transform
    place = f"<GeoTransform>{', '.join(map(repr, t.to_gdal()))}</GeoTransform>"
    if meaning.grid.crs is not None:
        place = f"<SRS>{escape(meaning.grid.crs.to_wkt())}</SRS>{place}"
    file = f'<SourceFilename relativeToVRT="0">{escape(str(meaning.path.absolute()))}</SourceFilename>'
    bands = [
        f'<VRTRasterBand dataType="{_VRT_TYPES[kind]}" band="{band}"><SimpleSource>{file}<SourceBand>{band}</SourceBand></SimpleSource>'
        "</VRTRasterBand>"
        for band, kind in enumerate(meaning.dtypes, 1)
    ]
    mask = f"{file}<SourceBand>mask,{meaning.data[0]}</SourceBand>"
    if meaning.masked or meaning.alpha is not None:
        source = f"<SimpleSource>{mask}</SimpleSource>"
    else:
        source = f"<ComplexSource>{mask}<LUT>0:255,255:255</LUT></ComplexSource>"
    bands.append(f'<VRTRasterBand dataType="Byte" band="{len(bands) + 1}">{source}</VRTRasterBand>')
    size = f'rasterXSize="{meaning.grid.width}" rasterYSize="{meaning.grid.height}"'
    return f"<VRTDataset {size}>{place}{''.join(bands)}</VRTDataset>"


def _unused(meaning: Meaning) -> int | None:
    """The highest value that no pixel of an 8-bit band has, None if there is none: 255 is often the class itself (masks of 0 and 255)."""
    from idgbr.rasters.meaning import values_of

    if len(meaning.dtypes) > 1 or meaning.dtypes[0] != "uint8" or meaning.full is None:
        return None
    most = 255 if meaning.palette is not None else meaning.full
    used = np.zeros(most + 1, bool)
    used[list(values_of(meaning.path, meaning.data).numbers)] = True
    return None if used.all() else int(np.flatnonzero(~used).max())
