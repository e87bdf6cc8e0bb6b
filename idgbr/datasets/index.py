"""The index of a data set: which rasters, of which scenes, in which split; folds; band statistics. Light: no pixels,
no torch, no GDAL."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from idgbr.config import DataConfig
from idgbr.datasets.sources import layout
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.labels import ClassTable
from idgbr.machine import expanded

if TYPE_CHECKING:
    from idgbr.rasters.read import Reader

INDEX_VERSION = 1
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("scene", pa.string()),
        ("split", pa.string()),
        ("image", pa.string()),
        ("label", pa.string()),
        ("label_eroded", pa.string()),  # below the root, or absolute
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("gsd_m", pa.float64()),
        ("x_m", pa.float64()),
        ("y_m", pa.float64()),
        ("image_bands", pa.int32()),
        ("dtype", pa.string()),
        ("compression", pa.string()),
        ("block_rows", pa.int32()),
        ("block_cols", pa.int32()),
        ("crs", pa.string()),
        ("transform", pa.list_(pa.float64())),
        ("nodata", pa.float64()),
        ("valid_px", pa.int64()),
        ("ignored_px", pa.int64()),
        ("class_px", pa.list_(pa.int64())),
        ("image_digest", pa.string()),
        ("label_digest", pa.string()),
        ("same_image_as", pa.string()),
    ]
)


@dataclass(frozen=True)
class Raster:
    """One image file with (perhaps) a label file.

    `label` is the full ground truth; `label_eroded` the variant whose object borders are ignore (ISPRS). `x_m`, `y_m`
    are the place of the upper left corner within the scene, x to the right and y downwards, in metres; where the
    ground size of a pixel is unknown (`gsd_m` None) a pixel counts as one metre; 0 where the place is unknown.
    """

    id: str
    scene: str
    split: str
    image: Path
    label: Path | None
    label_eroded: Path | None
    height: int
    width: int
    gsd_m: float | None
    x_m: float = 0.0
    y_m: float = 0.0
    alpha_is_data: bool = False  # the band that the image marks as alpha is a band like the others (near infrared)

    def reader(self, bands: tuple[int, ...]) -> Reader:
        """Windows of the image, with the pixels that are valid in this data set."""
        from idgbr.rasters.read import Reader

        return Reader(self.image, bands, alpha_is_data=self.alpha_is_data)


@dataclass(frozen=True)
class BandStats:
    """Of the valid pixels of the training rasters, one number a band read: mean, standard deviation, 1st and 99th
    percentile."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Dataset:
    """The rasters of all splits, the classes, the statistics of the bands used, and the side in metres of a fold's
    ground block."""

    rasters: tuple[Raster, ...]
    table: ClassTable
    stats: BandStats
    bands: tuple[int, ...]
    block_m: float = 150.0

    def of(self, split: str) -> tuple[Raster, ...]:
        """Rasters of a split, in the order of the index.

        Raises:
            Missing: there are none.
        """
        found = tuple(r for r in self.rasters if r.split == split)
        if not found:
            there = ", ".join(sorted({r.split for r in self.rasters}))
            raise Missing(
                f"the data set has no rasters in split '{split}'",
                allowed=there,
                hint="another sampler.split, or a split table with this one",
            )
        return found

    def folds(self, k: int) -> list[tuple[str, ...]]:
        """Ids of the training rasters held out in each of k folds; every training raster is in exactly one.

        By scene, where there are at least k scenes and none has more than 2/k (for k > 4: 1/2) of the area (else one
        fold's network would be trained on next to nothing); by ground block of side `block_m` (the block of the
        raster's middle) otherwise; by raster where blocks are too few. Groups go, largest first, to the fold that has
        the smallest area so far.

        Raises:
            BadRequest: fewer training rasters than folds.
        """
        return [tuple(r.id for r in fold) for fold in grouped_folds(self.of("train"), k, self.block_m)[1]]


def block(raster: Raster, block_m: float) -> tuple[int, int]:
    """Ground block (row, column) within the scene that the raster's middle lies in."""
    side = raster.gsd_m or 1.0
    return int((raster.y_m + raster.height * side / 2) // block_m), int((raster.x_m + raster.width * side / 2) // block_m)


def grouped_folds(rasters: Sequence[Raster], k: int, block_m: float) -> tuple[str, list[list[Raster]]]:
    """What `Dataset.folds` keeps together ("scene", "block" or "raster"), and its folds.

    Raises:
        BadRequest: fewer rasters than folds.
    """
    if len(rasters) < k:
        raise BadRequest(
            "fewer training rasters than folds",
            value=f"coarse.folds={k}, {len(rasters)} training rasters",
            hint="fewer folds, or cut the training scene into several rasters",
        )
    total = sum(r.height * r.width for r in rasters)
    groups: dict[Any, list[Raster]] = {}
    for unit in ("scene", "block", "raster"):
        groups = defaultdict(list)
        for r in rasters:
            groups[{"scene": (r.scene,), "block": (r.scene, *block(r, block_m)), "raster": (r.id,)}[unit]].append(r)
        largest = max(sum(r.height * r.width for r in group) for group in groups.values())
        if len(groups) >= k and (unit == "raster" or largest <= total * max(2 / k, 0.5)):
            break
    order = {r.id: i for i, r in enumerate(rasters)}
    folds: list[list[Raster]] = [[] for _ in range(k)]
    areas = [0] * k
    for _, group in sorted(groups.items(), key=lambda item: (-sum(r.height * r.width for r in item[1]), item[0])):
        smallest = min(range(k), key=lambda i: (areas[i], i))
        folds[smallest] += group
        areas[smallest] += sum(r.height * r.width for r in group)
    return unit, [sorted(fold, key=lambda r: order[r.id]) for fold in folds]


# ---- on disk ------------------------------------------------------------------------------------------------------------


def save(folder: Path, rows: Sequence[Mapping[str, Any]], table: ClassTable, stats: BandStats, facts: Mapping[str, Any]) -> None:
    """Write scenes.parquet, classes.json and stats.json. `facts` (root, source, bands, notes, ...) go into
    stats.json."""
    columns = pa.Table.from_pylist(list(rows), schema=SCHEMA).replace_schema_metadata({"idgbr_index_version": str(INDEX_VERSION)})
    (folder / "classes.json").write_text(table.to_json())
    (folder / "stats.json").write_text(json.dumps({**facts, **dataclasses.asdict(stats)}, indent=1))
    pq.write_table(columns, folder / "scenes.parquet")


def rows(folder: Path) -> list[dict[str, Any]]:
    """All columns of the index, one dict a raster.

    Raises:
        Missing: nothing prepared there. Disagreement: written by another version.
    """
    path = folder / "scenes.parquet"
    if not path.is_file():
        raise Missing("no prepared data set", value=folder, hint="`idgbr prepare RECIPE`")
    found = pq.read_table(path)
    version = (found.schema.metadata or {}).get(b"idgbr_index_version", b"").decode()
    if version != str(INDEX_VERSION):
        raise Disagreement(
            f"{path} was written by another version", value=version or "none", allowed=str(INDEX_VERSION), hint="prepare again"
        )
    return found.to_pylist()


def load(folder: Path, config: DataConfig | None = None) -> Dataset:
    """The data set prepared in `folder`.

    Args:
        config: its `root` is where the files are now (an index is the same for every copy of the data) and its
            `block_m` the side of ground blocks; None: as when it was prepared.

    Raises:
        Missing: nothing prepared there, or the data are not at the root any more.
    """
    folder = Path(folder)
    records = rows(folder)
    facts = json.loads((folder / "stats.json").read_text())
    given = config.root if config and config.root else facts["root"]
    root = layout(facts["source"]).built_in or folder.absolute()
    if given and layout(facts["source"]).find is not None:
        root = expanded(given).absolute()
        if not root.is_dir():
            raise Missing("the data set is not where it was prepared from", value=root, hint="data.root=FOLDER, where it is now")

    def path(text: str | None) -> Path | None:
        return root / text if text else None

    rasters = tuple(
        Raster(
            r["id"],
            r["scene"],
            r["split"],
            root / r["image"],
            path(r["label"]),
            path(r["label_eroded"]),
            r["height"],
            r["width"],
            r["gsd_m"],
            r["x_m"],
            r["y_m"],
            facts.get("alpha_is_data", False),
        )
        for r in records
    )
    stats = BandStats(*(tuple(float(v) for v in facts[name]) for name in ("mean", "std", "low", "high")))
    if not all(math.isfinite(v) for v in stats.mean + stats.std):
        raise Disagreement(f"band statistics of {folder} are not finite", value=stats)
    table = ClassTable.load(folder / "classes.json")
    return Dataset(rasters, table, stats, tuple(facts["bands"]), config.block_m if config else float(facts["block_m"]))
