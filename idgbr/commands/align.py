"""`idgbr align`: a class map brought onto another raster's grid, by nearest neighbour only, so that no class is invented."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from idgbr.errors import BadRequest, Disagreement

STRIP_PX = 512  # rows read at once


def align(map: Path, like: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write `map` on the grid of `like`: every output pixel takes the value of the map's pixel its centre lies in.

    Bands, data type, colours, nodata, tags and band names are kept. Outside the map: its nodata; where none is declared, the highest value
    that an 8-bit class map does not use (255, or 254 for a mask of 0 and 255), then declared as nodata; 0 for others.
    A map without any georeference (a PNG) but of the scene's size is laid on it pixel by pixel. Prints the output's path.

    Raises:
        BadRequest: `map` or `like` has no CRS (pixels cannot be placed); `out` is there or no GeoTIFF. Missing: no such file, not writable.
        Disagreement: the two do not overlap, or the map uses all 256 values, so that none is left for the outside.
    """
    from rasterio.enums import ColorInterp, Resampling
    from rasterio.errors import CRSError
    from rasterio.vrt import WarpedVRT
    from rasterio.windows import Window

    from idgbr.files import check_apart, check_output
    from idgbr.rasters.grid import Grid, opened
    from idgbr.rasters.write import RasterWriter

    map, like, out = Path(map), Path(like), Path(out)
    check_output(out, overwrite)
    check_apart(out, map, like)
    source_grid, grid = Grid.of(map), Grid.of(like)
    bare = source_grid == Grid(grid.height, grid.width)  # no georeference, same size
    for path, found in ((map, source_grid), (like, grid)):
        if found.crs is None and source_grid != grid and not bare:
            raise BadRequest(
                f"{path} has no coordinate reference system, so the two cannot be laid over each other",
                value=f"{map.name}: {source_grid}; {like.name}: {grid}",
                hint=f"assign it if you know it: rio edit-info --crs EPSG:... --transform ... {quote(str(path))}",
            )
    with opened(map) as source:
        same = bare or source_grid == grid
        nodata = source.nodata
        if nodata is None and not same and source.count == 1 and source.dtypes[0] == "uint8":
            nodata = _unused(source, map)
        fill: Any = 0 if nodata is None else nodata
        colours = {v: (r, g, b) for v, (r, g, b, _) in source.colormap(1).items()} if source.colorinterp[0] == ColorInterp.palette else None
        tags = {k: v for k, v in source.tags().items() if k not in ("AREA_OR_POINT", "OVR_RESAMPLING_ALG")}
        names = tuple(text or "" for text in source.descriptions)
        writer = RasterWriter(
            out, grid, source.count, source.dtypes[0], nodata=nodata, colours=colours, tags=tags, descriptions=names, cog=True
        )
        try:
            with writer:
                view = None
                if not same:
                    view = WarpedVRT(
                        source, crs=grid.crs, transform=grid.transform, height=grid.height, width=grid.width, resampling=Resampling.nearest,
                        src_nodata=source.nodata, nodata=fill, add_alpha=False, tolerance=1e-6, warp_mem_limit=64,
                    )  # fmt: skip
                known = False
                for row in range(0, grid.height, STRIP_PX):
                    rows = (view or source).read(window=Window(0, row, grid.width, min(STRIP_PX, grid.height - row)))
                    known |= bool((rows != fill).any())
                    writer.write(row, rows)
                if view is not None:
                    view.close()
                if not known and not same:
                    raise Disagreement(f"{map} and {like} do not overlap", value=f"{map.name}: {source_grid}; {like.name}: {grid}")
        except CRSError as error:
            raise Disagreement(f"no way from the CRS of {map} to that of {like}: {error}") from error
    print(f"{map.name}: {source_grid}\n{like.name}: {grid}", file=sys.stderr)
    print(out)


def _unused(source: Any, path: Path) -> int:
    """The highest value that no pixel has: 255 is often the class itself (masks of 0 and 255)."""
    from rasterio.windows import Window

    used = np.zeros(256, bool)
    for row in range(0, source.height, STRIP_PX):
        used[np.unique(source.read(1, window=Window(0, row, source.width, min(STRIP_PX, source.height - row))))] = True
    if used.all():
        raise Disagreement(f"{path} uses all 256 values, so none is left for what lies outside of it", hint="declare one of them as nodata")
    return int(np.flatnonzero(~used).max())
