"""Coarse maps of all rasters: what the refiner sees, in training and after.

Held-out splits: by the backbone trained on all training rasters ("full"). Training rasters: by the backbone of the
fold that never saw them, so that the refiner learns on errors like those it will meet; or by "full" (in_fold), by
corruption of the target (simulated), by both (mixed), by three ways in a third of the ground each (thirds: out of
fold, in fold, in fold corrupted to the IoU of validation maps), or from a folder of another model's maps (external).

    <raster id>.tif   K bands uint8, 255 for probability 1, tiled, deflate

K classes, H, W.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from idgbr.coarse.simulate import confusion, corrupt, iou_of, smooth, soften
from idgbr.config import CoarseConfig, Runtime
from idgbr.errors import Missing
from idgbr.interfaces import Report, Stop, end_if_stopped
from idgbr.labels import IGNORE
from idgbr.machine import expanded
from idgbr.rasters.coarse_map import CoarseMap, coarse_path, read_coarse
from idgbr.rasters.read import Grid, RasterWriter, Reader, read_labels, require_same_grid
from idgbr.rasters.write import quantise

if TYPE_CHECKING:
    from idgbr.coarse.backbone import Backbone
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
    stop: Stop | None = None,
) -> None:
    """Write `<raster id>.tif` of every raster of the data set that is not in `out` yet.

    Args:
        backbones: folders by name: "full", and "fold0" ... where `source` is out_of_fold, mixed or thirds; empty where
            it is external. Where it is simulated, none means the training rasters alone.
        seed: of simulated errors.
        report: called with done, total, raster and source after each raster. stop: asked between strips of a raster.

    Raises:
        Interrupted: `stop` was true; whole files stay.
        Missing: a backbone, a target or an external map is not there; thirds without labelled validation rasters.
        Disagreement: an external map is of another size, or has other classes.
    """
    runtime = runtime or Runtime()
    out.mkdir(parents=True, exist_ok=True)
    done, predict = 0, _Predictor(config, dataset, backbones, runtime)
    wanted: list[float] = []
    sources = list(_by_source(config, dataset, backbones))
    total = sum(len(rasters) for _, rasters in sources)
    for name, rasters in sources:
        if config.source == "thirds" and name != "full":
            wanted = wanted or validation_iou(dataset, out)
        for raster in rasters:
            path = coarse_path(out, raster.id)
            if path.exists():  # of a run that was interrupted
                done += 1
                continue
            reader = raster.reader(dataset.bands)
            grid = reader.grid
            strips: Strips
            if name == "external":
                strips = _external(config, dataset, raster, grid)
            elif name == "simulated":
                strips = _simulated(config, dataset, raster, grid, seed)
            else:
                strips = predict(name, reader)
                if config.source == "mixed" and raster.split == "train":
                    strips = _mixed(strips, _simulated(config, dataset, raster, grid, seed), raster, grid, seed)
                elif config.source == "thirds" and raster.split == "train":
                    strips = _thirds(strips, predict("full", reader), wanted, config, dataset, raster, grid, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            with RasterWriter(
                path, grid, dataset.table.n_classes, descriptions=dataset.table.names, tags={"IDGBR_KIND": "probabilities"}
            ) as writer:
                for row, probabilities in strips:
                    end_if_stopped(stop, "the stage coarse")
                    writer.write(row, quantise(probabilities))
            done += 1
            if report:
                report(stage="coarse", done=done, total=total, raster=raster.id, source=name)


class _Predictor:
    """Strips of a raster by one of the backbones; the last two networks stay loaded (a fold's and the full one)."""

    def __init__(self, config: CoarseConfig, dataset: Dataset, backbones: Mapping[str, Path], runtime: Runtime):
        self.config, self.runtime, self.backbones = config, runtime, backbones
        self.load = functools.lru_cache(maxsize=2)(self._load)

    def _load(self, name: str) -> Backbone:
        from idgbr.coarse import backbone
        from idgbr.training.distributed import device_of

        return backbone.load(self.backbones[name]).to(device_of(self.runtime))

    def __call__(self, name: str, reader: Reader) -> Strips:
        from idgbr.coarse import backbone
        from idgbr.training.distributed import device_of

        return backbone.predict(
            self.load(name),
            reader,
            self.config.tile_px,
            self.config.overlap_px,
            temperature=self.config.temperature,
            device=device_of(self.runtime),
            precision=self.runtime.precision,
        )


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
        held_out = held_out if backbones else []
    elif config.source == "in_fold":
        held_out = train + held_out
    else:
        if config.source == "thirds" and held_out:  # what is wanted of training maps is measured on these
            yield _there("full", backbones), held_out
            held_out = []
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


# ---- simulated, mixed, thirds ------------------------------------------------------------------------------------------------------


def _generator(seed: int, raster_id: str, row: int, col: int, what: str) -> np.random.Generator:
    return np.random.default_rng([seed, row, col, *f"{what}/{raster_id}".encode()])


def _label(config: CoarseConfig, raster: Raster) -> Path:
    if raster.label is None:
        raise Missing(
            f"raster {raster.id} has no label to simulate a coarse map from",
            value=f"coarse.source={config.source}",
            hint="coarse.source=out_of_fold, or labels for all training rasters",
        )
    return raster.label


def _simulated(config: CoarseConfig, dataset: Dataset, raster: Raster, grid: Grid, seed: int) -> Strips:
    for row in range(0, grid.height, SIMULATED_PX):
        height = min(SIMULATED_PX, grid.height - row)
        yield row, _corrupted(config.iou, None, config, dataset, raster, row, height, grid.width, seed, "simulated")


def _corrupted(
    iou: float | list[float],
    start: NDArray[np.uint8] | None,
    config: CoarseConfig,
    dataset: Dataset,
    raster: Raster,
    row: int,
    height: int,
    width: int,
    seed: int,
    what: str,
) -> NDArray[np.float32]:
    """Rows of a map with the wanted IoU, softened [K, height, width]; made from the target, or from the map `start`
    [height, width]."""
    label, n_classes = _label(config, raster), dataset.table.n_classes
    blocks = []
    for col in range(0, width, SIMULATED_PX):
        side = min(SIMULATED_PX, width - col)
        target = read_labels(label, dataset.table, row, col, height, side)
        rng = _generator(seed, raster.id, row, col, what)
        first = None if start is None else np.ascontiguousarray(start[:, col : col + side])
        wanted = float(rng.uniform(config.iou, config.iou_high)) if config.iou_high and start is None else iou
        index = corrupt(target, n_classes, wanted, config.modes, rng, first)
        if first is not None:
            index = np.where(index == IGNORE, first, index)
        blocks.append(soften(index, n_classes, rng))
    return np.concatenate(blocks, axis=2)


def _mixed(predicted: Strips, simulated: Strips, raster: Raster, grid: Grid, seed: int) -> Strips:
    """Simulated in half of the ground, predicted in the other, in patches of some 64 px with soft borders."""
    blocks = _Rows(simulated)
    for row, part in predicted:
        height = part.shape[1]
        other = blocks.take(height)
        share = 1 / (1 + np.exp(-8 * _field_rows(raster.id, grid, seed, row, height)))
        yield row, part + share * (other - part)


def _thirds(
    out_of_fold: Strips,
    in_fold: Strips,
    iou: list[float],
    config: CoarseConfig,
    dataset: Dataset,
    raster: Raster,
    grid: Grid,
    seed: int,
) -> Strips:
    """Out of fold, in fold, and in fold corrupted to `iou`, in a third of the ground each, in patches of some 64 px
    with soft borders."""
    others, own = _Rows(out_of_fold), _Rows(in_fold)
    for row in range(0, grid.height, SIMULATED_PX):
        height = min(SIMULATED_PX, grid.height - row)
        first, second = others.take(height), own.take(height)
        start = second.argmax(0).astype(np.uint8)
        third = _corrupted(iou, start, config, dataset, raster, row, height, grid.width, seed, "corrupted")
        fields = np.stack([_field_rows(raster.id, grid, seed, row, height, f"third{n}") for n in range(3)])
        share = np.exp(8 * (fields - fields.max(0)))
        share /= share.sum(0)
        yield row, share[0] * first + share[1] * second + share[2] * third


def validation_iou(dataset: Dataset, folder: Path) -> list[float]:
    """IoU [K] of the coarse maps of labelled validation rasters, pooled; a class that is nowhere takes the mean of
    the others.

    Raises:
        Missing: no validation raster has labels.
    """
    k = dataset.table.n_classes
    counts = np.zeros((k, k), np.int64)
    for raster in dataset.rasters:
        if raster.split != "val" or raster.label is None:
            continue
        for row in range(0, raster.height, SIMULATED_PX):
            height = min(SIMULATED_PX, raster.height - row)
            target = read_labels(raster.label, dataset.table, row, 0, height, raster.width)
            index = read_coarse(folder, raster.id, (row, 0, height, raster.width)).argmax(0).astype(np.uint8)
            counts += confusion(index, target, k)
    if not counts.any():
        raise Missing(
            "no labelled validation raster, so nothing says how good training maps should be",
            value="coarse.source=thirds",
            hint="coarse.source=out_of_fold, or a split with validation rasters",
        )
    iou = iou_of(counts)
    return np.where(np.isnan(iou), np.nanmean(iou), iou).clip(0.05, 1).tolist()


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


def _field_rows(raster_id: str, grid: Grid, seed: int, row: int, height: int, what: str = "mixed") -> NDArray[np.float32]:
    """Rows of a smooth random field over the whole raster, made block row by block row so that memory follows the
    width."""
    rows = []
    for block in range(row // SIMULATED_PX, (row + height - 1) // SIMULATED_PX + 1):
        field = smooth((SIMULATED_PX, grid.width), 32, _generator(seed, raster_id, block, 0, what))
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
