"""The verbs: refine with a saved model, resume after a kill, align, polygons; bad input is one clear error and leaves nothing."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate
from scene_doubles import KnowingRefiner, blobs, refine, small_refiner

from idgbr.commands.align import align
from idgbr.config import Runtime, SamplerConfig
from idgbr.errors import BadRequest, Disagreement, Missing, NoSpace, Outage
from idgbr.labels import ClassTable, LabelClass
from idgbr.rasters.read import IGNORE, Grid, Reader, write_class_map, write_probabilities
from idgbr.refiner.refiner import Refiner
from idgbr.scene.geotiff import SceneRequest, refine_scene
from idgbr.scene.model import Model, load_model

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
    want_tally, _ = refine_scene(whole, SAMPLER, SceneRequest(*long_scene, tmp_path / "want.tif", confidence=True))
    for at in (0, 1, 3, 5):
        out = tmp_path / f"out{at}.tif"
        stopped = dataclasses.replace(whole, tiles=Stopping(3, 1.0, at))
        with pytest.raises(KeyboardInterrupt):
            refine_scene(stopped, SAMPLER, SceneRequest(*long_scene, out, confidence=True))
        assert not out.exists()
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [f".{out.name}.parts"]
        again = knowing(table)
        tally, _ = refine_scene(again, SAMPLER, SceneRequest(*long_scene, out, confidence=True, resume=True))
        assert out.read_bytes() == (tmp_path / "want.tif").read_bytes()
        assert (tmp_path / f"out{at}_confidence.tif").read_bytes() == (tmp_path / "want_confidence.tif").read_bytes()
        assert tally == want_tally
        assert (sum(again.tiles.batches) < want_tally.computed) == (at >= 3)
        assert not any(p.name.startswith(".") for p in tmp_path.iterdir())


def test_an_interrupted_run_is_neither_lost_nor_mixed_with_another(tmp_path, long_scene, table):
    out = tmp_path / "out.tif"
    with pytest.raises(KeyboardInterrupt):
        refine_scene(dataclasses.replace(knowing(table), tiles=Stopping(3, 1.0, 4)), SAMPLER, SceneRequest(*long_scene, out))
    with pytest.raises(BadRequest, match="--resume to go on"):
        refine_scene(knowing(table), SAMPLER, SceneRequest(*long_scene, out))
    with pytest.raises(Disagreement, match=r"seed differ.*then 0, now 5"):
        refine_scene(knowing(table), SAMPLER, SceneRequest(*long_scene, out, seed=5, resume=True))
    refine_scene(knowing(table), SAMPLER, SceneRequest(*long_scene, out, overwrite=True))
    refine_scene(knowing(table), SAMPLER, SceneRequest(*long_scene, tmp_path / "want.tif"))
    assert out.read_bytes() == (tmp_path / "want.tif").read_bytes()


@pytest.mark.parametrize(
    ("name", "then", "now"), [("precision", "fp32", "bf16"), ("device", "cpu", "cuda"), ("versions", "torch 2.9", "torch 2.10")]
)
def test_rows_that_were_computed_otherwise_are_never_mixed_in(name: str, then: str, now: str, tmp_path, long_scene, table):
    out = tmp_path / "out.tif"
    runs = {"precision": "fp32", "device": "cpu", "versions": "torch 2.9"}
    stopped = dataclasses.replace(knowing(table), tiles=Stopping(3, 1.0, 4), runs=runs | {name: then})
    with pytest.raises(KeyboardInterrupt):
        refine_scene(stopped, SAMPLER, SceneRequest(*long_scene, out))
    other = dataclasses.replace(knowing(table), runs=runs | {name: now})
    with pytest.raises(Disagreement, match=rf"{name} differ.*then {then}, now {now}"):
        refine_scene(other, SAMPLER, SceneRequest(*long_scene, out, resume=True))
    refine_scene(dataclasses.replace(knowing(table), runs=runs | {name: then}), SAMPLER, SceneRequest(*long_scene, out, resume=True))
    with rasterio.open(out) as file:
        assert file.tags()[f"IDGBR_{name.upper()}"] == then


@pytest.mark.parametrize("suffix", [".msk", ".aux.xml"])
@pytest.mark.parametrize("which", [0, 1])
def test_rows_of_a_scene_with_another_mask_are_never_mixed_in(which: int, suffix: str, tmp_path, long_scene, table):
    beside = long_scene[which].with_name(f"{long_scene[which].name}{suffix}")
    with rasterio.open(long_scene[which]) as file:
        profile = {"driver": "GTiff", "height": file.height, "width": file.width, "count": 1, "dtype": "uint8", "transform": file.transform}
    out = tmp_path / "out.tif"
    with pytest.raises(KeyboardInterrupt):
        refine_scene(dataclasses.replace(knowing(table), tiles=Stopping(3, 1.0, 4)), SAMPLER, SceneRequest(*long_scene, out))
    if suffix == ".msk":
        with rasterio.open(beside, "w", **profile) as file:
            file.write(np.full((1, file.height, file.width), 255, np.uint8))
    else:
        beside.write_text("<PAMDataset></PAMDataset>")
    with pytest.raises(Disagreement, match=f"{('scene', 'coarse')[which]} differ"):
        refine_scene(knowing(table), SAMPLER, SceneRequest(*long_scene, out, resume=True))


def test_a_loaded_model_says_how_it_runs(model_dir):
    runs = {precision: load_model(str(model_dir), "", Runtime(device="cpu", precision=precision)).runs for precision in ("fp32", "bf16")}
    assert [r["precision"] for r in runs.values()] == ["fp32", "bf16"]
    assert runs["fp32"]["device"] == "cpu"
    assert re.search(r"idgbr \d.*torch \d", runs["fp32"]["versions"])


@pytest.mark.parametrize("error", [NoSpace, Outage])
def test_a_full_disk_or_a_lost_one_costs_no_finished_rows(error: type[Missing], tmp_path, long_scene, table, capsys):
    class Full(KnowingRefiner):
        def condition(self, image, coarse, valid):
            if len(self.batches) >= 4:
                raise error("cannot write the output")
            return super().condition(image, coarse, valid)

    out = tmp_path / "out.tif"
    with pytest.raises(error):
        refine_scene(dataclasses.replace(knowing(table), tiles=Full(3, 1.0)), SAMPLER, SceneRequest(*long_scene, out))
    assert "finished rows are kept; add --resume" in capsys.readouterr().err
    again = knowing(table)
    refine_scene(again, SAMPLER, SceneRequest(*long_scene, out, resume=True))
    whole = knowing(table)
    refine_scene(whole, SAMPLER, SceneRequest(*long_scene, tmp_path / "want.tif"))
    assert out.read_bytes() == (tmp_path / "want.tif").read_bytes()
    assert sum(again.tiles.batches) < sum(whole.tiles.batches)


def test_resume_after_kill_9_gives_the_same_file(tmp_path, long_scene, table):
    out = tmp_path / "out.tif"
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from scene_doubles import KnowingRefiner
        from idgbr.labels import ClassTable
        from idgbr.scene.geotiff import SceneRequest, refine_scene
        from idgbr.scene.model import Model
        from idgbr.config import SamplerConfig
        class Slow(KnowingRefiner):
            def condition(self, *a):
                time.sleep(0.3)
                return super().condition(*a)
        table = ClassTable.from_json({table.to_json()!r})
        from pathlib import Path
        sampler = SamplerConfig(tile_px=32, overlap_px=8, steps=2, batch_tiles=4)
        refine_scene(Model("double", Slow(3, 1.0), table, (1, 2, 3), sampler), sampler,
                     SceneRequest(Path({str(long_scene[0])!r}), Path({str(long_scene[1])!r}), Path({str(out)!r})))
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
    refine_scene(resumed, SAMPLER, SceneRequest(*long_scene, out, resume=True))
    refine_scene(knowing(table), SAMPLER, SceneRequest(*long_scene, tmp_path / "want.tif"))
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
        from idgbr.rasters.read import Grid, write_class_map
        noise = np.random.default_rng(0).integers(0, 250, (300, 300)).astype(np.uint8)
        for cog in (False, True):
            try:
                write_class_map(Path({str(folder)!r}) / "m.tif", noise, Grid(300, 300), cog=cog)
            except Missing as error:
                print(error.exit_code, error)
        from idgbr.labels import ClassTable
        from idgbr.rasters.polygons import write_polygons
        table = ClassTable.from_json({table.to_json()!r})
        for name in ("m.gpkg", "m.geojson"):
            try:
                write_polygons(Path({str(folder)!r}) / name, Path({str(long_scene[1])!r}), table)
            except Missing as error:
                print(error.exit_code, error)
    """)
    done = subprocess.run([sys.executable, "-c", script], preexec_fn=limited, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert all(line.startswith("3 cannot write") and "m.tif" in line and "too large" in line for line in lines[:2]), lines
    assert lines[2].startswith(f"3 cannot write {folder}/m.gpkg")
    assert lines[3].startswith(f"3 cannot write {folder}/m.geojson")
    assert list(folder.iterdir()) == []


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
