"""A refinement that is interrupted, killed or out of disk: finished rows are kept, and `--resume` gives the file of an undisturbed run."""

from __future__ import annotations

import dataclasses
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scene_doubles import KnowingRefiner, blobs

from idgbr.config import SamplerConfig
from idgbr.errors import BadRequest, Disagreement, Missing, NoSpace, Outage
from idgbr.rasters.read import write_class_map
from idgbr.scene.geotiff import SceneRequest, refine_scene
from idgbr.scene.model import Model

SAMPLER = SamplerConfig(tile_px=32, overlap_px=8, steps=2, batch_tiles=4)


def knowing(table, noise=1.0) -> Model:
    return Model("double", KnowingRefiner(table.n_classes, noise), table, (1, 2, 3), SAMPLER)


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
