"""`refine` with a saved model: what it writes, and bad input, which is one clear error and leaves nothing."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate
from scene_doubles import blobs, refine, small_refiner

from idgbr.commands.align import align
from idgbr.config import Runtime, SamplerConfig
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.labels import ClassTable, LabelClass
from idgbr.rasters.read import IGNORE, Grid, Reader, write_class_map, write_probabilities
from idgbr.refiner.refiner import Refiner
from idgbr.scene.model import load_model


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
    from idgbr.rasters.tiling import tile_seed

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
    before = scene.read_bytes()
    with pytest.raises(BadRequest, match="is an input"):
        refine(scene, coarse, scene, model=str(model_dir), overwrite=True)
    assert scene.read_bytes() == before


def test_another_program_s_codes_are_read_by_their_class_table(tmp_path, inputs, model_dir, grid, write_image):
    scene, coarse, index = inputs
    codes = ClassTable((LabelClass("building", (3, (200, 0, 0)), (1, 1, 1)), LabelClass("land", (5, 7, (0, 0, 9)), (2, 2, 2))))
    (tmp_path / "codes.json").write_text(codes.to_json())
    grey = np.where(index == 1, 3, 5).astype(np.uint8)
    grey[:40][index[:40] == 0] = 7
    rgb = np.where(index == 1, np.array([200, 0, 0])[:, None, None], np.array([0, 0, 9])[:, None, None]).astype(np.uint8)
    write_image(tmp_path / "grey.tif", grey[None], grid(90, 110))
    write_image(tmp_path / "rgb.tif", rgb, grid(90, 110), photometric="RGB")
    refine(scene, coarse, tmp_path / "want.tif", model=str(model_dir), steps=1)
    given = {"model": str(model_dir), "classes": tmp_path / "codes.json"}
    for name in ("grey", "rgb"):
        refine(scene, tmp_path / f"{name}.tif", tmp_path / f"{name}_out.tif", steps=1, **given)
        with rasterio.open(tmp_path / f"{name}_out.tif") as a, rasterio.open(tmp_path / "want.tif") as b:
            assert (a.read() == b.read()).all()
    (tmp_path / "codes.json").write_text(codes.to_json().replace("land", "field"))
    with pytest.raises(Disagreement, match="building, field"):
        refine(scene, coarse, tmp_path / "p.tif", **given)
    (tmp_path / "codes.json").write_text(codes.to_json())
    write_probabilities(tmp_path / "two.tif", np.full((2, 90, 110), 0.5), grid(90, 110))
    with pytest.raises(BadRequest, match="2 bands of numbers"):
        refine(scene, tmp_path / "two.tif", tmp_path / "p.tif", **given)
    with pytest.raises(BadRequest, match=r"precision fp8.*Allowed: fp32, bf16"):
        refine(scene, coarse, tmp_path / "p.tif", model=str(model_dir), precision="fp8")


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


def test_a_model_that_keeps_the_coarse_map_says_so_and_can_be_told_to_trust_itself(tmp_path, inputs, model_dir, capsys):
    scene, coarse, _ = inputs
    refiner = Refiner.load(model_dir)
    refiner.decision = SamplerConfig(sampler="ddim", steps=2, trust=0.0)
    refiner.save(tmp_path / "careful")
    refine(scene, coarse, tmp_path / "kept.tif", model=str(tmp_path / "careful"))
    said = capsys.readouterr().err
    assert "keeps that" in said
    assert "--trust 1" in said
    refine(scene, coarse, tmp_path / "refined.tif", model=str(tmp_path / "careful"), trust=1)
    assert "keeps that" not in capsys.readouterr().err
    before, kept, refined = (rasterio.open(p).read(1) for p in (coarse, tmp_path / "kept.tif", tmp_path / "refined.tif"))
    assert ((before > 0) == (kept > 0)).all()
    assert (refined != kept).any()
    refiner.decision = SamplerConfig(sampler="ddim", steps=2)
    refiner.save(tmp_path / "bold")
    refine(scene, coarse, tmp_path / "asked.tif", model=str(tmp_path / "bold"), trust=0)
    assert "keeps that" not in capsys.readouterr().err  # the user's choice, not the model's
    with pytest.raises(BadRequest, match="needs coarse probabilities"):
        refine(scene, coarse, tmp_path / "half.tif", model=str(tmp_path / "careful"), trust=0.5)
    assert not (tmp_path / "half.tif").exists()


def test_a_loaded_model_says_how_it_runs(model_dir):
    runs = {precision: load_model(str(model_dir), "", Runtime(device="cpu", precision=precision)).runs for precision in ("fp32", "bf16")}
    assert [r["precision"] for r in runs.values()] == ["fp32", "bf16"]
    assert runs["fp32"]["device"] == "cpu"
    assert re.search(r"idgbr \d.*torch \d", runs["fp32"]["versions"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user, who cannot write here")
def test_a_read_only_folder_is_one_clear_error(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir(mode=0o755)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    from idgbr.files import check_output

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
