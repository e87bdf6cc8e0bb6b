"""`benchmarks/general.py`: tiles and training by one command, places never trained on, pictures."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SMALL = (
    "refiner.channels=16,32", "refiner.condition_channels=16,32", "refiner.condition_encoder=", "refiner.condition_weights=",
    "refiner.guidance_width=16", "refiner.crop_px=32", "refiner.batch_images=4", "refiner.train_images=8", "refiner.warmup_images=4",
)  # fmt: skip


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(name)


def test_one_command_cuts_tiles_once_and_trains(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    general = module("general")
    monkeypatch.setattr(general, "TRAIN", (("synthetic", "", "", 4, (0.7, 1.5)),))
    monkeypatch.setenv("IDGBR_DATA", "")
    found = []
    for _ in range(2):
        general.train(tmp_path, SMALL, store=str(tmp_path / "store"), device="cpu")
        folder = Path(capsys.readouterr().out.splitlines()[-1])
        found.append((folder, *((path.stat().st_mtime_ns) for path in (folder / "model.safetensors", tmp_path / "general" / "splits.csv"))))
    assert found[0] == found[1], "the second call found everything"


def test_test_images_become_chips_of_one_class(module: Any, tmp_path: Path) -> None:
    chips = list(module("general_places").of_test_split("naip_fields", tmp_path, 128))
    assert 6 <= len(chips) <= 12
    assert len({chip.place for chip in chips}) == len(chips)
    assert [chip.name for chip in chips] == sorted(chip.name for chip in chips)
    for chip in chips:
        assert chip.picture.shape == (3, 128, 128)
        assert set(np.unique(chip.target)) <= {0, 1, 255}
        assert 0.03 <= (chip.target == 1).mean() <= 0.9


def test_pictures_draw_the_outline_of_every_map_over_the_targets(module: Any) -> None:
    scores = module("general_scores")
    image, target = np.full((20, 30, 3), 100, np.uint8), np.zeros((20, 30), np.uint8)
    target[5:15, 5:15] = 1
    maps = [target == 1, np.zeros((20, 30), bool)]
    picture = scores.side_by_side(image, maps, target, zoom=2)
    assert picture.shape == (40, 2 * 60 + scores.GAP_PX, 3)
    first, second = picture[:, :60], picture[:, 60 + scores.GAP_PX :]
    for panel, colour in ((first, scores.FOUND), (second, scores.TRUE)):
        assert (panel[10, 10] == colour).all()
        assert (panel[20, 20] == 100).all()
