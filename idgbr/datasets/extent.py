"""How large a data set is, before it is prepared: classes as its reader finds them, pixels from the headers of its
images."""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path

from idgbr.config import DataConfig
from idgbr.datasets.scan import find
from idgbr.datasets.sources import layout
from idgbr.labels import ClassTable


@functools.lru_cache(maxsize=32)
def n_classes(data: DataConfig) -> int:
    """Number of classes K.

    Raises:
        Missing, Disagreement, BadRequest: as `scan.find`.
    """
    if data.source == "synthetic":
        return data.n_classes
    if data.classes:
        return ClassTable.load(Path(data.classes)).n_classes
    table = find(data).table or layout(data.source).table
    return table.n_classes if table else 2


def area_px(data: DataConfig, split: str | None = None) -> float:
    """Pixels of a split (None: of all).

    Raises:
        Missing, Disagreement, BadRequest: as `scan.find`, or an image that cannot be opened.
    """
    return sum(area for name, area in _areas(data).items() if split in (None, name))


@functools.lru_cache(maxsize=32)
def _areas(data: DataConfig) -> dict[str, float]:
    from idgbr.rasters.grid import Grid

    if data.source == "synthetic":
        return {split: getattr(data, f"{split}_scenes") * float(data.scene_px) ** 2 for split in ("train", "val", "test")}
    areas: dict[str, float] = defaultdict(float)
    for entry in find(data).entries:
        grid = Grid.of(entry.image)
        areas[entry.split] += float(grid.height * grid.width)
    return dict(areas)
