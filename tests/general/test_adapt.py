"""`idgbr adapt` on a few small tiles: a copy that loads, starts where the model was, and goes on after a stop."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from idgbr import datasets
from idgbr.commands.adapt import AdaptRequest, adapt
from idgbr.config import RefinerConfig
from idgbr.errors import BadRequest
from idgbr.general.scale import STATS
from idgbr.general.tiles import TABLE
from idgbr.labels import ClassTable, LabelClass
from idgbr.rasters.read import read_labels
from idgbr.refiner import Refiner

CONFIG = RefinerConfig(
    kind="one_pass", channels=(16, 32), condition_channels=(16, 32), guidance_width=16, crop_px=32, class_channels=True, batch_images=4
)


@pytest.fixture(scope="module")
def own(scenes: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two images with masks of four classes, and coarse maps of them."""
    root: Path = tmp_path_factory.mktemp("own")
    for name in ("images", "masks", "coarse"):
        (root / name).mkdir()
    for raster in scenes.of("train"):
        image, _ = raster.reader((1, 2, 3)).read(0, 0, raster.height, raster.width)
        label = read_labels(raster.label, scenes.table)
        cv2.imwrite(str(root / "images" / f"{raster.id}.png"), image.astype(np.uint8).transpose(1, 2, 0))
        cv2.imwrite(str(root / "masks" / f"{raster.id}.png"), label)
        cv2.imwrite(str(root / "coarse" / f"{raster.id}.png"), np.roll(label, 4, 1))
    (root / "splits.csv").write_text("name,split\n" + "".join(f"{r.id},train\n" for r in scenes.of("train")))
    table = ClassTable(tuple(LabelClass(c.name, (i,), c.color) for i, c in enumerate(scenes.table.classes)))
    (root / "classes.json").write_text(table.to_json())
    return root


@pytest.mark.parametrize("with_maps", [False, True])
def test_the_copy_starts_from_the_model_and_has_a_decision(own: Path, tmp_path: Path, with_maps: bool) -> None:
    torch.manual_seed(1)
    Refiner.build(CONFIG, 3, TABLE, STATS).save(tmp_path / "model")
    coarse = str(own / "coarse") if with_maps else ""
    adapt(AdaptRequest(str(own), tmp_path / "copy", coarse, str(tmp_path / "model"), images=8, tiles=12, store=str(tmp_path / "store"),
                       device="cpu"))  # fmt: skip
    before, after = (Refiner.load(tmp_path / name) for name in ("model", "copy"))
    assert after.table.names == ("rest", "class")
    assert after.decision is not None
    assert after.config.start == ""
    moved = [float((b - a).detach().abs().max()) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert 0 < max(moved) < 0.02  # two steps away from the model, not from a random start
    assert Refiner.general(tmp_path / "copy").network.table.names == TABLE.names
    with pytest.raises(BadRequest, match="exists"):
        adapt(AdaptRequest(str(own), tmp_path / "copy", coarse, str(tmp_path / "model"), store=str(tmp_path / "store")))


def test_a_stopped_adaptation_goes_on_exactly(own: Path, tmp_path: Path) -> None:
    """Ctrl-C once the first checkpoint is there: the same command gives the weights of a run that was never stopped."""
    torch.manual_seed(1)
    Refiner.build(CONFIG, 3, TABLE, STATS).save(tmp_path / "model")

    def run(name: str) -> None:
        adapt(AdaptRequest(str(own), tmp_path / f"copy-{name}", "", str(tmp_path / "model"), images=280, tiles=12,
                           store=str(tmp_path / name), device="cpu"))  # fmt: skip

    run("whole")
    ended = threading.Event()

    def stop() -> None:
        while not list((tmp_path / "stopped").glob("scratch/**/checkpoint-*/state.json")):
            if ended.wait(0.005):
                return
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=stop)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # where pytest runs in the background it is ignored
    stopper.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    finally:
        ended.set()
        stopper.join()
        signal.signal(signal.SIGINT, handler)
    assert not (tmp_path / "copy-stopped").exists()
    (state,) = (tmp_path / "stopped").glob("scratch/**/checkpoint-*/state.json")
    assert 50 <= json.loads(state.read_text())["step"] < 70
    run("stopped")
    whole, stopped = (Refiner.load(tmp_path / f"copy-{name}") for name in ("whole", "stopped"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), stopped.parameters(), strict=True))
    assert whole.decision == stopped.decision


def test_only_general_refiners_are_adapted(own: Path, tmp_path: Path) -> None:
    table = ClassTable((LabelClass("land", (0,), (0, 0, 0)), LabelClass("water", (1,), (0, 0, 255))))
    Refiner.build(CONFIG, 3, table, STATS).save(tmp_path / "model")
    with pytest.raises(BadRequest, match="only a general refiner"):
        adapt(AdaptRequest(str(own), tmp_path / "copy", "", str(tmp_path / "model"), store=str(tmp_path / "store")))
