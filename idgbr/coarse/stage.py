"""Coarse maps of all rasters: what the refiner sees, in training and after.

Held-out splits: by the backbone trained on all training rasters ("full"). Training rasters: by the backbone of the
fold that never saw them, so that the refiner learns on errors like those it will meet; or by "full" (in_fold), by
corruption of the target (simulated), by both (mixed), or from a folder of another model's maps (external).

    <raster id>.tif   K bands uint8, 255 for probability 1, tiled, deflate

K classes, H, W.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from idgbr.coarse.simulate import corrupt, smooth, soften
from idgbr.config import CoarseConfig, Runtime
from idgbr.errors import Missing
from idgbr.interfaces import Report
from idgbr.machine import expanded
from idgbr.rasters.coarse_map import CoarseMap, coarse_path
from idgbr.rasters.read import Grid, RasterWriter, read_labels, require_same_grid
from idgbr.rasters.write import quantise

if TYPE_CHECKING:
    from idgbr.datasets import Dataset, Raster

SIMULATED_PX = 1024  # targets are corrupted in blocks of this side: memory, and the wanted IoU holds everywhere
SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".bmp")

Strips = Iterator[tuple[int, NDArray[np.float32]]]


def write(
    config: CoarseConfig,
    dataset: Dataset,
    backbones: Mapping[str, Path],
    *,
    seed: int,
    out: Path,
    runtime: Runtime | None = None,
    report: Report | None = None,
) -> None:
    """Write `<raster id>.tif` of every raster of the data set.

    Args:
        backbones: folders by name: "full", and "fold0" ... where `source` is out_of_fold or mixed; empty where it is
            external.
        seed: of simulated errors.
        report: called with done, total, raster and source after each raster.

    Raises:
        Missing: a backbone, a target or an external map is not there.
        Disagreement: an external map is of another size, or has other classes.
    """
    from idgbr.training.distributed import device_of

    runtime = runtime or Runtime()
    out.mkdir(parents=True, exist_ok=True)
    done = 0
    for name, rasters in _by_source(config, dataset, backbones):
        network = None
        for raster in rasters:
            reader = raster.reader(dataset.bands)
            grid = reader.grid
            strips: Strips
            if name == "external":
                strips = _external(config, dataset, raster, grid)
            elif name == "simulated":
                strips = _simulated(config, dataset, raster, grid, seed)
            else:
                from idgbr.coarse import backbone

                device = device_of(runtime)
                network = network or backbone.load(backbones[name]).to(device)
                strips = backbone.predict(
                    network,
                    reader,
                    config.tile_px,
                    config.overlap_px,
                    temperature=config.temperature,
                    device=device,
                    precision=runtime.precision,
                )
                if config.source == "mixed" and raster.split == "train":
                    strips = _mixed(strips, _simulated(config, dataset, raster, grid, seed), raster, grid, seed)
            path = coarse_path(out, raster.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            with RasterWriter(
                path, grid, dataset.table.n_classes, descriptions=dataset.table.names, tags={"IDGBR_KIND": "probabilities"}
            ) as writer:
                for row, probabilities in strips:
                    writer.write(row, quantise(probabilities))
            done += 1
            if report:
                report(stage="coarse", done=done, total=len(dataset.rasters), raster=raster.id, source=name)


# ---- who maps what ---------------------------------------------------------------------------------------------------------


def _by_source(config: CoarseConfig, dataset: Dataset, backbones: Mapping[str, Path]) -> Iterator[tuple[str, list[Raster]]]:
    """(name of the backbone, "simulated" or "external"; its rasters)."""
    if config.source == "external":
        yield "external", list(dataset.rasters)
        return
    train = [r for r in dataset.rasters if r.split == "train"]
    held_out = [r for r in dataset.rasters if r.split != "train"]
    if config.source == "simulated":
        yield "simulated", train
    elif config.source == "in_fold":
        held_out = train + held_out
    else:
        for n, ids in enumerate(dataset.folds(config.folds) if train else []):
            yield _there(f"fold{n}", backbones), [r for r in train if r.id in ids]
    if held_out:
        yield _there("full", backbones), held_out


def _there(name: str, backbones: Mapping[str, Path]) -> str:
    if name not in backbones:
        raise Missing(
            f"no backbone {name} for the coarse maps", value=f"given: {', '.join(backbones) or 'none'}", hint="run its backbone stage first"
        )
    return name


# ---- simulated, mixed ------------------------------------------------------------------------------------------------------


def _generator(seed: int, raster_id: str, row: int, col: int, what: str) -> np.random.Generator:
    return np.random.default_rng([seed, row, col, *f"{what}/{raster_id}".encode()])


def _simulated(config: CoarseConfig, dataset: Dataset, raster: Raster, grid: Grid, seed: int) -> Strips:
    if raster.label is None:
        raise Missing(
            f"raster {raster.id} has no label to simulate a coarse map from",
            value=f"coarse.source={config.source}",
            hint="coarse.source=out_of_fold, or labels for all training rasters",
        )
    n_classes = dataset.table.n_classes
    for row in range(0, grid.height, SIMULATED_PX):
        height = min(SIMULATED_PX, grid.height - row)
        blocks = []
        for col in range(0, grid.width, SIMULATED_PX):
            width = min(SIMULATED_PX, grid.width - col)
            target = read_labels(raster.label, dataset.table, row, col, height, width)
            rng = _generator(seed, raster.id, row, col, "simulated")
            blocks.append(soften(corrupt(target, n_classes, config.iou, config.modes, rng), n_classes, rng))
        yield row, np.concatenate(blocks, axis=2)


def _mixed(predicted: Strips, simulated: Strips, raster: Raster, grid: Grid, seed: int) -> Strips:
    """Simulated in half of the ground, predicted in the other, in patches of some 64 px with soft borders."""
    blocks = _Rows(simulated)
    for row, part in predicted:
        height = part.shape[1]
        other = blocks.take(height)
        share = 1 / (1 + np.exp(-8 * _field_rows(raster.id, grid, seed, row, height)))
        yield row, part + share * (other - part)


class _Rows:
    """Strips cut anew: the next n rows, however high the strips are that come."""

    def __init__(self, strips: Strips):
        self.strips = strips
        self.left: NDArray[np.float32] | None = None

    def take(self, n: int) -> NDArray[np.float32]:
        while self.left is None or self.left.shape[1] < n:
            _, block = next(self.strips)
            self.left = block if self.left is None else np.concatenate([self.left, block], axis=1)
        out, self.left = self.left[:, :n], self.left[:, n:]
        return out


def _field_rows(raster_id: str, grid: Grid, seed: int, row: int, height: int) -> NDArray[np.float32]:
    """Rows of a smooth random field over the whole raster, made block row by block row so that memory follows the
    width."""
    rows = []
    for block in range(row // SIMULATED_PX, (row + height - 1) // SIMULATED_PX + 1):
        field = smooth((SIMULATED_PX, grid.width), 32, _generator(seed, raster_id, block, 0, "mixed"))
        first = block * SIMULATED_PX
        rows.append(field[max(0, row - first) : row + height - first])
    return np.concatenate(rows)


# ---- external --------------------------------------------------------------------------------------------------------------


def _external(config: CoarseConfig, dataset: Dataset, raster: Raster, grid: Grid) -> Strips:
    """One-hot of a class map (coded like the labels), or probabilities (K bands of numbers, or marked as such)."""
    path = find_external(expanded(config.root), raster.id, raster.image)
    coarse = CoarseMap(path, dataset.table)
    plain = Grid(grid.height, grid.width)  # pictures carry no place: then the size alone must fit
    require_same_grid(plain if coarse.grid == plain else grid, coarse.grid, str(raster.image), str(path))
    for row in range(0, grid.height, SIMULATED_PX):
        height = min(SIMULATED_PX, grid.height - row)
        yield row, coarse.strip(row, height).probabilities(0, 0, height, grid.width)


def find_external(root: Path, raster_id: str, image: Path) -> Path:
    """The map of a raster: named by its id, or like its image, with any raster suffix.

    Raises:
        Missing: no folder, or no such map in it.
    """
    if not root.is_dir():
        raise Missing(
            "no folder of external coarse maps", value=f"coarse.root={root}", hint="a folder with one map an image, of the image's name"
        )
    names: Iterable[str] = dict.fromkeys([raster_id, image.stem])
    for name in names:
        for suffix in SUFFIXES:
            if (root / f"{name}{suffix}").is_file():
                return root / f"{name}{suffix}"
    raise Missing(f"no external coarse map of {raster_id} in {root}", allowed=f"{' or '.join(names)} with one of {' '.join(SUFFIXES)}")
