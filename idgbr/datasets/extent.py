"""How large a data set is, before it is prepared: classes and splits as its reader finds them, pixels from the headers
of its images."""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path

from idgbr.config import DataConfig
from idgbr.datasets.scan import find
from idgbr.datasets.sources import layout
from idgbr.errors import Missing
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


@functools.lru_cache(maxsize=32)
def require_split(data: DataConfig, split: str) -> None:
    """Check that the data set has labelled scenes in the split, by names alone.

    Raises:
        Missing: it has none. Otherwise as `scan.find`.
    """
    if data.source == "synthetic":
        there = {name for name in ("train", "val", "test") if getattr(data, f"{name}_scenes")}
    else:
        there = {entry.split for entry in find(data).entries if entry.label is not None}
    if split not in there:
        raise Missing(
            f"the data set has no labelled scenes in the split '{split}'",
            value=f"data.source={data.source}" + (f", split table {data.split_table}" if data.split_table else ""),
            allowed=", ".join(f"sampler.split={name}" for name in sorted(there)),
            hint="another sampler.split, or a split table with this one",
        )


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
