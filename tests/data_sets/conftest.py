"""Own folders in miniature, and the makers of published layouts (tests/data)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))

from miniature_layouts import drawn, picture, tiff

from idgbr.config import DataConfig
from idgbr.labels import binary


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are remembered in a folder of the test, not of whoever runs it; ungeoreferenced pictures are meant."""
    from rasterio.errors import NotGeoreferencedWarning

    monkeypatch.setenv("IDGBR_CACHE", str(tmp_path_factory.mktemp("cache")))
    warnings.simplefilter("ignore", NotGeoreferencedWarning)


@pytest.fixture
def own_folder(tmp_path: Path) -> Callable[..., DataConfig]:
    """Makes ROOT/{images,masks,splits.csv,classes.json}: 0/255 masks, PNG images, one scene a raster."""

    def make(splits: tuple[str, ...] = ("train", "train", "train", "val", "test"), side: int = 40) -> DataConfig:
        root = tmp_path / "own"
        lines = ["image,mask,split,scene,gsd_m,zoom"]
        for i, split in enumerate(splits):
            image, index = drawn(f"own{i}", 2, height=side, width=side + 8 * i)
            picture(root / "images" / f"scene {i}.png", image)
            picture(root / "masks" / f"scene {i}.png", index * np.uint8(255))
            lines.append(f"images/scene {i}.png,masks/scene {i}.png,{split},place{i},0.5,{20 + i % 2}")
        (root / "splits.csv").write_text("\n".join(lines))
        (root / "classes.json").write_text(binary("building").to_json())
        return DataConfig(source="folder", root=str(root))

    return make


__all__ = ["drawn", "own_folder", "picture", "tiff"]
