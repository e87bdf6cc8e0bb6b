"""Scores as pure functions of counts (`schema.py`): numpy, and polars for tables. The formulas are in `formulas.py`.

    METRICS: dict[name, Metric]

    Metric.rows     "class": reads the rows of the classes, one entry a class on the last axis
                    "tile":  reads the rows of class -1
    Metric.columns  the columns it reads
    Metric.how      "pooled":    sum the columns over tiles (of a unit, a split, a bootstrap resample), then call `value`
                    "tile_mean": call `value` on every tile, then take the mean over the tiles where it is not NaN
    Metric.value(columns: Mapping[str, float or int array]) -> float64 array
                    "class" rows: arrays [..., K] -> [..., K] (a value a class), or [...] if `per_class` is False
                    "tile" rows:  arrays [...]    -> [...]
                    NaN where undefined (an empty class is neither 0 nor 1)
    Metric.score(columns) -> [...]: mean of `value` over the classes where it is defined; `value` itself if not
    `per_class` Metric.higher_is_better, Metric.doc

A null column (no coarse map was given, surface not asked for) reads as NaN. `evaluate(frame, name)` does all this for
the counts table of one trial, one split, one label set. Gains over the coarse map (frequency bands, any score) are
contrasts between two trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from idgbr.errors import BadRequest, Disagreement, Missing, nearest
from idgbr.interfaces import Json
from idgbr.scores.formulas import (
    Array,
    Columns,
    band_error,
    boundary_f,
    f1,
    iou,
    iou_imp,
    kappa,
    legacy_min,
    mba,
    mean_of_defined,
    net_gain,
    overall_accuracy,
    ratio,
    weighted_f,
)
from idgbr.scores.schema import COUNTS_SCHEMA, ENERGIES, JOINT, LEDGER, MBA, RATES, TRIMAP_WIDTHS_PX


@dataclass(frozen=True)
class Metric:
    """One score: see the head of this file for what the fields mean."""

    name: str
    columns: tuple[str, ...]
    value: Callable[[Columns], Array]
    doc: str
    rows: Literal["class", "tile"] = "class"
    per_class: bool = True
    how: Literal["pooled", "tile_mean"] = "pooled"
    higher_is_better: bool = True
    combine: Callable[[Array], float] | None = None  # tile_mean of several values a tile: means over tiles [n] -> one value

    def score(self, columns: Columns) -> Array:
        """The score of every row of `columns`: where it is one a class, the mean over the classes that have one."""
        values = self.value(columns)
        return mean_of_defined(values) if self.per_class else values


# ---- the registry -------------------------------------------------------------------------------------------------------------


def _of(function: Callable[..., Array], *names: str) -> Callable[[Columns], Array]:
    return lambda columns: function(*(columns[name] for name in names))


def _band(low: bool) -> Callable[[Columns], Array]:
    return lambda columns: band_error(columns, low)


_BF = ("bf_pred_hits", "bf_pred_pixels", "bf_target_hits", "bf_target_pixels")
_LEGACY = ("wfm_edge_legacy_0_value", "wfm_edge_legacy_1_value")


def _metrics() -> Iterable[Metric]:
    yield Metric("miou", RATES, _of(iou, *RATES), "IoU; mean over the classes in either map")
    yield Metric("f1", RATES, _of(f1, *RATES), "F1 (Dice)")
    yield Metric("precision", ("tp", "fp"), lambda c: ratio(c["tp"], c["tp"] + c["fp"]), "of pixels of the class")
    yield Metric("recall", ("tp", "fn"), lambda c: ratio(c["tp"], c["tp"] + c["fn"]), "of pixels of the class")
    yield Metric("oa", ("tp", "fn"), _of(overall_accuracy, "tp", "fn"), "overall accuracy of valid pixels", per_class=False)
    yield Metric("kappa", RATES, _of(kappa, *RATES), "Cohen's kappa", per_class=False)
    yield Metric(
        "boundary_iou",
        ("biou_intersection", "biou_union"),
        _of(ratio, "biou_intersection", "biou_union"),
        "boundary IoU (Cheng 2021); width score.boundary_px, _m, or _ratio of the tile's diagonal",
    )
    yield Metric("boundary_f", _BF, _of(boundary_f, *_BF), "boundary F (DAVIS); tolerance score.tolerance_px or _m")
    names = tuple(f"trimap_{r}" for r in RATES)
    yield Metric("trimap_iou", names, _of(iou, *names), "IoU within score.trimap_px of target boundaries")
    for width in TRIMAP_WIDTHS_PX:
        names = tuple(f"trimap{width}_{r}" for r in RATES)
        yield Metric(f"trimap_iou_{width}px", names, _of(iou, *names), f"IoU within {width} px of target boundaries")
    for kind, what in (("edge", "2 px inside each edge"), ("region", "regions")):
        names = tuple(f"wfm_{kind}_{n}" for n in ("target", "pred", "target_loss", "rest_loss"))
        yield Metric(f"wfm_{kind}", names, _of(weighted_f, *names), f"weighted F, corrected, of {what}")
    yield Metric(
        "wfm_edge_legacy",
        _LEGACY,
        lambda c: np.stack([c[n] for n in _LEGACY], -1).astype(np.float64),
        "WF(3px) as the authors' code: tile means of non-edge and edge, then `min`; with its defects",
        rows="tile",
        per_class=False,
        how="tile_mean",
        combine=legacy_min,
    )
    yield Metric(
        "wfm_region_legacy",
        ("wfm_region_legacy_value",),
        lambda c: np.asarray(c["wfm_region_legacy_value"], np.float64),
        "region weighted F as the authors' code: mean over tiles whose target has the class",
        how="tile_mean",
    )
    yield Metric("mba", MBA, mba, "mean boundary accuracy (CascadePSP)", rows="tile", per_class=False)
    for low in (True, False):
        yield Metric(
            "low_band_error" if low else "high_band_error",
            ("valid", *ENERGIES),
            _band(low),
            "error energy in structures of 2^score.band_levels px and more"
            if low
            else "error energy in finer structures; low + high = 1 - oa",
            rows="tile",
            per_class=False,
            higher_is_better=False,
        )
    yield Metric(
        "net_gain",
        LEDGER,
        lambda c: net_gain(*(c[n].sum(-1) for n in ("repaired", "damaged", "still_wrong"))),
        "(repaired - damaged) / errors of the coarse map",
        per_class=False,
    )
    yield Metric(
        "repaired_share", LEDGER, lambda c: ratio(c["repaired"], c["repaired"] + c["still_wrong"]), "repaired / errors of the coarse map"
    )
    yield Metric(
        "damaged_share",
        LEDGER,
        lambda c: ratio(c["damaged"], c["kept"] + c["damaged"]),
        "damaged / pixels the coarse map had right",
        higher_is_better=False,
    )
    yield Metric(
        "iou_imp", JOINT, lambda c: iou_imp([c[n] for n in JOINT]), "IoU_imp of IDGBR's README with k = 1, pooled (defects: see iou_imp)"
    )
    yield Metric(
        "hd95",
        ("hd95",),
        lambda c: np.asarray(c["hd95"], np.float64),
        "HD95 in px (MedPy: percentile of both lists), mean over tiles",
        how="tile_mean",
        higher_is_better=False,
    )
    yield Metric(
        "hd95_directed",
        ("hd95_directed",),
        lambda c: np.asarray(c["hd95_directed"], np.float64),
        "HD95 in px (MONAI: larger directed percentile), mean over tiles",
        how="tile_mean",
        higher_is_better=False,
    )
    yield Metric(
        "assd",
        ("assd_sum", "assd_pixels"),
        _of(ratio, "assd_sum", "assd_pixels"),
        "ASSD in px (MedPy), mean over tiles",
        how="tile_mean",
        higher_is_better=False,
    )


METRICS: dict[str, Metric] = {m.name: m for m in _metrics()}


def metric(name: str) -> Metric:
    """Raises:
    BadRequest: no such score; names the nearest.
    """
    if name not in METRICS:
        raise BadRequest(f"unknown score {name}", allowed=", ".join(METRICS), hint=nearest(name, METRICS) or None)
    return METRICS[name]


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


def evaluate(frame: pl.DataFrame, name: str) -> Value:
    """One score of the counts of one trial, split and label set.

    Raises:
        BadRequest: no such score. Disagreement: trials, splits or label sets are mixed. Missing: no rows.
    """
    one_set(frame)
    wanted = metric(name)
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
    """Every score (or those named) of one trial, split and label set."""
    return {name: evaluate(frame, name) for name in (names or METRICS)}


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
