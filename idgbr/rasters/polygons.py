"""Class maps as polygons: one feature a patch (4-connected pixels of one class), with class, area and mean confidence.

Neighbouring patches are simplified together, so that shared borders stay shared (Visvalingam-Whyatt on the coverage,
GEOS through shapely).
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from idgbr.errors import BadRequest, Missing
from idgbr.files import check_place, not_written, whole
from idgbr.labels import IGNORE
from idgbr.rasters.grid import Grid, opened

if TYPE_CHECKING:
    from idgbr.labels import ClassTable

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON"}
STRIP_PX = 1024


def check_polygons(path: Path, simplify_px: float, overwrite: bool) -> None:
    """What can be known before hours of refining.

    Raises:
        BadRequest: another suffix, a negative tolerance, or the file is there.
        Missing: shapely or pyogrio are not installed; the folder is not writable.
    """
    if path.suffix.lower() not in DRIVERS:
        raise BadRequest(
            "polygons are written as GeoPackage or GeoJSON",
            value=path,
            allowed=" or ".join(DRIVERS),
            hint=f"--polygons {quote(str(path.with_suffix('.gpkg')))}",
        )
    if simplify_px < 0:
        raise BadRequest(
            "the tolerance of simplification cannot be negative", value=f"--simplify-px {simplify_px}", allowed="0 (none) or more"
        )
    check_place(path, overwrite)
    _libraries()


def _libraries() -> tuple[Any, Any]:
    try:
        import pyogrio
        import shapely
    except ImportError as error:
        raise Missing(f"polygons need {error.name}, which is not installed", hint="pip install shapely pyogrio") from error
    return pyogrio, shapely


def write_polygons(path: Path, class_map: Path, table: ClassTable, confidence: Path | None = None, simplify_px: float = 0.0) -> int:
    """Polygons of all patches of a class map with indices 0 .. K-1; patches of 255 are left out.

    Fields: `class` (name), `class_index`, `area_px`, `area_m2` (with a CRS; from the pixel's size on the ground
    mid-scene), `confidence` (mean over the patch, 0..1; where `confidence` is given, whose first band has 255 for 1).
    Area and confidence are those of the pixels, before simplification. GeoPackage keeps the CRS; GeoJSON is in WGS 84
    (RFC 7946), or as it is where there is no CRS.

    Args:
        simplify_px: about how far a border may move, in pixels; 0 keeps the pixel edges.

    Returns:
        Number of features.

    Raises:
        BadRequest, Missing: see `check_polygons`; Missing: no space.
    """
    pyogrio, shapely = _libraries()
    grid = Grid.of(class_map)
    shapes, classes = _patches(class_map, grid, shapely)
    area_px = np.rint(shapely.area(shapes)).astype(np.int64)
    columns: dict[str, NDArray[Any]] = {
        "class": np.array(table.names, dtype=object)[classes] if len(classes) else np.array([], dtype=object),
        "class_index": classes.astype(np.int32),
        "area_px": area_px,
    }
    side = grid.metres()
    if side is not None:
        columns["area_m2"] = area_px * side**2
    if confidence is not None:
        columns["confidence"] = _mean_confidence(shapes, area_px, confidence, grid)
    if simplify_px > 0 and len(shapes):
        # A long straight edge has no vertex where two neighbours meet across it: with one at every pixel corner,
        # shared borders match.
        shapes = shapely.transform(shapely.segmentize(shapes, 1.0), np.rint)
        shapes = shapely.coverage_simplify(shapes, tolerance=simplify_px)  # its tolerance is the root of the area of what is cut off
    t = grid.transform
    if len(shapes):
        shapes = shapely.multipolygons([list(shapely.get_parts(shape)) for shape in _on_map(shapes, t, shapely)])
    driver = DRIVERS[path.suffix.lower()]
    buffer = io.BytesIO()  # pyogrio takes some file names for addresses
    options = {"RFC7946": "YES"} if driver == "GeoJSON" and grid.crs is not None else {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'crs' was not provided")  # a map without a CRS has none to give
            pyogrio.raw.write(
                buffer,
                shapely.to_wkb(shapes),
                list(columns.values()),
                list(columns),
                layer=_layer(path.stem),
                driver=driver,
                geometry_type="MultiPolygon",
                crs=None if grid.crs is None else grid.crs.to_wkt(),
                layer_options=options,
            )
        with whole(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    except OSError as error:
        raise not_written(path, error) from error
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise Missing(f"cannot write {path}: {error}", hint="another folder, or more free space") from error
    return len(shapes)


def _layer(name: str) -> str:
    """A layer name that GeoPackage takes: the file's name, with `_` for what it may not hold."""
    return name if re.fullmatch(r"\w[\w .%'-]*", name) else re.sub(r"\W+", "_", name).strip("_") or "classes"


def _patches(class_map: Path, grid: Grid, shapely: Any) -> tuple[Any, NDArray[np.uint8]]:
    """Polygons in pixels (x = column, y = row), and their classes. GDAL walks the file line by line: the map is never
    in memory."""
    import rasterio
    from rasterio.features import shapes

    polygons, classes = [], []
    with opened(class_map) as source:
        inverse = ~source.transform  # rasterio gives map coordinates; pixel corners are whole numbers, so nothing is lost
        for geometry, value in shapes(rasterio.band(source, 1), connectivity=4):
            if int(value) != IGNORE:
                rings = [np.rint(_placed(np.array(ring), inverse)) for ring in geometry["coordinates"]]
                polygons.append(shapely.polygons(rings[0], holes=[shapely.linearrings(ring) for ring in rings[1:]] or None))
                classes.append(int(value))
    found = np.array(polygons, dtype=object)
    for i in np.flatnonzero(~shapely.is_valid(found)) if len(found) else ():  # a ring that touches itself at a corner
        found[i] = shapely.make_valid(found[i])
    return found, np.array(classes, np.uint8)


def _mean_confidence(shapes: Any, area_px: NDArray[np.int64], confidence: Path, grid: Grid) -> NDArray[np.float64]:
    """Mean of the first band over each patch, in strips: patches are burnt back with their number (by pixel centre:
    exactly)."""
    import shapely
    from affine import Affine
    from rasterio.features import rasterize
    from rasterio.windows import Window

    total = np.zeros(len(shapes))
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    for row in range(0, grid.height, STRIP_PX):
        height = min(STRIP_PX, grid.height - row)
        inside = np.flatnonzero((bounds[:, 1] < row + height) & (bounds[:, 3] > row))
        if not len(inside):
            continue
        with opened(confidence) as source:
            values = source.read(1, window=Window(0, row, grid.width, height))
        numbers = rasterize(
            ((shapes[i], i + 1) for i in inside),
            out_shape=(height, grid.width),
            transform=Affine.translation(0, row),
            dtype="int32",
            fill=0,
        )
        total += np.bincount(numbers.ravel(), weights=values.ravel(), minlength=len(shapes) + 1)[1:]
    return total / np.maximum(area_px, 1) / 255


def _on_map(shapes: Any, t: Any, shapely: Any) -> Any:
    return shapely.transform(shapes, lambda points: _placed(points, t))


def _placed(points: NDArray[np.float64], t: Any) -> NDArray[np.float64]:
    x, y = points[:, 0], points[:, 1]
    return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)
