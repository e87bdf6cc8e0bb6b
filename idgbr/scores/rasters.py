"""Two (or three) rasters of any size to counts, a stretch of tiles at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from idgbr.config import ScoreConfig
from idgbr.errors import Disagreement, Missing
from idgbr.labels import IGNORE
from idgbr.scores import objects, uncertainty
from idgbr.scores.boundary import crop
from idgbr.scores.region import Map
from idgbr.scores.sampled import PROBABILITIES, SAMPLES, ReadSampled, Sampled, sampled_reader
from idgbr.scores.tile import TileRow, Widths, clean_target, count_window

if TYPE_CHECKING:
    from idgbr.datasets import Dataset, Raster

STRETCH_PX = 2048  # side of what is read at once (without its halo), so that halos cost little reading and memory stays small

Read = Callable[[int, int, int, int], Map]  # (row, col, height, width) -> class indices uint8


@dataclass(frozen=True)
class Pair:
    """Maps of one raster that are to be compared. targets: label set -> labels. sampled: what is known of `pred` beside
    its classes."""

    raster: str
    scene: str
    split: str
    height: int
    width: int
    n_classes: int
    pred: Read
    targets: dict[str, Read]
    coarse: Read | None = None
    gsd_m: float | None = None
    x_m: float = 0.0
    y_m: float = 0.0
    block_m: float = 150.0
    sampled: ReadSampled | None = None

    def block(self, row: int, col: int, height: int, width: int) -> str:
        """Ground block that the middle of a tile lies in, within the scene."""
        side = self.gsd_m or 1.0
        down, right = self.y_m + (row + height / 2) * side, self.x_m + (col + width / 2) * side
        return f"{self.scene}/{int(down // self.block_m)}_{int(right // self.block_m)}"


def n_tiles(pair: Pair, config: ScoreConfig) -> int:
    """How many entries `tiles_of` gives."""
    return -(-pair.height // config.tile_px) * -(-pair.width // config.tile_px) * len(pair.targets)


def tiles_of(pair: Pair, config: ScoreConfig) -> Iterator[tuple[list[TileRow], list[TileRow]]]:
    """(counts rows, bands rows) of every tile and label set of a raster, with identity.

    Tiles lie on a grid of score.tile_px from the upper left corner; those at the right and lower frame are smaller.
    Memory: one stretch.
    """
    widths = Widths.of(config, pair.height, pair.width, pair.gsd_m)
    step, halo = config.tile_px, widths.halo_px
    stretch = max(1, STRETCH_PX // step) * step
    for top in range(0, pair.height, stretch):
        for left in range(0, pair.width, stretch):
            bottom, right = min(top + stretch, pair.height), min(left + stretch, pair.width)
            row0, col0 = max(0, top - halo), max(0, left - halo)
            window = (row0, col0, min(pair.height, bottom + halo) - row0, min(pair.width, right + halo) - col0)
            pred = pair.pred(*window)
            coarse = pair.coarse(*window) if pair.coarse else None
            sampled = pair.sampled(*window) if pair.sampled and config.uncertainty else None
            for label_set, read in pair.targets.items():
                target = clean_target(read(*window), pair.n_classes, IGNORE)
                for row in range(top, bottom, step):
                    for col in range(left, right, step):
                        yield _tile(pair, widths, label_set, pred, target, coarse, sampled, (row0, col0), (row, col), config)


def _tile(
    pair: Pair,
    widths: Widths,
    label_set: str,
    pred: Map,
    target: Map,
    coarse: Map | None,
    sampled: Sampled | None,
    origin: tuple[int, int],
    corner: tuple[int, int],
    config: ScoreConfig,
) -> tuple[list[TileRow], list[TileRow]]:
    (row, col), halo, step = corner, widths.halo_px, config.tile_px
    height, width = min(step, pair.height - row), min(step, pair.width - col)
    r0, c0 = max(0, row - halo), max(0, col - halo)
    r1, c1 = min(pair.height, row + height + halo), min(pair.width, col + width + halo)
    window = slice(r0 - origin[0], r1 - origin[0]), slice(c0 - origin[1], c1 - origin[1])
    inner = (row - r0, row - r0 + height, col - c0, col - c0 + width)
    counts, bands = count_window(pred[window], target[window], pair.n_classes, widths, inner, None if coarse is None else coarse[window])
    if config.objects:
        found = objects.count(crop(pred[window], inner), crop(target[window], inner), pair.n_classes)
        for name, column in found.items():
            for r, value in zip(counts, column.tolist()):
                r[name] = value
    if sampled is not None:
        part = Sampled(sampled.probabilities[:, *window], sampled.samples[:, *window])
        uncertainty.fill(counts[:-1], counts[-1], pred[window], target[window], part, pair.n_classes, widths.boundary_px, inner)
    identity = {
        "trial": None,
        "split": pair.split,
        "label_set": label_set,
        "scene": pair.scene,
        "raster": pair.raster,
        "row": row,
        "col": col,
        "block": pair.block(row, col, height, width),
    }
    for rows in (counts, bands):
        for r in rows:
            r.update(identity)
    return counts, bands


# ---- the rasters of a data set -----------------------------------------------------------------------------------------------


def dataset_pairs(dataset: Dataset, split: str, refined_dir: Path, coarse_dir: Path, *, uncertainty: bool = False) -> list[Pair]:
    """Labelled rasters of a split with their refined and coarse maps; with `uncertainty` also probabilities and
    samples.

    Raises:
        Missing: no labelled raster, or a map is not there. Disagreement: sizes differ.
    """
    rasters = [r for r in dataset.of(split) if r.label is not None]
    if not rasters:
        raise Missing(f"no raster of split '{split}' has labels, so there is nothing to score against", hint="another sampler.split")
    for raster in rasters:
        for folder in (refined_dir, coarse_dir):
            path = folder / f"{raster.id}.tif"
            if not path.is_file():
                raise Missing(f"raster {raster.id} has no map", value=path, hint="run the stage that writes it")
        if uncertainty and not (path := refined_dir / PROBABILITIES / f"{raster.id}.tif").is_file():
            raise Missing(f"raster {raster.id} has no probabilities", value=path, hint="score.uncertainty=true when it is refined")
    return [_dataset_pair(dataset, raster, refined_dir, coarse_dir, uncertainty) for raster in rasters]


def _dataset_pair(dataset: Dataset, raster: Raster, refined_dir: Path, coarse_dir: Path, uncertainty: bool) -> Pair:
    from idgbr.rasters.coarse_map import index_table
    from idgbr.rasters.read import Grid, read_labels

    name = f"{raster.id}.tif"
    refined, coarse = refined_dir / name, coarse_dir / name
    for path in (refined, coarse):
        grid = Grid.of(path)
        if (grid.height, grid.width) != (raster.height, raster.width):
            raise Disagreement(
                f"{path} is not of the size of raster {raster.id}",
                value=f"{grid.width} x {grid.height}",
                allowed=f"{raster.width} x {raster.height}",
                hint="run the stage that writes it again",
            )
    indices = index_table(dataset.table)
    assert raster.label is not None
    targets: dict[str, Read] = {"full": lambda *w: read_labels(raster.label, dataset.table, *w)}  # type: ignore[arg-type]
    if raster.label_eroded is not None:
        targets["eroded"] = lambda *w: read_labels(raster.label_eroded, dataset.table, *w)  # type: ignore[arg-type]
    return Pair(
        raster.id,
        raster.scene,
        raster.split,
        raster.height,
        raster.width,
        dataset.table.n_classes,
        lambda *w: read_labels(refined, indices, *w),
        targets,
        lambda *w: read_argmax(coarse, dataset.table.n_classes, *w),
        raster.gsd_m,
        raster.x_m,
        raster.y_m,
        dataset.block_m,
        sampled_reader(refined_dir / PROBABILITIES / name, refined_dir / SAMPLES / name) if uncertainty else None,
    )


def read_argmax(path: Path, n_classes: int, row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
    """Most probable class uint8 [height, width] of a file of K bands (ties: the smaller class), 255 where it has no
    data.

    Raises:
        Disagreement: another number of bands.
    """
    from idgbr.rasters.meaning import meaning_of
    from idgbr.rasters.read import known_and_normalised

    n_bands = len(meaning_of(path).data)
    if n_bands != n_classes:
        raise Disagreement(
            f"{path} has {n_bands} bands", allowed=f"{n_classes}, a probability for each class", hint="run stage coarse again"
        )
    values, known = known_and_normalised(path, row, col, height, width)
    out = values.argmax(axis=0).astype(np.uint8)
    out[~known] = IGNORE
    return out
