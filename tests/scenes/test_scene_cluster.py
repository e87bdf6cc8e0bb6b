"""Scenes over Ray workers: the same files as one process, failures alone, done work skipped."""

from __future__ import annotations

import numpy as np
import pytest
from scene_doubles import blobs, refine, small_refiner

from cluster.__main__ import main
from cluster.scenes import SceneWorker, orders
from idgbr.config import Runtime
from idgbr.errors import BadRequest, Missing


@pytest.fixture
def folders(tmp_path, grid, write_image):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "coarse").mkdir()
    for i in range(3):
        rng = np.random.default_rng(i)
        truth = blobs(rng, 60, 80, 2)
        write_image(
            tmp_path / "scenes" / f"s{i}.tif", np.stack([truth * 90 + rng.integers(0, 60, truth.shape)] * 3).astype(np.uint8), grid(60, 80)
        )
        write_image(tmp_path / "coarse" / f"s{i}.tif", np.roll(truth, 2, 1)[None], grid(60, 80))
    return tmp_path


def test_lists_and_folders_name_the_same_scenes_and_say_what_is_missing(folders):
    (folders / "list.csv").write_text("scene,coarse\n" + "".join(f"scenes/s{i}.tif,coarse/s{i}.tif\n" for i in range(3)))
    of_list = orders(folders / "list.csv", None, folders / "out")
    of_folder = orders(folders / "scenes", folders / "coarse", folders / "out")
    assert of_list == of_folder
    with pytest.raises(BadRequest, match=r"s0\.tif is an input"):
        orders(folders / "scenes", folders / "coarse", folders / "scenes")
    (folders / "list.csv").write_bytes("scene,coarse\nscenes/Höhe.tif,coarse/s0.tif\n".encode("latin-1"))
    with pytest.raises(BadRequest, match="not a CSV in UTF-8"):
        orders(folders / "list.csv", None, folders / "out")
    (folders / "coarse" / "s1.tif").unlink()
    with pytest.raises(Missing, match=r"1 of 6 input files.*s1\.tif"):
        orders(folders / "scenes", folders / "coarse", folders / "out")
    with pytest.raises(BadRequest, match="--coarse"):
        orders(folders / "scenes", None, folders / "out")
    (folders / "list.csv").write_text("scene,coarse,out\nscenes/s0.tif,coarse/s0.tif,a.tif\nscenes/s2.tif,coarse/s2.tif,a.tif\n")
    with pytest.raises(BadRequest, match="two scenes"):
        orders(folders / "list.csv", None, folders / "out")
    (folders / "list.csv").write_text("image,mask\na,b\n")
    with pytest.raises(BadRequest, match="image, mask"):
        orders(folders / "list.csv", None, folders / "out")


@pytest.fixture
def own_ray(monkeypatch):
    """A cluster of this test alone, as the commands start one."""
    from cluster.session import connected

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connected(cpus=2):
        yield


@pytest.mark.ray
@pytest.mark.usefixtures("own_ray")
def test_workers_write_the_files_of_one_process_and_one_bad_scene_stops_no_other(folders, capsys):
    model = small_refiner(folders / "model")
    bad = folders / "scenes" / "s1.tif"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    words = ["refine", str(folders / "scenes"), "--coarse", str(folders / "coarse"), "-o", str(folders / "out"), "--model", str(model)]
    words += ["--steps", "1", "--tile-px", "32", "--reach-px", "4", "--workers", "2", "--cpus", "0.5"]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "1 of 3 scenes failed: s1" in told
    assert "truncated" in told
    assert sorted(p.name for p in (folders / "out").iterdir()) == ["s0.tif", "s2.tif"]
    bad.write_bytes(whole)  # mended; the same work again, without Ray
    worker = SceneWorker(str(model), "", Runtime(device="cpu"), {"steps": 1, "tile_px": 32, "reach_px": 4.0})
    todo = orders(folders / "scenes", folders / "coarse", folders / "out")
    said = [worker.refine(order, 0, False, False) for order in todo]
    assert [good for good, _ in said] == [True, True, True]
    assert ["already" in text for _, text in said] == [True, False, True]
    good, text = worker.refine(todo[0], 5, False, False)
    assert not good
    assert "another model or with other settings" in text
    for i in range(3):
        one = folders / f"one{i}.tif"
        refine(folders / "scenes" / f"s{i}.tif", folders / "coarse" / f"s{i}.tif", one, model=str(model), steps=1, tile_px=32, reach_px=4)
        assert one.read_bytes() == (folders / "out" / f"s{i}.tif").read_bytes()
