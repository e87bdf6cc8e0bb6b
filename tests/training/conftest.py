"""Synthetic scenes through the real data stage, once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from idgbr import datasets
from idgbr.config import DataConfig


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    """Three training scenes and one for validation, 128 px, two classes."""
    folder: Path = tmp_path_factory.mktemp("data")
    datasets.prepare(DataConfig(train_scenes=3, val_scenes=1, test_scenes=0, scene_px=128), folder)
    return datasets.load(folder)


@pytest.fixture(scope="session")
def four_classes(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    folder: Path = tmp_path_factory.mktemp("data4")
    datasets.prepare(DataConfig(train_scenes=2, val_scenes=1, test_scenes=0, scene_px=128, n_classes=4), folder)
    return datasets.load(folder)
