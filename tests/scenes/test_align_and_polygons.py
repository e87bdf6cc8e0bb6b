"""Maps laid on another grid by nearest neighbour; patches as polygons that share their borders."""

from __future__ import annotations

import json
import sqlite3

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize
from scene_doubles import blobs
from scipy import ndimage

from idgbr.commands.align import align
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.labels import binary
from idgbr.rasters.polygons import check_polygons, write_polygons
from idgbr.rasters.read import IGNORE, Grid, read_labels, write_class_map, write_probabilities

# ---- align -------------------------------------------------------------------------------------------------------------


def test_align_takes_the_nearest_pixel_and_nothing_else(tmp_path, grid, write_image, table, capsys):
    index = blobs(np.random.default_rng(0), 60, 80)
    coarse_grid = Grid(60, 80, Affine(1.0, 0, 500003.0, 0, -1.0, 4599990.0), CRS.from_epsg(32633))  # twice the pixel, moved
    write_class_map(tmp_path / "map.tif", index, coarse_grid, table)
    like = write_image(tmp_path / "scene.tif", np.zeros((3, 150, 190), np.uint8), g := grid(150, 190))
    align(tmp_path / "map.tif", like, tmp_path / "out.tif")
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.tif")
    assert Grid.of(tmp_path / "out.tif") == g
    rows, cols = np.arange(150), np.arange(190)
    x, y = 500000 + (cols + 0.5) * 0.5, 4600000 - (rows + 0.5) * 0.5
    at_col, at_row = np.floor(x - 500003.0).astype(int), np.floor(4599990.0 - y).astype(int)
    want = np.full((150, 190), IGNORE, np.uint8)
    inside = ((at_row >= 0) & (at_row < 60))[:, None] & ((at_col >= 0) & (at_col < 80))[None]
    want[inside] = index[np.ix_(at_row.clip(0, 59), at_col.clip(0, 79))][inside]
    assert (read_labels(tmp_path / "out.tif", table) == want).all()
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.colormap(1)[1] == (255, 80, 40, 255)
        assert file.tags()["CLASS_1"] == "building"


def test_align_between_two_crs_puts_patches_where_they_belong(tmp_path, write_image, table):
    from rasterio.warp import transform as reproject

    lonlat = Grid(400, 400, Affine(2e-5, 0, 14.99, 0, -2e-5, 41.5), CRS.from_epsg(4326))
    index = np.zeros((400, 400), np.uint8)
    index[100:180, 150:260] = 1
    write_class_map(tmp_path / "map.tif", index, lonlat, table)
    like = write_image(
        tmp_path / "s.tif",
        np.zeros((3, 500, 400), np.uint8),
        g := Grid(500, 400, Affine(1.5, 0, 499300.0, 0, -1.5, 4594300.0), CRS.from_epsg(32633)),
    )
    align(tmp_path / "map.tif", like, tmp_path / "out.tif")
    got = read_labels(tmp_path / "out.tif", table)
    rows, cols = np.nonzero(got == 1)
    x, y = g.transform.c + (cols + 0.5) * 1.5, g.transform.f - (rows + 0.5) * 1.5
    lon, lat = (np.array(v) for v in reproject(g.crs, lonlat.crs, list(x), list(y)))
    assert lon.min() >= 14.99 + 150 * 2e-5 - 1e-9
    assert lon.max() <= 14.99 + 260 * 2e-5 + 1e-9
    assert lat.max() <= 41.5 - 100 * 2e-5 + 1e-9
    ground = 110 * 80 * lonlat.metres() ** 2
    assert (got == 1).sum() * 1.5**2 == pytest.approx(ground, rel=0.01)


def test_align_lays_a_bare_mask_of_the_same_size_on_the_scene_and_refuses_others(tmp_path, grid, write_image, table):
    from PIL import Image

    like = write_image(tmp_path / "s.tif", np.zeros((3, 40, 50), np.uint8), grid(40, 50))
    mask = blobs(np.random.default_rng(0), 40, 50, size=8)
    Image.fromarray(mask).save(tmp_path / "m.png")
    align(tmp_path / "m.png", like, tmp_path / "out.tif")
    assert Grid.of(tmp_path / "out.tif") == grid(40, 50)
    assert (read_labels(tmp_path / "out.tif", table) == mask).all()
    Image.fromarray(mask[:30]).save(tmp_path / "small.png")
    with pytest.raises(BadRequest, match="no coordinate reference system"):
        align(tmp_path / "small.png", like, tmp_path / "out2.tif")
    far = write_image(tmp_path / "far.tif", mask[None], Grid(40, 50, Affine(1, 0, 700000, 0, -1, 5000000), CRS.from_epsg(32633)))
    with pytest.raises(Disagreement, match="do not overlap"):
        align(far, like, tmp_path / "out2.tif")
    assert not (tmp_path / "out2.tif").exists()


def test_a_mask_of_0_and_255_keeps_its_class_and_is_unknown_outside(tmp_path, grid, write_image):
    like = write_image(tmp_path / "s.tif", np.zeros((3, 40, 50), np.uint8), grid(40, 50))
    mask = np.where(blobs(np.random.default_rng(0), 40, 30, 2, size=8), 255, 0).astype(np.uint8)
    align(write_image(tmp_path / "m.tif", mask[None], grid(40, 30)), like, tmp_path / "out.tif")
    got = read_labels(tmp_path / "out.tif", binary("building"))
    assert (got[:, :30] == (mask > 0)).all()
    assert (got[:, 30:] == IGNORE).all()
    every = write_image(tmp_path / "all.tif", np.arange(1200, dtype=np.uint16).astype(np.uint8).reshape(1, 40, 30), grid(40, 30))
    align(every, like, tmp_path / "out2.tif")  # no value is left for the outside: a mask within the file tells
    with rasterio.open(tmp_path / "out2.tif") as file:
        assert file.nodata is None
        assert (file.read_masks(1) == np.where(np.arange(50) < 30, 255, 0)[None]).all()
    with pytest.raises(BadRequest, match="is an input"):
        align(every, like, every, overwrite=True)


# ---- polygons ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def polygon_map(tmp_path, grid, table):
    index = blobs(np.random.default_rng(5), 130, 170)
    index[40:60, 50:90] = IGNORE
    write_class_map(tmp_path / "m.tif", index, grid(130, 170), table)
    confidence = np.random.default_rng(6).random((1, 130, 170))
    write_probabilities(tmp_path / "conf.tif", confidence, grid(130, 170))
    return tmp_path / "m.tif", index, np.rint(confidence[0] * 255) / 255


@pytest.mark.parametrize("name", ["semi;colon", "-dash", "tab\tx", "new\nline", "[red]", "\u5317\u4eac", "a b.c", "per%cent"])
@pytest.mark.parametrize("suffix", ["gpkg", "geojson"])
def test_polygons_go_to_files_of_any_name_and_leave_nothing_else(tmp_path, polygon_map, table, name, suffix):
    folder = tmp_path / "in;a [folder]"
    folder.mkdir()
    out = folder / f"{name}.{suffix}"
    n = write_polygons(out, polygon_map[0], table)
    assert [p.name for p in folder.iterdir()] == [out.name]
    out.rename(tmp_path / f"plain.{suffix}")
    assert len(pyogrio.raw.read(tmp_path / f"plain.{suffix}")[2]) == n > 0


def test_polygons_are_the_patches_with_area_and_confidence(tmp_path, polygon_map, table, grid):
    path, index, confidence = polygon_map
    out = tmp_path / "p.gpkg"
    n = write_polygons(out, path, table, tmp_path / "conf.tif")
    meta, _, geometry, columns = pyogrio.raw.read(out)
    values = dict(zip(meta["fields"], columns, strict=True))
    shapes = shapely.from_wkb(geometry)
    assert n == len(shapes) == sum(ndimage.label(index == k)[1] for k in range(3))
    assert CRS.from_string(meta["crs"]) == CRS.from_epsg(32633)
    burnt = rasterize(((s, i + 1) for i, s in enumerate(shapes)), out_shape=(130, 170), transform=grid(130, 170).transform, dtype="int32")
    assert ((burnt == 0) == (index == IGNORE)).all()
    for i in range(n):
        inside = burnt == i + 1
        assert (index[inside] == values["class_index"][i]).all()
        assert table.names[values["class_index"][i]] == values["class"][i]
        assert inside.sum() == values["area_px"][i]
        assert values["confidence"][i] == pytest.approx(confidence[inside].mean(), abs=1e-9)
        assert values["area_m2"][i] == pytest.approx(inside.sum() * 0.25, rel=2e-3)
        assert shapes[i].area == pytest.approx(inside.sum() * 0.25)
    with sqlite3.connect(out) as db:  # the standard's own marks
        assert db.execute("pragma application_id").fetchone()[0] == 0x47504B47
        assert db.execute("select data_type, srs_id from gpkg_contents").fetchone() == ("features", 32633)


def test_simplified_neighbours_share_their_borders(tmp_path, polygon_map, table):
    path, index, _ = polygon_map
    write_polygons(tmp_path / "a.gpkg", path, table)
    write_polygons(tmp_path / "b.gpkg", path, table, simplify_px=3)
    exact, simple = (shapely.from_wkb(pyogrio.raw.read(tmp_path / f"{k}.gpkg")[2]) for k in "ab")
    assert len(simple) == len(exact)
    assert shapely.get_num_coordinates(simple).sum() < 0.4 * shapely.get_num_coordinates(exact).sum()
    parts = shapely.get_parts(simple)
    assert shapely.is_valid(parts).all()
    assert shapely.coverage_is_valid(parts)  # no gaps, no overlaps
    assert shapely.union_all(simple).area == pytest.approx((index != IGNORE).sum() * 0.25, rel=0.01)
    assert shapely.union_all(parts).area == pytest.approx(parts_area := shapely.area(parts).sum(), rel=1e-9), parts_area


def test_geojson_is_in_wgs84_as_the_standard_says_and_bare_pixels_without_a_crs(tmp_path, polygon_map, table):
    path, index, _ = polygon_map
    write_polygons(tmp_path / "p.geojson", path, table, simplify_px=1)
    features = json.loads((tmp_path / "p.geojson").read_text())["features"]
    assert {f["properties"]["class"] for f in features} <= set(table.names)
    xy = np.concatenate([shapely.get_coordinates(shapely.geometry.shape(f["geometry"])) for f in features])
    assert np.allclose(xy.mean(axis=0), [15, 41.55], atol=0.05)
    write_class_map(tmp_path / "bare.tif", index, Grid(130, 170), table)
    write_polygons(tmp_path / "bare.geojson", tmp_path / "bare.tif", table)
    bare = json.loads((tmp_path / "bare.geojson").read_text())["features"]
    assert "area_m2" not in bare[0]["properties"]
    xy = np.concatenate([shapely.get_coordinates(shapely.geometry.shape(f["geometry"])) for f in bare])
    assert xy.max(axis=0).tolist() == [170, 130]


def test_a_map_without_patches_gives_an_empty_file(tmp_path, grid, table):
    write_class_map(tmp_path / "m.tif", np.full((20, 20), IGNORE, np.uint8), grid(20, 20), table)
    assert write_polygons(tmp_path / "p.gpkg", tmp_path / "m.tif", table) == 0
    assert len(pyogrio.raw.read(tmp_path / "p.gpkg")[2]) == 0


def test_polygon_requests_are_checked_before_anything_is_computed(tmp_path):
    with pytest.raises(BadRequest, match=r"\.gpkg or \.geojson"):
        check_polygons(tmp_path / "p.shp", 0, False)
    with pytest.raises(BadRequest, match="negative"):
        check_polygons(tmp_path / "p.gpkg", -1, False)
    with pytest.raises(Missing, match="mkdir"):
        check_polygons(tmp_path / "none" / "p.gpkg", 0, False)
