"""Places to look at: the best, the median and the worst by improvement, read as windows from the artefacts.

H, W: a scoring tile's sides; C bands, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from idgbr.datasets.index import BandStats
from idgbr.errors import Disagreement, Missing
from idgbr.labels import ClassTable
from idgbr.scores.read import METRICS, arrays
from sweeps.analysis.trials import TablePart
from sweeps.analysis.unit_sums import IDENTITY
from sweeps.analysis.variants import Population, Variant, baseline_of, brief_names
from sweeps.analysis.views import View
from sweeps.report.score_tables import TITLES, number
from sweeps.tables import Row

PLACE = ("scene", "raster", "row", "col")
FEWEST_SCENES = 3  # with fewer, the best, median and worst tile stand in for places


@dataclass(frozen=True)
class Panel:
    """One window of a place: image uint8 [H,W,3]; coarse, refined, target uint8 [H,W] class indices (`IGNORE` outside)."""

    title: str
    image: np.ndarray
    coarse: np.ndarray
    refined: np.ndarray
    target: np.ndarray


def improvements(population: Population, variant: Variant, coarse: Variant, metric: str, split: str, label_set: str) -> pl.DataFrame:
    """Tiles of the first replicate with the metric of both maps and the improvement (positive is better), the best
    first.

    Tiles where the metric is undefined on either side are left out, and those with hardly any boundary (less than a
    quarter of the median): a handful of pixels makes any ratio.
    """
    frames = []
    m = METRICS[metric]
    for trial in (coarse.trials[0], variant.trials[0]):
        part = population.part_of(trial).of("counts")
        found = pq.read_table(
            part.path, columns=list(dict.fromkeys([*IDENTITY, *m.columns, "biou_union"])), filesystem=part.store.fs, partitioning=None
        )
        rows = pl.DataFrame(pl.from_arrow(found)).filter((pl.col("split") == split) & (pl.col("label_set") == label_set))
        keys, columns = arrays(rows, m, PLACE)
        scored = keys.with_columns(pl.Series("value", np.ravel(m.score(columns))))
        frames.append(scored.join(rows.group_by(PLACE).agg(pl.col("biou_union").sum().alias("boundary")), on=PLACE))
    joined = frames[0].join(frames[1], on=PLACE, suffix="_refined").rename({"value": "coarse", "value_refined": "refined"})
    enough = joined.filter(pl.col("boundary") >= pl.col("boundary").median() / 4)
    joined = enough if enough.height >= 3 else joined
    sign = 1.0 if m.higher_is_better else -1.0
    joined = (
        joined.with_columns((sign * (pl.col("refined") - pl.col("coarse"))).alias("improvement")).fill_nan(None).drop_nulls("improvement")
    )
    return joined.sort("improvement", *PLACE, descending=[True, False, False, False, False])


def choose(tiles: pl.DataFrame, each: int = 1) -> list[tuple[str, Row]]:
    """(best | median | worst, row), `each` of every kind where there are enough tiles."""
    n = tiles.height
    if n == 0:
        return []
    each = max(1, min(each, n // 3))
    middle = (n - each) // 2
    places = (
        [("best", i) for i in range(each)] + [("median", middle + i) for i in range(each)] + [("worst", n - each + i) for i in range(each)]
    )
    seen: dict[int, str] = {}
    for name, i in places:
        seen.setdefault(i, name)
    return [(name, tiles.row(i, named=True)) for i, name in seen.items()]


def by_place(view: View, variant: Variant, coarse: Variant, metric: str, tiles: pl.DataFrame) -> pl.DataFrame:
    """One tile a scene, the one with the most boundary; scores and improvement are those of the whole scene (first
    replicate), the best scene first.

    Args:
        tiles: as `improvements` gives them. With fewer than `FEWEST_SCENES` scenes, or where ground blocks are the unit,
            they are returned as they are.
    """
    if view.sums.unit_kind != "scene" or tiles["scene"].n_unique() < FEWEST_SCENES:
        return tiles
    before, after = (view.scorer.term(v, metric, 1.0).unit[0] for v in (coarse, variant))
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    scenes = pl.DataFrame({"scene": view.sums.units, "coarse": before, "refined": after, "improvement": sign * (after - before)})
    widest = tiles.sort("boundary", *PLACE, descending=[True, False, False, False, False]).unique(
        "scene", keep="first", maintain_order=True
    )
    found = widest.drop("coarse", "refined", "improvement").join(scenes, on="scene").fill_nan(None).drop_nulls("improvement")
    return found.sort("improvement", *PLACE, descending=[True, False, False, False, False])


def panels(
    part: TablePart, row: Row, label_set: str, chosen: list[tuple[str, Row]], shown: Callable[[float], str]
) -> tuple[list[Panel], ClassTable]:
    """Windows of the chosen tiles.

    Args:
        part: trials-table part of the variant's first replicate. row: its trials-table row.
        shown: a score as text.

    Raises:
        Missing: artefacts or data are not there any more (a synced folder may hold the tables alone).
    """
    from idgbr import datasets
    from idgbr.rasters.read import read_labels, read_probabilities

    store = part.store
    refined_dir, coarse_dir = store.path("refined", row["key_refined"]), store.path("coarse", row["key_coarse"])
    dataset = datasets.load(store.path("data", row["key_data"]))
    rasters = {r.id: r for r in dataset.rasters}
    tile_px = int(row["score.tile_px"])
    out = []
    for name, tile in chosen:
        raster = rasters[tile["raster"]]
        r, c = int(tile["row"]), int(tile["col"])
        h, w = min(tile_px, raster.height - r), min(tile_px, raster.width - c)
        label = raster.label_eroded if label_set == "eroded" else raster.label
        if label is None or not Path(label).is_file():
            raise Missing(f"the label of {raster.id} is not there any more", value=label)
        values, valid = raster.reader(dataset.bands).read(r, c, h, w)
        refined = _indices(refined_dir / f"{raster.id}.tif", r, c, h, w)
        coarse = read_probabilities(coarse_dir / f"{raster.id}.tif", r, c, h, w).argmax(axis=0).astype(np.uint8)
        target = read_labels(label, dataset.table, r, c, h, w)
        if not coarse.shape == refined.shape == target.shape:
            raise Disagreement("maps of one tile have different sizes", value=f"{coarse.shape}, {refined.shape}, {target.shape}")
        place = tile["scene"] + (f", row {r}, column {c}" if tile_px < max(raster.height, raster.width) else "")
        title = f"{name}: {shown(tile['coarse'])} → {shown(tile['refined'])}\n{place}"
        out.append(Panel(title, rgb(values, valid, dataset.stats), coarse, refined, target))
    return out, dataset.table


def _indices(path: Path, row: int, col: int, height: int, width: int) -> np.ndarray:
    import rasterio
    from rasterio.windows import Window

    try:
        with rasterio.open(path) as source:
            return source.read(1, window=Window(col, row, width, height)).astype(np.uint8)
    except rasterio.errors.RasterioIOError as error:
        raise Missing(f"no refined map {path}", value=str(error)) from error


def rgb(values: np.ndarray, valid: np.ndarray, stats: BandStats) -> np.ndarray:
    """Raw [C,H,W] -> uint8 [H,W,3], from the 1st to the 99th percentile of the training rasters; one or two bands are
    shown grey.
    """
    bands = [0, 1, 2] if values.shape[0] >= 3 else [0, 0, 0]
    low, high = (np.array([x[b] for b in bands], np.float32)[:, None, None] for x in (stats.low, stats.high))
    scaled = np.clip((values[bands] - low) / np.maximum(high - low, 1e-6), 0, 1) * 255
    return np.moveaxis(np.where(valid, scaled, 255), 0, -1).astype(np.uint8)


def panels_of(view: View, metric: str, each: int = 1) -> tuple[list[Panel], ClassTable, str]:
    """Panels of the best refined variant (by the metric) against its own coarse map, their class table, and a title."""
    refined = best_refined(view, metric)
    coarse = baseline_of(refined, {"kind": "coarse"}, view.population) if refined else None
    if refined is None or coarse is None:
        raise Missing(
            "no refined variant with a coarse map in this study", hint="run a study with refiner.kind=none beside it (the yardsticks)"
        )
    tiles = improvements(view.population, refined, coarse, metric, view.split, view.label_set)
    ranked = by_place(view, refined, coarse, metric, tiles)
    part = view.population.part_of(refined.trials[0])
    found, table = panels(part, refined.row, view.label_set, choose(ranked, each), functools.partial(number, metric))
    of = "place" if ranked is not tiles else "tile"
    title = (
        f"Boundaries of the best, the median and the worst of {ranked.height} {of}s by gain in {TITLES.get(metric, metric)}"
        + ("; of each the tile with the most boundary" if of == "place" else "")
        + f": {brief_names(view.population)[0][refined.label]}, seed {refined.seeds[0]}"
    )
    return found, table, title


def best_refined(view: View, metric: str) -> Variant | None:
    """The diffusion variant with the best mean score; None where there is none with a defined score."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    scored = [(sign * float(view.scorer.seeds(v, metric).mean()), v) for v in view.population.variants if v.kind == "diffusion"]
    known = [(s, v) for s, v in scored if s == s]
    return max(known, key=lambda pair: pair[0])[1] if known else None
