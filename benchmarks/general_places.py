"""Places that the general refiner was never trained on, as chips of one class against the rest.

A chip is the middle of an image. Its bands are scaled by their mean and standard deviation over the whole image, as
`idgbr refine` scales those of a scene.
"""

from __future__ import annotations

import csv
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from idgbr import datasets
from idgbr.config import DataConfig
from idgbr.general.scale import moments, scaled
from idgbr.general.tiles import SHARES
from idgbr.labels import IGNORE, binary
from idgbr.rasters.read import Reader, read_labels

WORLD = "buildings_world"
# sources whose training places the shipped weights have seen -> folder below --data, filter of the split table
SEEN = {"naip_fields": ("", ""), "oam_buildings": ("oam-buildings", "zoom == 20"), "dubai_landcover": ("dubai-landcover", "")}


@dataclass(frozen=True)
class Chip:
    """`picture` uint8 [3,H,W], `target` [H,W]: 1 the class, 0 the rest, 255 unknown.

    Attributes:
        place: what is averaged over. kind: name of the class. part: rows and columns of the image that are shown.
    """

    name: str
    place: str
    kind: str
    picture: NDArray[np.uint8]
    target: NDArray[np.uint8]
    part: tuple[slice, slice]


def chips_of(source: str, data: Path, crop_px: int, most: int, rng: np.random.Generator) -> list[Chip]:
    """The chips of a source: of `buildings_world` up to `most` a place, of another one of every test image."""
    if source != WORLD:
        return list(of_test_split(source, data, crop_px))
    root, places = data / "buildings-world", defaultdict(list)
    with open(root / "splits.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["grade"] in ("A", "B"):
                places[row["place"]].append(row)
    chosen = [rows[i] for _, rows in sorted(places.items()) for i in sorted(rng.permutation(len(rows))[:most])]
    return [_of_world(root, row, crop_px) for row in chosen]


def of_world(data: Path, place: str, crop_px: int) -> Chip | None:
    """The first chip of a place of buildings-world by name that has grade A or B; None without any."""
    root = data / "buildings-world"
    with open(root / "splits.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["place"] == place and row["grade"] in ("A", "B")]
    return _of_world(root, min(rows, key=lambda row: row["image"]), crop_px) if rows else None


def of_test_split(source: str, data: Path, crop_px: int) -> Iterator[Chip]:
    """A chip of every test image, in the order of names, of the class with the share nearest to a half.

    Images whose middle has no class with 3 to 90 % are left out. Of a set with fewer than five test places, a place is
    an image.
    """
    folder, where = SEEN[source]
    config = DataConfig(source=source, root=str(data / folder) if folder else "", where=where)
    with tempfile.TemporaryDirectory() as work:
        datasets.prepare(config, Path(work))
        dataset = datasets.load(Path(work), config)
    rasters = sorted(dataset.of("test"), key=lambda raster: raster.id)
    by_image = len({raster.scene for raster in rasters}) < 5
    for raster in rasters:
        assert raster.label is not None
        part = middle(raster.height, raster.width, crop_px)
        labels = read_labels(raster.label, dataset.table)[part]
        shares = {k: float((labels == k).mean()) for k in range(dataset.table.n_classes)}
        if dataset.table.n_classes == 2:
            del shares[0]
        usable = [k for k, share in shares.items() if SHARES[0] <= share <= SHARES[1]]
        if usable:
            kind = min(usable, key=lambda k: abs(shares[k] - 0.5))
            image, valid = raster.reader(dataset.bands).read(0, 0, raster.height, raster.width)
            target = np.where(labels == IGNORE, IGNORE, labels == kind).astype(np.uint8)
            place = raster.id if by_image else raster.scene
            yield Chip(raster.id, place, dataset.table.names[kind], _scaled(image, valid, part), target, part)


def middle(height: int, width: int, side: int) -> tuple[slice, slice]:
    """Rows and columns of the middle of an image."""
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def _of_world(root: Path, row: dict[str, str], crop_px: int) -> Chip:
    width, height = map(int, row["size"].split("x"))
    image, valid = Reader(root / row["image"]).read(0, 0, height, width)
    part = middle(height, width, crop_px)
    target = read_labels(root / row["mask"], binary("building"))[part]
    return Chip(Path(row["image"]).stem, row["place"], "building", _scaled(image, np.ones_like(valid), part), target, part)


def _scaled(image: NDArray[np.float32], valid: NDArray[np.bool_], part: Sequence[slice]) -> NDArray[np.uint8]:
    return np.rint(scaled(image, *moments(image, valid))[:, part[0], part[1]]).astype(np.uint8)
