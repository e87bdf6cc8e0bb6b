"""Counts summed by unit of inference, with filters and sums pushed into the Parquet scan.

T trials, U units (scenes, or ground blocks where a split has fewer than six scenes), K classes, C columns.
Trials are paired by tile: a tile that one of them lacks is left out for all of them, and a note says how many.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from idgbr.errors import BadRequest, Disagreement, nearest
from idgbr.scores.read import METRICS, Metric, mean_of_defined, ratio, require_counted
from sweeps.analysis.trials import TablePart, damaged, one_version, version_of

FEWEST_SCENES = 6
UNITS = ("auto", "scene", "block")  # a tile is none: tiles of one scene err together
FILES_AT_A_TIME = 200  # each trial's rows lie whole in its own part, so batches bound the memory and need no second pass
WHOLE_TILE = -1
IDENTITY = ("trial", "split", "label_set", "scene", "raster", "row", "col", "block", "class")
_TILE_VALUE = re.compile(r"\.(sum|n)\d+$")


@dataclass(frozen=True)
class Sums:
    """Counts summed over the tiles of every unit.

    Attributes:
        trials: T trial ids. units: U names. classes: K class numbers, the whole tile (-1) first. columns: C names.
        values: float64 [T, U, K, C]; NaN where a column was not counted, 0 where a unit has no rows of a class.
        tiles: [U] number of tiles, the same for every trial.
        scenes: number of scenes, whatever the unit.
    """

    trials: tuple[str, ...]
    units: tuple[str, ...]
    unit_kind: str  # "scene" or "block"
    scenes: int
    classes: tuple[int, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    tiles: np.ndarray
    notes: tuple[str, ...] = ()

    def of(self, trials: Sequence[str]) -> np.ndarray:
        """[len(trials), U, K, C]"""
        return self.values[[self._place[t] for t in trials]]

    @functools.cached_property
    def _place(self) -> dict[str, int]:
        return {t: i for i, t in enumerate(self.trials)}


def label_sets(parts: Sequence[TablePart]) -> list[tuple[str, str]]:
    """(split, label_set) pairs in the counts of these trials, in alphabetical order."""
    _check_parts(tuple(p.of("counts") for p in parts))
    found: set[tuple[str, str]] = set()
    for lazy in _batches([p.of("counts") for p in parts], ["split", "label_set"]):
        found |= set(lazy.select("split", "label_set").unique().collect(engine="streaming").iter_rows())
    return sorted(found)


def unit_sums(
    parts: Sequence[TablePart], metrics: Sequence[str], *, split: str, label_set: str, unit: str = "auto", columns: Sequence[str] = ()
) -> Sums:
    """Sum what some metrics need over the tiles, by trial, unit and class.

    A metric that is a mean over tiles becomes two columns, `<name>.sum<j>` and `<name>.n<j>`, for each of its values
    a tile.

    Args:
        parts: trials-table parts, one a trial; their counts parts are read.
        metrics: names in `idgbr.scores.METRICS`. columns: further columns to sum.
        unit: "scene", "block", or "auto": blocks where the split has fewer than six scenes.

    Raises:
        Disagreement: a counts part is missing, half-written or foreign; versions differ; the trials have no tile in
            common.
        BadRequest: no such unit. Missing: a metric that was not counted.
    """
    if unit not in UNITS:
        raise BadRequest("no such unit of inference", value=unit, allowed=", ".join(UNITS), hint=nearest(unit, UNITS) or None)
    counts = [p.of("counts") for p in parts]
    there = _check_parts(tuple(counts))
    for m in metrics:
        require_counted(m, there)
    pooled = [METRICS[m] for m in metrics if METRICS[m].how == "pooled"]
    by_tile = [METRICS[m] for m in metrics if METRICS[m].how == "tile_mean"]
    summed = list(dict.fromkeys([*(c for m in pooled for c in m.columns), *columns]))
    wanted = (pl.col("split") == split) & (pl.col("label_set") == label_set)
    tiles, notes, common = _common_tiles(counts, wanted)
    scenes = tiles["scene"].n_unique()
    kind = unit if unit != "auto" else ("scene" if scenes >= FEWEST_SCENES else "block")
    unit_of = (pl.col("scene") if kind == "scene" else pl.concat_str("scene", "block", separator=" ")).alias("unit")
    tiles = tiles.with_columns(unit_of)
    units = tuple(sorted(tiles["unit"].unique()))
    read = list(dict.fromkeys([*IDENTITY, *summed, *(c for m in by_tile for c in m.columns)]))
    frames = []
    for lazy in _batches(counts, read):
        lazy = lazy.filter(wanted)
        if common is not None:
            lazy = lazy.join(common.lazy(), on=["raster", "row", "col"], how="semi")
        lazy = lazy.with_columns(unit_of)
        if by_tile:
            lazy = _with_tile_values(lazy.collect(engine="streaming"), by_tile).lazy()
        names = [*summed, *(c for c in lazy.collect_schema().names() if _TILE_VALUE.search(c))]
        # a column that is null everywhere was not counted: NaN, not 0
        total = [pl.when(pl.col(c).count() > 0).then(pl.col(c).sum().cast(pl.Float64)).otherwise(float("nan")).alias(c) for c in names]
        frames.append(lazy.group_by("trial", "unit", "class").agg(total).collect(engine="streaming"))
    frame = pl.concat(frames)
    names = [c for c in frame.columns if c not in ("trial", "unit", "class")]
    trials = tuple(p.trial for p in parts)
    classes = tuple(sorted(frame["class"].unique()))
    values = np.zeros((len(trials), len(units), len(classes), len(names)))
    values[_place(frame["trial"], trials), _place(frame["unit"], units), _place(frame["class"], classes)] = frame.select(names).to_numpy()
    per_unit = dict(tiles.group_by("unit").len().iter_rows())
    return Sums(trials, units, kind, scenes, classes, tuple(names), values, np.array([per_unit[u] for u in units]), tuple(notes))


def _with_tile_values(frame: pl.DataFrame, metrics: Sequence[Metric]) -> pl.DataFrame:
    """Per tile (and class) the values of metrics that are means over tiles, as `.sum` (0 where undefined) and `.n` (0
    or 1) columns.
    """
    out = []
    for m in metrics:
        of_tile = m.rows == "tile"
        arrays = {c: frame[c].cast(pl.Float64).fill_null(float("nan")).to_numpy() for c in m.columns}
        values = m.value(arrays if of_tile else {c: a[:, None] for c, a in arrays.items()}).reshape(frame.height, -1)
        mine = (frame["class"].to_numpy() == WHOLE_TILE) == of_tile
        for j in range(values.shape[1]):
            known = np.isfinite(values[:, j]) & mine
            out += [pl.Series(f"{m.name}.sum{j}", np.where(known, values[:, j], 0.0)), pl.Series(f"{m.name}.n{j}", known.astype(np.int64))]
    return frame.with_columns(out)


def rows_for(sums: Sums, counts: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """[..., K, C] in the order of `sums` -> only the classes and columns that a metric reads, and the names of the
    columns.
    """
    m = METRICS[name]
    columns = tuple(m.columns) if m.how == "pooled" else tuple(c for c in sums.columns if c.startswith((f"{name}.sum", f"{name}.n")))
    classes = [i for i, c in enumerate(sums.classes) if (c == WHOLE_TILE) == (m.rows == "tile")]
    return counts[..., classes, :][..., [sums.columns.index(c) for c in columns]], columns


def metric_values(rows: np.ndarray, columns: Sequence[str], name: str) -> np.ndarray:
    """[..., K, C] sums as `rows_for` gives them (K is 1 for the whole tile) -> [...] metric, NaN where undefined."""
    m = METRICS[name]
    if m.how == "pooled":
        found = {c: rows[..., i] for i, c in enumerate(columns)}
        return m.score({c: v[..., 0] for c, v in found.items()} if m.rows == "tile" else found)
    pairs = [(i, columns.index(c.replace(".sum", ".n"))) for i, c in enumerate(columns) if c.startswith(f"{name}.sum")]
    means = np.stack([ratio(rows[..., i], rows[..., n]) for i, n in pairs], -1)
    means = means.reshape(*means.shape[:-2], -1)  # classes (or the one whole-tile row) x values a tile
    return np.apply_along_axis(m.combine, -1, means) if m.combine else mean_of_defined(means)


def _place(series: pl.Series, names: Sequence[object]) -> np.ndarray:
    return series.replace_strict(list(names), list(range(len(names))), return_dtype=pl.Int64).to_numpy()


def _common_tiles(counts: Sequence[TablePart], wanted: pl.Expr) -> tuple[pl.DataFrame, list[str], pl.DataFrame | None]:
    """Tiles that every trial has (scene, block, raster, row, col); notes; and the same as a filter, None when nothing
    must be filtered.
    """
    place = ["scene", "block", "raster", "row", "col"]
    whole = wanted & (pl.col("class") == WHOLE_TILE)
    prints = pl.concat(
        [
            lazy.filter(whole)
            .group_by("trial")
            .agg(pl.len(), pl.struct(place).hash(seed=1).sum().alias("print"))
            .collect(engine="streaming")
            for lazy in _batches(counts, IDENTITY)
        ]
    )
    lacking = sorted({p.trial for p in counts} - set(prints["trial"]))
    if lacking:
        raise Disagreement(
            f"{len(lacking)} trials have no tile of this split and label set",
            value=", ".join(lacking[:5]),
            hint="leave them out (--where), or compare another split or label set",
        )
    reference = next(_batches(counts[:1], IDENTITY)).filter(whole).select(place).unique().collect()
    if prints.select("len", "print").n_unique() == 1:
        return reference, [], None
    several = pl.concat([lazy.filter(whole).select(*place, "trial").collect() for lazy in _batches(counts, IDENTITY)])
    tally = several.group_by(place).agg(pl.col("trial").n_unique().alias("trials"))
    common = tally.filter(pl.col("trials") == len(counts)).select(place)
    if not common.height:
        fewest = prints.sort("len")["trial"][0]
        raise Disagreement(
            f"{len(counts)} trials have no tile in common; pairing by tile is impossible",
            value=f"fewest tiles: trial {fewest}",
            hint="filter the trials (--where) to those of one data set and one score.tile_px",
        )
    note = f"{tally.height - common.height} of {tally.height} tiles are not in every trial and were left out for all (pairing by tile)."
    return common, [note], common.select("raster", "row", "col")


@functools.lru_cache(maxsize=8)
def _check_parts(counts: tuple[TablePart, ...]) -> frozenset[str]:
    """The columns that all parts have."""
    versions, columns = [], []
    for part in counts:
        try:
            schema = pq.read_schema(part.path, filesystem=part.store.fs)
        except FileNotFoundError as error:
            raise Disagreement(
                f"trial {part.trial} is recorded as done, but {part.path} is not there", hint="run the study again: it is redone"
            ) from error
        except (pa.ArrowInvalid, OSError) as error:
            raise damaged(part, error, "move it and its part in tables/trials away, then run the study again") from error
        versions.append((part.path, version_of(schema)))
        columns.append(frozenset(schema.names))
    one_version(versions)
    return frozenset.intersection(*columns)


def _batches(parts: Sequence[TablePart], columns: Sequence[str]) -> Iterator[pl.LazyFrame]:
    """The parts as lazy frames of some hundred files; local files are scanned by polars, others read through their
    filesystem.
    """
    for start in range(0, len(parts), FILES_AT_A_TIME):
        batch = parts[start : start + FILES_AT_A_TIME]
        if all(p.store.is_local for p in batch):
            yield pl.scan_parquet([p.path for p in batch], hive_partitioning=False, glob=False).select(columns)
        else:
            tables = [pq.read_table(p.path, columns=list(columns), filesystem=p.store.fs, partitioning=None) for p in batch]
            yield pl.DataFrame(pa.concat_tables(tables)).lazy()
