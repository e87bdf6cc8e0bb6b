"""Scores from tables of counts: numpy and polars. The registry of scores is in `metrics.py`.

`evaluate(frame, name)` gives one score of the counts table of one trial, one split, one label set. Gains over the
coarse map (frequency bands, any score) are contrasts between two trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from idgbr.errors import Disagreement, Missing
from idgbr.interfaces import Json
from idgbr.scores.formulas import iou, mean_of_defined, net_gain, ratio
from idgbr.scores.metrics import METRICS, Metric, metric
from idgbr.scores.schema import COUNTS_SCHEMA, LEDGER, OBJECTS, RATES, UNCERTAINTY

__all__ = [
    "METRICS",
    "Metric",
    "Value",
    "evaluate",
    "gain",
    "mean_of_defined",
    "metric",
    "ratio",
    "read_counts",
    "require_counted",
    "score_table",
    "sums",
]


# ---- from tables --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """One score of one trial.

    score: over the classes. per_class [K], or () if the score has no classes. how: as `Metric.how`. undefined: how
    many of the `of` rasters (pooled) or tiles (tile_mean) have no value by themselves, for each class (or one
    number).
    """

    score: float
    per_class: tuple[float, ...]
    undefined: tuple[int, ...]
    of: int
    how: str


TILE = ("scene", "raster", "row", "col")


def arrays(frame: pl.DataFrame, wanted: Metric, by: Sequence[str] = TILE) -> tuple[pl.DataFrame, dict[str, NDArray]]:
    """Columns of a metric summed by `by` (a tile, or coarser): keys [n], and arrays [n, K] ("class" rows) or [n].

    Sums of columns that are null everywhere are NaN. Only `how == "pooled"` metrics may be summed over tiles.
    """
    names = [c for c in wanted.columns if c in frame.columns]
    summed = [pl.when(pl.col(c).count() > 0).then(pl.col(c).sum()) for c in names]
    if wanted.rows == "tile":
        table = frame.filter(pl.col("class") == -1).group_by(by).agg(summed).sort(by)
        return table.select(by), {c: _numbers(table[c]) for c in names}
    rows = frame.filter(pl.col("class") >= 0)
    k = int(rows["class"].n_unique())
    table = rows.group_by([*by, "class"]).agg(summed).sort([*by, "class"])
    if len(table) % max(k, 1):
        raise Disagreement("tiles with different classes in one counts table", value=f"{len(table)} rows, {k} classes")
    keys = table.filter(pl.col("class") == table["class"].min()).select(by)
    return keys, {c: _numbers(table[c]).reshape(-1, k) for c in names}


def _numbers(column: pl.Series) -> NDArray:
    return column.to_numpy() if not column.null_count() else column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def sums(frame: pl.DataFrame, name: str, by: Sequence[str] = ("scene",)) -> tuple[pl.DataFrame, dict[str, NDArray]]:
    """`arrays` by metric name, by scene unless told."""
    return arrays(frame, metric(name), by)


def one_set(frame: pl.DataFrame) -> None:
    """Raises:
    Disagreement: more than one trial, split or label set in one table. Missing: no rows.
    """
    if not len(frame):
        raise Missing("a counts table without rows", hint="score something first")
    for column in ("trial", "split", "label_set"):
        found = frame[column].unique().to_list() if column in frame.columns else []
        if len(found) > 1:
            raise Disagreement(
                f"scores of different {column}s are never mixed in one table",
                value=", ".join(map(str, sorted(found, key=str))),
                hint=f"filter on {column} first",
            )


def require_counted(name: str, columns: Iterable[str]) -> None:
    """Raises:
    Missing: a table of these columns does not hold what a score needs, because it is counted only when asked for.
    """
    asked = {"score.objects": OBJECTS, "score.uncertainty": UNCERTAINTY}
    for setting, optional in asked.items():
        if set(metric(name).columns) & set(optional) - set(columns):
            raise Missing(f"the score {name} was not counted", value=f"{setting}=false", hint=f"score again with {setting}=true")


def evaluate(frame: pl.DataFrame, name: str) -> Value:
    """One score of the counts of one trial, split and label set.

    Raises:
        BadRequest: no such score. Disagreement: trials, splits or label sets are mixed. Missing: no rows, or the score
            was not counted.
    """
    one_set(frame)
    wanted = metric(name)
    require_counted(name, frame.columns)
    by = ("scene", "raster") if wanted.how == "pooled" else TILE
    _, columns = arrays(frame, wanted, by)
    values = wanted.value(columns)  # [rasters or tiles, K] or [..., parts] or [...]
    if wanted.how == "pooled":
        pooled = wanted.value({name: column.sum(0) for name, column in columns.items()})
    else:
        pooled = mean_of_defined(values, 0)
    undefined = tuple(np.atleast_1d(np.isnan(values).sum(0)).tolist())
    if wanted.combine:
        return Value(wanted.combine(pooled), (), undefined, len(values), wanted.how)
    if wanted.per_class:
        return Value(float(mean_of_defined(pooled)), tuple(pooled.tolist()), undefined, len(values), wanted.how)
    return Value(float(pooled), (), undefined, len(values), wanted.how)


def gain(after: pl.DataFrame, before: pl.DataFrame, name: str) -> tuple[float, int, int]:
    """How much better `after` scores than `before`, over the values that are defined in both.

    A class that one map lacks altogether has no value there (a distance to nothing, an IoU of a class in neither
    map); a difference of two means over different classes would call its loss a gain. Pooled scores are compared
    class by class, means over tiles tile by tile and class by class.

    Returns:
        The mean difference, positive if better (NaN if nothing is defined in both); of how many values; how many are
        defined in only one.

    Raises: as `evaluate`.
    """
    wanted = metric(name)
    by = ("scene", "raster") if wanted.how == "pooled" else TILE
    values = []
    for frame in (after, before):
        one_set(frame)
        _, columns = arrays(frame, wanted, by)
        if wanted.how == "pooled":
            columns = {c: column.sum(0)[None] for c, column in columns.items()}
        values.append(np.asarray(wanted.value(columns), np.float64))
    new, old = values
    if new.shape != old.shape:
        raise Disagreement("two maps that were not counted on the same tiles", value=f"{len(new)} and {len(old)}", hint="score both again")
    both = np.isfinite(new) & np.isfinite(old)
    left_out = int((np.isfinite(new) != np.isfinite(old)).sum())
    if wanted.combine is None:
        better = mean_of_defined(np.atleast_1d(mean_of_defined(np.where(both, new - old, np.nan), 0)))
    else:  # parts that the combination leaves out of one map only are left out of both
        means = [mean_of_defined(np.where(both, v, np.nan), 0) for v in (new, old)]
        used = (means[0] > 0) & (means[1] > 0)
        left_out += int(((means[0] > 0) != (means[1] > 0)).sum())
        better = np.asarray(wanted.combine(means[0][used]) - wanted.combine(means[1][used]))
    return float(better) * (1 if wanted.higher_is_better else -1) + 0.0, int(both.sum()), left_out


def score_table(frame: pl.DataFrame, names: Iterable[str] = ()) -> dict[str, Value]:
    """Every score that was counted (or those named) of one trial, split and label set."""
    return {name: evaluate(frame, name) for name in (names or [n for n, m in METRICS.items() if set(m.columns) <= set(frame.columns)])}


def distance_curve(bands: pl.DataFrame) -> list[Json]:
    """Scores against distance to the target's boundary: one entry a band, pooled over tiles.

    Keys: low_px, high_px, valid, accuracy, iou [K], miou, and with a coarse map kept, repaired, damaged, still_wrong,
    net_gain.
    """
    one_set(bands)
    names = [n for n in ("valid", "correct", *RATES, *LEDGER) if n in bands.columns]
    table = bands.group_by("low_px", "high_px", "class").agg(pl.when(pl.col(n).count() > 0).then(pl.col(n).sum()).alias(n) for n in names)
    out = []
    for (low, high), part in table.sort("low_px", "class").group_by("low_px", "high_px", maintain_order=True):
        classes, whole = part.filter(pl.col("class") >= 0), part.filter(pl.col("class") == -1).row(0, named=True)
        values = iou(*(classes[n].to_numpy() for n in RATES))
        entry: Json = {
            "low_px": low,
            "high_px": high,
            "valid": whole["valid"],
            "accuracy": float(ratio(np.int64(whole["correct"]), np.int64(whole["valid"]))),
            "iou": values.tolist(),
            "miou": float(mean_of_defined(values)),
        }
        if whole.get("kept") is not None:
            entry |= {n: whole[n] for n in LEDGER}
            entry["net_gain"] = float(net_gain(*(np.array(whole[n]) for n in ("repaired", "damaged", "still_wrong"))))
        out.append(entry)
    return out


def read_counts(path: str | Path, schema: pa.Schema = COUNTS_SCHEMA) -> pl.DataFrame:
    """A counts (or bands) table.

    Raises:
        Missing: no such file. Disagreement: a table of another kind or version.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.exists():
        raise Missing("no counts table", value=path, hint="`idgbr score PRED TARGET --out counts.parquet` writes one")
    table = pq.read_table(path)
    wanted, found = schema.metadata, table.schema.metadata or {}
    for key in (b"idgbr.table", b"idgbr.version"):
        if found.get(key) != wanted[key]:
            raise Disagreement(
                f"{path} is not a table of this kind and version",
                value=f"{key.decode()} {found.get(key, b'none').decode()}",
                allowed=wanted[key].decode(),
                hint="score again",
            )
    return pl.DataFrame(pl.from_arrow(table))
