"""Synthetic scenes of four classes through the real data stage, once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from idgbr import datasets
from idgbr.config import DataConfig


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    folder: Path = tmp_path_factory.mktemp("scenes")
    datasets.prepare(DataConfig(train_scenes=2, val_scenes=1, test_scenes=0, scene_px=256, n_classes=4), folder)
    return datasets.load(folder)
