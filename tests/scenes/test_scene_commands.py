"""The verbs: refine with a saved model, resume after a kill, align, polygons; bad input is one clear error and leaves nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize
from rio_cogeo.cogeo import cog_validate
from scene_doubles import KnowingRefiner, blobs, small_refiner
from scipy import ndimage

from idgbr.align import align
from idgbr.config import SamplerConfig
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.polygons import check_polygons, write_polygons
from idgbr.raster import IGNORE, Grid, Reader, read_labels, write_class_map, write_probabilities
from idgbr.refine_command import Model, refine, refine_scene
from idgbr.refiner import Refiner

SAMPLER = SamplerConfig(tile_px=32, overlap_px=8, steps=2, batch_tiles=4)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return small_refiner(tmp_path_factory.mktemp("model"))


@pytest.fixture
def inputs(tmp_path, grid, write_image):
    """scene.tif and coarse.tif (codes 0 and 255, no tags: somebody else's model) of 90 x 110 px."""
    rng = np.random.default_rng(0)
    truth = blobs(rng, 90, 110, 2)
    image = (truth * 90 + rng.integers(0, 60, truth.shape)).astype(np.uint8)
    scene = write_image(tmp_path / "scene.tif", np.stack([image] * 3), grid(90, 110))
    coarse = write_image(tmp_path / "coarse.tif", (np.roll(truth, 2, 1) * 255)[None], grid(90, 110))
    return scene, coarse, np.roll(truth, 2, 1)


def knowing(table, noise=1.0) -> Model:
    return Model("double", KnowingRefiner(table.n_classes, noise), table, (1, 2, 3), SAMPLER)


# ---- refine ------------------------------------------------------------------------------------------------------------


def test_refine_writes_a_cog_on_the_scene_grid_and_says_what_it_did(tmp_path, inputs, model_dir, capsys):
    scene, coarse, _ = inputs
    out = tmp_path / "out.tif"
    refine(scene, coarse, out, model=str(model_dir), steps=2, reach_px=3, confidence=True, samples=2, polygons=tmp_path / "out.gpkg")
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(tmp_path / "out.gpkg"), str(tmp_path / "out_confidence.tif"), str(out)]
    assert "tiles computed" in said.err
    assert Grid.of(out) == Grid.of(scene)
    assert cog_validate(out, strict=True, quiet=True)[0]
    assert cog_validate(tmp_path / "out_confidence.tif", strict=True, quiet=True)[0]
    assert {p.name for p in tmp_path.iterdir()} == {"scene.tif", "coarse.tif", "out.tif", "out_confidence.tif", "out.gpkg"}


def test_refine_equals_the_two_line_interface_on_a_scene_of_one_tile(tmp_path, model_dir, grid, write_image):
    from idgbr.samples import tile_seed

    rng = np.random.default_rng(0)
    index = blobs(rng, 64, 64, 2)
    image = rng.integers(0, 255, (3, 64, 64)).astype(np.uint8)
    scene = write_image(tmp_path / "scene.tif", image, grid(64, 64))
    coarse = write_image(tmp_path / "coarse.tif", index[None], grid(64, 64))
    for reach in (0.0, 4.0):
        refine(scene, coarse, tmp_path / "o.tif", model=str(model_dir), steps=2, tile_px=64, reach_px=reach, overwrite=True)
        want = Refiner.load(model_dir).refine(image, index, seeds=tile_seed(0, "scene", 0, 0), steps=2, reach_px=reach)
        with rasterio.open(tmp_path / "o.tif") as file:
            got = file.read(1)
        assert (got != index).mean() > 0.01
        assert (got == want).all()


def test_an_existing_output_is_never_overwritten_unasked(tmp_path, inputs, model_dir):
    scene, coarse, _ = inputs
    (tmp_path / "out.tif").write_text("mine")
    with pytest.raises(BadRequest, match="--overwrite"):
        refine(scene, coarse, tmp_path / "out.tif", model=str(model_dir))
    assert (tmp_path / "out.tif").read_text() == "mine"


def test_a_png_mask_of_another_size_and_a_moved_one_are_refused(tmp_path, inputs, model_dir, grid, write_image):
    scene, _, _ = inputs
    before = {p.name for p in tmp_path.iterdir()}
    other = tmp_path.parent / "others"
    other.mkdir(exist_ok=True)
    smaller = write_image(other / "small.tif", np.zeros((1, 80, 110), np.uint8), grid(80, 110))
    moved = write_image(other / "moved.tif", np.zeros((1, 90, 110), np.uint8), dataclasses.replace(grid(90, 110), crs=CRS.from_epsg(25833)))
    for bad, word in ((smaller, "110 x 80"), (moved, "EPSG:25833")):
        with pytest.raises(Disagreement, match=word) as error:
            refine(scene, bad, tmp_path / "out.tif", model=str(model_dir))
        assert "idgbr align" in str(error.value)
        assert "EPSG:32633" in str(error.value)
    assert {p.name for p in tmp_path.iterdir()} == before


def test_bad_codes_bands_and_models_are_one_error_each(tmp_path, inputs, model_dir, grid, write_image):
    scene, coarse, _ = inputs
    codes = write_image(tmp_path / "codes.tif", np.full((1, 90, 110), 7, np.uint8), grid(90, 110))
    grey = write_image(tmp_path / "grey.tif", np.zeros((1, 90, 110), np.uint8), grid(90, 110))
    five = write_image(tmp_path / "five.tif", np.full((5, 90, 110), 0.2, np.float32), grid(90, 110))
    write_probabilities(tmp_path / "three.tif", np.full((3, 90, 110), 1 / 3), grid(90, 110))
    before = {p.name for p in tmp_path.iterdir()}
    for image, guess, model, kind, words in (
        (scene, codes, model_dir, Disagreement, "7: 100.00%"),
        (grey, coarse, model_dir, Disagreement, "has 1 band"),
        (scene, tmp_path / "three.tif", model_dir, Disagreement, "probabilities of 3 classes"),
        (scene, five, model_dir, Disagreement, "probabilities of 5 classes"),
        (scene, tmp_path / "none.tif", model_dir, Missing, "no such raster"),
        (scene, coarse, "abc", Missing, "no such refiner"),
    ):
        with pytest.raises(kind, match=words):
            refine(image, guess, tmp_path / "out.tif", model=str(model), store=str(tmp_path / "store"))
        assert {p.name for p in tmp_path.iterdir()} == before


def test_a_scene_placed_by_ground_control_points_is_refused(tmp_path, inputs, model_dir):
    from rasterio.control import GroundControlPoint as Gcp

    _, coarse, _ = inputs
    points = [Gcp(0, 0, 500000, 4600000), Gcp(0, 90, 500045, 4600000), Gcp(90, 0, 500000, 4599955), Gcp(90, 90, 500045, 4599955)]
    with rasterio.open(
        tmp_path / "g.tif", "w", driver="GTiff", count=3, height=90, width=110, dtype="uint8", gcps=points, crs=CRS.from_epsg(32633)
    ) as file:
        file.write(np.zeros((3, 90, 110), np.uint8))
    with pytest.raises(Disagreement, match="gdalwarp"):
        refine(tmp_path / "g.tif", coarse, tmp_path / "out.tif", model=str(model_dir))


def test_a_reach_in_metres_is_that_in_pixels_and_needs_a_crs(tmp_path, inputs, model_dir, grid, write_image):
    scene, coarse, _ = inputs  # pixels of half a metre
    refine(scene, coarse, tmp_path / "m.tif", model=str(model_dir), steps=1, reach_m=1.6)
    refine(scene, coarse, tmp_path / "px.tif", model=str(model_dir), steps=1, reach_px=3.2)
    with rasterio.open(tmp_path / "m.tif") as a, rasterio.open(tmp_path / "px.tif") as b:
        assert (a.read() == b.read()).all()
    bare = write_image(tmp_path / "bare.tif", np.zeros((3, 90, 110), np.uint8), dataclasses.replace(grid(90, 110), crs=None))
    with pytest.raises(BadRequest, match="no coordinate reference system") as error:
        refine(bare, coarse, tmp_path / "o.tif", model=str(model_dir), reach_m=2)
    assert error.value.exit_code == 2
    assert not (tmp_path / "o.tif").exists()


# ---- interrupt and resume ------------------------------------------------------------------------------------------------


class Stopping(KnowingRefiner):
    """Ctrl-C in the n-th batch."""

    def __init__(self, n_classes, noise, at):
        super().__init__(n_classes, noise)
        self.at = at

    def condition(self, image, coarse, valid):
        if len(self.batches) == self.at:
            raise KeyboardInterrupt
        return super().condition(image, coarse, valid)


@pytest.fixture
def long_scene(tmp_path, grid, write_image, table):
    truth = blobs(np.random.default_rng(4), 200, 70)
    scene = write_image(tmp_path / "scene.tif", np.stack([truth * 10] * 3), grid(200, 70))
    write_class_map(tmp_path / "coarse.tif", np.roll(truth, 2, 0), grid(200, 70), table)
    return scene, tmp_path / "coarse.tif"


def test_resume_after_an_interrupt_gives_the_same_file_and_computes_less(tmp_path, long_scene, table):
    whole = knowing(table)
    want_tally, _ = refine_scene(whole, SAMPLER, *long_scene, tmp_path / "want.tif", confidence=True)
    for at in (0, 1, 3, 5):
        out = tmp_path / f"out{at}.tif"
        stopped = dataclasses.replace(whole, tiles=Stopping(3, 1.0, at))
        with pytest.raises(KeyboardInterrupt):
            refine_scene(stopped, SAMPLER, *long_scene, out, confidence=True)
        assert not out.exists()
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [f".{out.name}.parts"]
        again = knowing(table)
        tally, _ = refine_scene(again, SAMPLER, *long_scene, out, confidence=True, resume=True)
        assert out.read_bytes() == (tmp_path / "want.tif").read_bytes()
        assert (tmp_path / f"out{at}_confidence.tif").read_bytes() == (tmp_path / "want_confidence.tif").read_bytes()
        assert tally == want_tally
        assert (sum(again.tiles.batches) < want_tally.computed) == (at >= 3)
        assert not any(p.name.startswith(".") for p in tmp_path.iterdir())


def test_an_interrupted_run_is_neither_lost_nor_mixed_with_another(tmp_path, long_scene, table):
    out = tmp_path / "out.tif"
    with pytest.raises(KeyboardInterrupt):
        refine_scene(dataclasses.replace(knowing(table), tiles=Stopping(3, 1.0, 4)), SAMPLER, *long_scene, out)
    with pytest.raises(BadRequest, match="--resume to go on"):
        refine_scene(knowing(table), SAMPLER, *long_scene, out)
    with pytest.raises(Disagreement, match=r"seed differ.*then 0, now 5"):
        refine_scene(knowing(table), SAMPLER, *long_scene, out, seed=5, resume=True)
    refine_scene(knowing(table), SAMPLER, *long_scene, out, afresh=True)
    refine_scene(knowing(table), SAMPLER, *long_scene, tmp_path / "want.tif")
    assert out.read_bytes() == (tmp_path / "want.tif").read_bytes()


def test_resume_after_kill_9_gives_the_same_file(tmp_path, long_scene, table):
    out = tmp_path / "out.tif"
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from scene_doubles import KnowingRefiner
        from idgbr.labels import ClassTable
        from idgbr.refine_command import Model, refine_scene
        from idgbr.config import SamplerConfig
        class Slow(KnowingRefiner):
            def condition(self, *a):
                time.sleep(0.3)
                return super().condition(*a)
        table = ClassTable.from_json({table.to_json()!r})
        from pathlib import Path
        sampler = SamplerConfig(tile_px=32, overlap_px=8, steps=2, batch_tiles=4)
        refine_scene(Model("double", Slow(3, 1.0), table, (1, 2, 3), sampler), sampler, Path({str(long_scene[0])!r}),
                     Path({str(long_scene[1])!r}), Path({str(out)!r}))
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    parts, deadline = tmp_path / ".out.tif.parts", time.monotonic() + 60
    while len(list(parts.glob("rows-*.npz"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read().decode()
    assert not out.exists()
    resumed = knowing(table)
    refine_scene(resumed, SAMPLER, *long_scene, out, resume=True)
    refine_scene(knowing(table), SAMPLER, *long_scene, tmp_path / "want.tif")
    assert out.read_bytes() == (tmp_path / "want.tif").read_bytes()


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, long_scene, table):
    """A limit on file size stands for the full disk: the same system call fails."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    folder = tmp_path / "out"
    folder.mkdir()
    script = textwrap.dedent(f"""
        import numpy as np
        from pathlib import Path
        from idgbr.errors import Missing
        from idgbr.raster import Grid, write_class_map
        noise = np.random.default_rng(0).integers(0, 250, (300, 300)).astype(np.uint8)
        for cog in (False, True):
            try:
                write_class_map(Path({str(folder)!r}) / "m.tif", noise, Grid(300, 300), cog=cog)
            except Missing as error:
                print(error.exit_code, error)
    """)
    done = subprocess.run([sys.executable, "-c", script], preexec_fn=limited, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert all(line.startswith("3 cannot write") and "m.tif" in line and "too large" in line for line in lines), lines
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user, who cannot write here")
def test_a_read_only_folder_is_one_clear_error(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir(mode=0o755)
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(0o755)
    from idgbr.raster_output import check_output

    child = os.fork()
    if child == 0:
        code = 9
        try:
            os.setuid(65534)
            check_output(folder / "m.tif")
        except Missing as error:
            code = 0 if "Permission denied" in str(error) else 8
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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


def test_an_aligned_map_is_accepted_by_refine(tmp_path, inputs, model_dir, write_image):
    scene, coarse, _ = inputs
    with rasterio.open(coarse) as file:
        moved = write_image(tmp_path / "moved.tif", file.read(), Grid(90, 110, Affine(0.5, 0, 500001.0, 0, -0.5, 4600000.0), file.crs))
    with pytest.raises(Disagreement):
        refine(scene, moved, tmp_path / "o.tif", model=str(model_dir))
    align(moved, scene, tmp_path / "aligned.tif")
    refine(scene, tmp_path / "aligned.tif", tmp_path / "o.tif", model=str(model_dir), reach_px=2, steps=1)
    with rasterio.open(tmp_path / "o.tif") as file:
        got = file.read(1)
    assert Grid.of(tmp_path / "o.tif") == Grid.of(scene)
    assert set(np.unique(got)) <= {0, 1, IGNORE}


# ---- polygons ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def polygon_map(tmp_path, grid, table):
    index = blobs(np.random.default_rng(5), 130, 170)
    index[40:60, 50:90] = IGNORE
    write_class_map(tmp_path / "m.tif", index, grid(130, 170), table)
    confidence = np.random.default_rng(6).random((1, 130, 170))
    write_probabilities(tmp_path / "conf.tif", confidence, grid(130, 170))
    return tmp_path / "m.tif", index, np.rint(confidence[0] * 255) / 255


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


# ---- real scenes -------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", ["RGB.byte.tif", "OSBS_029.tif"])
def test_nodata_and_grid_of_real_scenes_survive_refinement(shared, tmp_path, model_dir, name):
    scene = shared / "data" / "scenes" / name
    reader = Reader(scene)
    index = blobs(np.random.default_rng(0), reader.grid.height, reader.grid.width, 2, size=60)
    write_class_map(tmp_path / "c.tif", index, reader.grid, Refiner.load(model_dir).table)
    refine(scene, tmp_path / "c.tif", tmp_path / "o.tif", model=str(model_dir), steps=1, tile_px=128, reach_px=2)
    assert Grid.of(tmp_path / "o.tif") == reader.grid
    with rasterio.open(tmp_path / "o.tif") as out:
        got = out.read(1)
    assert ((got == IGNORE) == ~reader.valid(0, 0, *index.shape)).all()
