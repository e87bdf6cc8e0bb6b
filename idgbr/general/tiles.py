"""Training tiles of the general refiner: windows of labelled data sets, brought to other ground sizes, one class
against the rest, with a coarse map each. They are an ordinary folder data set, and the ordinary training reads them.

    OUT/images/NAME.jpg    three bands, scaled (`scale.py`)
    OUT/masks/NAME.png     1: the class, 0: the rest, 255: unknown
    OUT/coarse/NAME.tif    probabilities of rest and class, with simulated errors or from a user's maps
    OUT/splits.csv         name, split, scene, source, class, gsd_m
    OUT/classes.json       rest, class

H, W pixels of a tile; K classes of a data set.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.coarse.simulate import fresh
from idgbr.datasets.index import Dataset, Raster
from idgbr.errors import BadRequest, Disagreement
from idgbr.files import replacing
from idgbr.general.one_class import NAMES
from idgbr.general.scale import moments, scaled
from idgbr.interfaces import Report
from idgbr.labels import IGNORE, ClassTable, LabelClass
from idgbr.rasters.coarse_map import coarse_path, read_coarse
from idgbr.rasters.read import Grid, read_labels
from idgbr.rasters.write import write_probabilities

TABLE = ClassTable((LabelClass(NAMES[0], (0,), (40, 40, 40)), LabelClass(NAMES[1], (1,), (255, 80, 40))), (IGNORE,))

MIN_TILE_PX = 128
DRAWS = 60  # windows tried for one tile
SHARES = (0.03, 0.9)  # of the class in a tile
MOST_UNKNOWN = 0.3  # share of a tile
TURNED = 0.25  # share of tiles in which the class is the rest, so that "class" does not come to mean one thing

Index = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TileSet:
    """How many tiles are cut from which rasters.

    Attributes:
        split: of the data set, whose rasters are cut. into: split of the tiles.
        tiles: number. shrink: lowest and highest number of source pixels beside one another that become one pixel.
        coarse_dir: coarse maps of the rasters; None: simulated.
    """

    name: str
    dataset: Dataset
    split: str
    tiles: int
    shrink: tuple[float, float] = (0.6, 2.0)
    into: str = "train"
    coarse_dir: Path | None = None


def write_tiles(
    sets: Sequence[TileSet],
    out: Path,
    *,
    seed: int = 0,
    tile_px: int = 256,
    ious: tuple[float, float] = (0.5, 0.95),
    turned: float = TURNED,
    report: Report | None = None,
) -> None:
    """Write the tiles of all sets; the same arguments give the same files.

    A window lies in one raster, so a tile is smaller than `tile_px` where the raster is small or the step is large,
    but not below 128 px. Tiles in which the class has less than 3 % or more than 90 % are drawn again.

    Args:
        ious: lowest and highest IoU of simulated coarse maps.
        turned: share of tiles in which class and rest are exchanged.

    Raises:
        BadRequest: no window of a set can be used. Missing: no raster in a split.
    """
    for folder in ("images", "masks", "coarse"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    total = sum(each.tiles for each in sets)
    for number, each in enumerate(sets):
        cut = _Cutter(each, tile_px)
        for i in range(each.tiles):
            rng = np.random.default_rng([seed, number, i])
            tile = cut.draw(rng)
            target, coarse = tile.target, tile.coarse
            if coarse is None:
                coarse = fresh(target, 2, ious, rng)
            if rng.random() < turned:
                target, coarse = np.where(target == IGNORE, IGNORE, 1 - target).astype(np.uint8), coarse[::-1]
            name = f"{each.name}_{each.into}_{i:04d}"
            _write(out, name, tile.image, target, coarse)
            rows.append({"name": name, "split": each.into, "scene": f"{each.name}_{tile.scene}", "source": each.name,
                         "class": tile.kind, "gsd_m": "" if tile.gsd_m is None else round(tile.gsd_m, 4)})  # fmt: skip
            if report:
                report(done=len(rows), total=total)
    (out / "classes.json").write_text(TABLE.to_json())
    with replacing(out / "splits.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class _Tile:
    image: Floats  # scaled [3, H, W]
    target: Index  # 1: the class [H, W]
    coarse: Floats | None
    scene: str
    kind: str
    gsd_m: float | None


class _Cutter:
    """Draws windows of one set; rasters are drawn by their area, and statistics are taken once for each."""

    def __init__(self, each: TileSet, tile_px: int):
        self.set, self.tile_px = each, tile_px
        self.rasters = [r for r in each.dataset.of(each.split) if r.label is not None and min(r.height, r.width) >= MIN_TILE_PX]
        if not self.rasters:
            raise BadRequest(f"no raster of {each.name} can be cut into tiles", allowed=f"labels, and {MIN_TILE_PX} px a side or more")
        area = np.array([r.height * r.width for r in self.rasters], np.float64)
        self.shares = area / area.sum()
        self._moments: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def draw(self, rng: np.random.Generator) -> _Tile:
        for _ in range(DRAWS):
            tile = self._try(self.rasters[int(rng.choice(len(self.rasters), p=self.shares))], rng)
            if tile is not None:
                return tile
        raise BadRequest(
            f"no window of {self.set.name} can be used as a tile",
            value=f"{DRAWS} tried",
            allowed=f"a class with {SHARES[0]:.0%} to {SHARES[1]:.0%} of a window, at most {MOST_UNKNOWN:.0%} unknown",
        )

    def _try(self, raster: Raster, rng: np.random.Generator) -> _Tile | None:
        dataset, side = self.set.dataset, min(raster.height, raster.width)
        low, high = self.set.shrink
        step = math.exp(rng.uniform(math.log(low), math.log(max(low, min(high, side / MIN_TILE_PX)))))
        window = min(side, round(self.tile_px * step))
        size = min(self.tile_px, round(window / step))
        row, col = (int(rng.integers(0, n - window + 1)) for n in (raster.height, raster.width))
        assert raster.label is not None
        labels = read_labels(raster.label, dataset.table, row, col, window, window)
        image, valid = raster.reader(dataset.bands).read(row, col, window, window)
        labels = np.where(valid, labels, IGNORE).astype(np.uint8)
        shares = np.array([(labels == k).mean() for k in range(dataset.table.n_classes)])
        usable = np.flatnonzero((shares >= SHARES[0]) & (shares <= SHARES[1]))
        if dataset.table.n_classes == 2:
            usable = usable[usable == 1]  # of a binary set the class that has a name
        if not len(usable) or (labels == IGNORE).mean() > MOST_UNKNOWN:
            return None
        kind = int(rng.choice(usable))
        mean, std = self._scale(raster)
        coarse = None
        if self.set.coarse_dir is not None:
            coarse = resized(read_coarse(self.set.coarse_dir, raster.id, (row, col, window, window))[kind : kind + 1], size)
            coarse = np.concatenate([1 - coarse, coarse]).clip(0, 1)
        gsd_m = None if raster.gsd_m is None else raster.gsd_m * step
        picture = scaled(resized(image, size), mean, std)
        return _Tile(picture, one_class(labels, kind, size), coarse, raster.scene, dataset.table.names[kind], gsd_m)

    def _scale(self, raster: Raster) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if raster.id not in self._moments:
            image, valid = raster.reader(self.set.dataset.bands).read(0, 0, raster.height, raster.width)
            self._moments[raster.id] = moments(image, valid)
        return self._moments[raster.id]


def one_class(labels: Index, kind: int, size: int) -> Index:
    """Labels [H, W] as 1 (class `kind`), 0 (another) and 255 (mostly unknown), resampled to `size` x `size` by
    majority."""
    share, unknown = (resized((labels == code).astype(np.float32)[None], size)[0] for code in (kind, IGNORE))
    return np.where(unknown > 0.25, IGNORE, share > 0.5 * (1 - unknown)).astype(np.uint8)


def resized(bands: Floats, size: int) -> Floats:
    """Bands [C, H, W] at `size` x `size`: means where they shrink, cubic where they grow."""
    if bands.shape[-2:] == (size, size):
        return bands
    how = cv2.INTER_AREA if bands.shape[-1] > size else cv2.INTER_CUBIC
    return np.stack([cv2.resize(band, (size, size), interpolation=how) for band in bands])


def _write(out: Path, name: str, image: Floats, target: Index, coarse: Floats) -> None:
    picture = np.rint(image).astype(np.uint8).transpose(1, 2, 0)[..., ::-1]
    # full colour resolution: chroma at half of it would move the edges that the refiner is to follow
    quality = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    written = cv2.imwrite(str(out / "images" / f"{name}.jpg"), picture, quality) and cv2.imwrite(str(out / "masks" / f"{name}.png"), target)
    if not written:
        raise Disagreement(f"tile {name} could not be written", value=str(out))
    write_probabilities(coarse_path(out / "coarse", name), coarse, Grid(*target.shape), TABLE.names)
