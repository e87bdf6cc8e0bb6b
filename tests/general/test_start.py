"""A training that starts from a saved refiner."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from idgbr import datasets
from idgbr.config import RefinerConfig
from idgbr.datasets import BandStats
from idgbr.errors import Disagreement
from idgbr.refiner import Refiner
from idgbr.refiner.loss import started

SMALL = {"kind": "one_pass", "channels": (16, 32), "condition_channels": (16, 32), "guidance_width": 16, "crop_px": 32}


def test_a_training_starts_from_the_weights_and_band_statistics_of_a_saved_refiner(scenes: datasets.Dataset, tmp_path: Path) -> None:
    stats = BandStats((10.0,) * 3, (2.0,) * 3, (0.0,) * 3, (20.0,) * 3)
    first = Refiner.build(RefinerConfig(**SMALL), 3, scenes.table, stats)
    first.save(tmp_path / "first")
    again = started(RefinerConfig(**SMALL, start=str(tmp_path / "first"), lr=1e-4), scenes)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    assert again.stats == stats
    assert (again.config.lr, again.config.start) == (1e-4, "")
    with pytest.raises(Disagreement, match="another network"):
        started(RefinerConfig(**{**SMALL, "channels": (16, 48)}, start=str(tmp_path / "first")), scenes)
