"""What is unknown and where a map lies survive `idgbr align` and writing; what cannot survive is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC

from idgbr.commands.align import align
from idgbr.errors import Disagreement
from idgbr.labels import IGNORE, binary
from idgbr.rasters.read import read_labels, require_placed, write_class_map

BUILDING = binary("building")
FULL = binary("building", codes=(255,))


# ---- masks and align ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("palette", "uint8"),
        *((how, kind) for how in ("internal", "msk", "alpha", "nodata") for kind in ("uint8", "int16", "uint16", "float32")),
    ],
)
@pytest.mark.parametrize("east", [0.0, 1.5, 0.25])
def test_align_keeps_what_is_unknown_on_the_same_grid_and_on_another(tmp_path, grid, write_image, mask, kind, how, east):
    unknown = np.zeros(mask.shape, bool)
    unknown[20:, :30] = True
    place = grid(*mask.shape)
    profile: dict[str, Any] = {"nodata": 77} if how == "nodata" else {}
    bands = mask.astype(kind)[None]
    if how == "alpha":
        bands = np.concatenate([bands, np.where(unknown, 0, 255 if kind == "uint8" else 1)[None].astype(kind)])
    if how == "nodata":
        bands = np.where(unknown, 77, bands).astype(kind)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=how != "msk"):
        path = write_image(tmp_path / "map.tif", bands, place, **profile)
        with rasterio.open(path, "r+") as file:
            if how == "alpha":
                file.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
            if how == "palette":
                file.write_colormap(1, {0: (0, 0, 0, 255), 1: (255, 0, 0, 255)})
            if how in ("internal", "msk", "palette"):
                file.write_mask(np.where(unknown, 0, 255).astype(np.uint8))
    assert (tmp_path / "map.tif.msk").exists() == (how == "msk")
    moved = Affine(0.5, 0, place.transform.c + east, 0, -0.5, place.transform.f)
    like = write_image(tmp_path / "like.tif", np.zeros((3, *mask.shape), np.uint8), type(place)(*mask.shape, moved, place.crs))
    align(path, like, tmp_path / "out.tif")
    table = binary("building", codes=(255, 1, (255, 0, 0)), others=(0, (0, 0, 0))) if how == "palette" else BUILDING
    meant = np.where(unknown, IGNORE, mask)
    cols = np.floor((np.arange(48) + 0.5) + east / 0.5).astype(int)
    want = np.where(cols < 48, meant[:, cols.clip(0, 47)], IGNORE)
    assert (read_labels(tmp_path / "out.tif", table) == want).all()
    with rasterio.open(path) as before, rasterio.open(tmp_path / "out.tif") as after:
        assert after.colorinterp == before.colorinterp
        assert after.dtypes == before.dtypes
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(("out", ".out"))) == ["out.tif"]


@pytest.mark.parametrize("east", [0.0, 1.0])
def test_align_keeps_the_meaning_of_palettes_bits_and_colours(tmp_path, grid, write_image, mask, east):
    place = grid(*mask.shape)
    like = write_image(tmp_path / "like.tif", np.zeros((3, *mask.shape), np.uint8),
                       type(place)(*mask.shape, place.transform * Affine.translation(east * 2, 0), place.crs))  # fmt: skip
    shifted = np.where(np.arange(48) < 48 - 2 * east, np.roll(mask, -int(2 * east), 1), IGNORE)
    rgb = np.stack([mask * 255, mask * 0, 255 - mask * 255])
    colours = binary("building", codes=(255, 1, (255, 0, 0)), others=(0, (0, 0, 255)))
    for name, bands, table, profile in (
        ("white1", 1 - mask[None], BUILDING, {"photometric": "MINISWHITE", "nbits": 1}),
        ("white8", 255 - mask[None] * 255, BUILDING, {"photometric": "MINISWHITE"}),
        ("white12", (1 - mask[None].astype(np.uint16)) * 4095, BUILDING, {"photometric": "MINISWHITE", "nbits": 12}),
        ("bits4", mask[None] * 15, BUILDING, {"nbits": 4}),
        ("bits1", mask[None], FULL, {"nbits": 1}),
        ("rgb", rgb, colours, {"photometric": "RGB"}),
        ("bgr", rgb[::-1], colours, {}),
        ("int8", mask[None].astype(np.int8), BUILDING, {}),
        ("uint32", mask[None].astype(np.uint32), BUILDING, {}),
        ("int64", mask[None].astype(np.int64), BUILDING, {}),
        ("float64", mask[None].astype(np.float64), BUILDING, {"nodata": float("nan")}),
    ):
        path = write_image(tmp_path / f"{name}.tif", bands, place, **profile)
        if name == "bgr":
            with rasterio.open(path, "r+") as file:
                file.colorinterp = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)
        assert (read_labels(path, table) == mask).all(), name
        align(path, like, tmp_path / "out.tif", overwrite=True)
        assert (read_labels(tmp_path / "out.tif", table) == shifted).all(), name


# ---- place ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("east", [0.0, 2.0])
def test_align_keeps_the_transparent_colour_of_a_colour_map(tmp_path, grid, write_image, mask, east):
    """One value of each band stands for unknown, which GeoTIFF's one nodata value cannot say."""
    place = grid(*mask.shape)
    rgb = np.stack([mask * 255] * 3)
    rgb[:, 20:, :30] = np.array([1, 2, 3])[:, None, None]
    path = write_image(tmp_path / "map.tif", rgb, place, photometric="RGB")
    with rasterio.open(path, "r+") as file:
        file.update_tags(NODATA_VALUES="1 2 3")
    table = binary("building", codes=((255, 255, 255),), others=((0, 0, 0),))
    want = mask.copy()
    want[20:, :30] = IGNORE
    assert (read_labels(path, table) == want).all()
    moved = place.transform * Affine.translation(east, 0)
    like = write_image(tmp_path / "like.tif", np.zeros((3, *mask.shape), np.uint8), type(place)(*mask.shape, moved, place.crs))
    align(path, like, tmp_path / "out.tif")
    found = read_labels(tmp_path / "out.tif", table)
    shift = int(east)
    assert (found[:, : mask.shape[1] - shift] == want[:, shift:]).all()
    assert (found[:, mask.shape[1] - shift :] == IGNORE).all()


def test_scenes_placed_by_points_rpcs_or_arrays_only_are_refused_and_others_are_not(tmp_path, grid, write_image):
    image = np.zeros((3, 20, 30), np.uint8)
    points = [GroundControlPoint(row, col, 400000 + col, 5800000 - row) for row, col in ((0, 0), (0, 30), (20, 0), (20, 30))]
    rpc = RPC(height_off=1, height_scale=1, lat_off=52, lat_scale=0.1, line_den_coeff=[1] + [0] * 19, line_num_coeff=[0, 0, -1] + [0] * 17,
              line_off=10, line_scale=10, long_off=15, long_scale=0.1, samp_den_coeff=[1] + [0] * 19, samp_num_coeff=[0, 1] + [0] * 18,
              samp_off=15, samp_scale=15, err_bias=None, err_rand=None)  # fmt: skip
    bare: dict[str, Any] = {"driver": "GTiff", "height": 20, "width": 30, "count": 3, "dtype": "uint8"}
    for name, gcps, crs, has_rpc in (("gcps", points, "EPSG:32633", False), ("both", points, "EPSG:4326", True), ("rpc", None, None, True)):
        with rasterio.open(tmp_path / f"{name}.tif", "w", **bare) as file:
            file.write(image)
            if gcps:
                file.gcps = (gcps, CRS.from_string(str(crs)))
            if has_rpc:
                file.rpcs = rpc
        with pytest.raises(Disagreement, match=r"control points|RPCs"):
            require_placed(tmp_path / f"{name}.tif")
    source = f"<SimpleSource><SourceFilename>{tmp_path / 'rpc.tif'}</SourceFilename></SimpleSource>"
    arrays = '<Metadata domain="GEOLOCATION"><MDI key="X_DATASET">lon.tif</MDI><MDI key="Y_DATASET">lat.tif</MDI></Metadata>'
    band = f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand>'
    (tmp_path / "swath.vrt").write_text(f'<VRTDataset rasterXSize="30" rasterYSize="20">{arrays}{band}</VRTDataset>')
    with pytest.raises(Disagreement, match=r"geolocation arrays.*gdalwarp -geoloc"):
        require_placed(tmp_path / "swath.vrt")
    placed = write_image(tmp_path / "ortho.tif", image, grid(20, 30))
    with rasterio.open(placed, "r+") as file:  # an orthoimage that kept its RPCs has a transform
        file.rpcs = rpc
    require_placed(placed)
    require_placed(write_image(tmp_path / "photo.tif", image, type(grid(1, 1))(20, 30)))


@pytest.mark.parametrize("crs", [
    "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +ellps=WGS84",
    "+proj=isea +ellps=sphere",
    "+proj=tpers +h=5500000 +lat_0=40 +ellps=WGS84 +units=m",
])  # fmt: skip
def test_a_crs_that_geotiff_cannot_hold_is_refused_before_anything_is_written(tmp_path, grid, mask, crs):
    place = type(grid(1, 1))(*mask.shape, Affine(1, 0, 10, 0, -1, 50), CRS.from_user_input(crs))
    with pytest.raises(Disagreement, match=r"GeoTIFF cannot hold.*gdalwarp -t_srs"):
        write_class_map(tmp_path / "out.tif", mask, place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("crs", [
    "EPSG:4326", "EPSG:3857", "EPSG:32633", "EPSG:27700", "EPSG:31254", "EPSG:2180", "EPSG:5070", "EPSG:3413", "EPSG:2056",
    "EPSG:25832+7837",
    "ESRI:102001", "ESRI:54009", "+proj=utm +zone=33 +ellps=intl +towgs84=-87,-98,-121 +units=m",
    "+proj=aea +lat_1=29.5 +lat_2=45.5 +ellps=GRS80",
    "+proj=longlat +ellps=bessel", "+proj=tmerc +lat_0=0 +lon_0=9 +k=0.9996 +x_0=500000 +ellps=GRS80 +units=us-ft",
])  # fmt: skip
def test_crs_in_use_are_not_refused(tmp_path, grid, mask, crs):
    place = type(grid(1, 1))(*mask.shape, Affine(1, 0, 10, 0, -1, 50), CRS.from_user_input(crs))
    write_class_map(tmp_path / "out.tif", mask, place, cog=True)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs is not None
