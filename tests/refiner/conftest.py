"""Small refiners and batches that the tests of stage II share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_refiner import TINY, band_stats, class_table
from torch import Tensor

from idgbr import datasets
from idgbr.config import CoarseConfig, DataConfig, RefinerConfig
from idgbr.datasets import Dataset
from idgbr.refiner.refiner import Refiner

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))  # small_stable_diffusion


@pytest.fixture
def build() -> Callable[..., Refiner]:
    """build(n_classes=2, n_bands=3, seed=0, **settings) -> Refiner with `TINY` settings."""

    def make(n_classes: int = 2, n_bands: int = 3, seed: int = 0, **settings: object) -> Refiner:
        torch.manual_seed(seed)
        return Refiner.build(RefinerConfig(**{**TINY, **settings}), n_bands, class_table(n_classes), band_stats(n_bands)).eval()

    return make


@pytest.fixture
def batch() -> Callable[..., dict[str, Tensor]]:
    """batch(n, n_classes=2, side=32) -> random samples as the training loop hands them over."""

    def make(n: int, n_classes: int = 2, side: int = 32, n_bands: int = 3, seed: int = 0) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed)
        return {
            "image": torch.rand(n, n_bands, side, side, generator=g) * 255,
            "coarse": torch.rand(n, n_classes, side, side, generator=g).softmax(1),
            "target": torch.randint(0, n_classes, (n, side, side), generator=g).to(torch.uint8),
            "valid": torch.ones(n, side, side, dtype=torch.bool),
            "seed": torch.arange(n) + 7,
            "index": torch.arange(n),
        }

    return make


@pytest.fixture
def stir() -> Callable[[Refiner], Refiner]:
    """Gives every parameter random values, as training would: at the start the guidance network has no effect at all."""

    def make(refiner: Refiner) -> Refiner:
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in refiner.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=g)
        return refiner

    return make


def scenes_in(folder: Path, scene_px: int) -> tuple[Dataset, Path]:
    """Two synthetic scenes and simulated coarse maps of them."""
    from idgbr.coarse import stage as coarse

    config = DataConfig(train_scenes=2, val_scenes=0, test_scenes=0, scene_px=scene_px)
    (folder / "data").mkdir()
    datasets.prepare(config, folder / "data")
    dataset = datasets.load(folder / "data", config)
    coarse.write(CoarseConfig(source="simulated"), dataset, {}, seed=0, out=folder / "coarse")
    return dataset, folder / "coarse"


@pytest.fixture(scope="package")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    return scenes_in(tmp_path_factory.mktemp("scenes"), 96)


@pytest.fixture(scope="package")
def large_scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """Large enough for several ground blocks."""
    return scenes_in(tmp_path_factory.mktemp("large-scenes"), 300)
