"""The registry of scores: which columns each reads, and its formula (`formulas.py`, `uncertainty.py`).

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

A null column (no coarse map was given, surface not asked for) reads as NaN. Columns of `schema.OBJECTS` and
`schema.UNCERTAINTY` are in a table only where they were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from idgbr.errors import BadRequest, nearest
from idgbr.scores.formulas import (
    Array,
    Columns,
    band_error,
    boundary_f,
    brier,
    calibration_error,
    error_auroc,
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
    risk_coverage,
    weighted_f,
)
from idgbr.scores.schema import (
    ENERGIES,
    JOINT,
    LEDGER,
    LEVELS,
    MBA,
    NEAR_PX,
    OBJECT_WIDTHS_PX,
    RATES,
    TRIMAP_WIDTHS_PX,
    VOTES_RIGHT,
    VOTES_WRONG,
    confidence_columns,
)


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


def _values(name: str) -> Callable[[Columns], Array]:
    return lambda columns: np.asarray(columns[name], np.float64)


def _of_objects() -> Iterable[Metric]:
    """Asked for by score.objects; of each tile by itself."""
    for width in OBJECT_WIDTHS_PX:
        names = (f"biou{width}_intersection", f"biou{width}_union")
        yield Metric(f"boundary_iou_{width}px", names, _of(ratio, *names), f"boundary IoU within {width} px")
    matched, found, there = "objects_matched", "objects_pred", "objects_target"
    yield Metric(
        "object_precision", (matched, found), _of(ratio, matched, found), "of predicted objects: IoU above 1/2 with one of the target"
    )
    yield Metric("object_recall", (matched, there), _of(ratio, matched, there), "of objects of the target")
    yield Metric(
        "object_f1", (matched, found, there), lambda c: f1(c[matched], c[found] - c[matched], c[there] - c[matched]), "F1 of objects"
    )
    outline = ("perimeter_pred", "perimeter_target")
    yield Metric(
        "perimeter_error", outline, lambda c: abs(ratio(*(c[n] for n in outline)) - 1), "|outline / outline of the target - 1|",
        higher_is_better=False,
    )  # fmt: skip
    for what in ("parts", "holes"):
        yield Metric(
            f"{what}_error", (f"{what}_error",), _values(f"{what}_error"), f"|number of {what} - that of the target|, mean over tiles",
            how="tile_mean", higher_is_better=False,
        )  # fmt: skip


def _stacked(columns: Columns, names: tuple[str, ...]) -> Array:
    return np.stack([np.asarray(columns[name], np.float64) for name in names], -1)


def _of_confidence(region: str) -> Iterable[Metric]:
    names = confidence_columns(region)
    right, wrong, total, squares = (names[n] for n in ("right", "wrong", "total", "brier"))
    end, where = ("", "") if region == "all" else (f"_{region}", f", within {NEAR_PX} px of target boundaries")

    def score(name: str, columns: tuple[str, ...], value: Callable[[Columns], Array], doc: str, higher: bool = False) -> Metric:
        return Metric(name + end, columns, value, doc + where, rows="tile", per_class=False, higher_is_better=higher)

    yield score("brier", (*squares, *right, *wrong), lambda c: brier(c[squares[0]], _stacked(c, right), _stacked(c, wrong)), "Brier score")
    yield score(
        "ece", (*right, *wrong, *total), lambda c: calibration_error(_stacked(c, right), _stacked(c, wrong), _stacked(c, total)),
        "expected calibration error, 15 bins",
    )  # fmt: skip
    yield score(
        "error_auroc", (*right, *wrong), lambda c: error_auroc(_stacked(c, right), _stacked(c, wrong)),
        "AUROC of the detection of wrong pixels by low probability (two classes: as by entropy)", True,
    )  # fmt: skip
    yield score(
        "aurc", (*right, *wrong), lambda c: risk_coverage(_stacked(c, right), _stacked(c, wrong)), "area under risk against coverage"
    )


def _of_samples() -> Iterable[Metric]:
    by_doubt = VOTES_RIGHT[::-1], VOTES_WRONG[::-1]
    yield Metric(
        "error_auroc_votes", (*VOTES_RIGHT, *VOTES_WRONG), lambda c: error_auroc(*(_stacked(c, names) for names in by_doubt)),
        "AUROC of the detection of wrong pixels by few votes of the samples", rows="tile", per_class=False,
    )  # fmt: skip
    for name, distance in (("iou", "1 - IoU"), ("boundary", "1 - boundary IoU")):
        column = f"energy_{name}_value"
        yield Metric(
            f"energy_{name}", (column,), _values(column), f"energy score of the samples, d = {distance}; a single map: d; mean over tiles",
            how="tile_mean", higher_is_better=False,
        )  # fmt: skip
        column = f"energy_{name}_levels_value"
        yield Metric(
            f"energy_{name}_levels", (column,), _values(column), f"energy score of {LEVELS} maps cut from probabilities, d = {distance}",
            how="tile_mean", higher_is_better=False,
        )  # fmt: skip
        column = f"spread_{name}_value"
        yield Metric(f"spread_{name}", (column,), _values(column), f"mean {distance} of two samples, mean over tiles", how="tile_mean")


METRICS: dict[str, Metric] = {
    m.name: m for m in (*_metrics(), *_of_objects(), *_of_confidence("all"), *_of_confidence("near"), *_of_samples())
}


def metric(name: str) -> Metric:
    """Raises:
    BadRequest: no such score; names the nearest.
    """
    if name not in METRICS:
        raise BadRequest(f"unknown score {name}", allowed=", ".join(METRICS), hint=nearest(name, METRICS) or None)
    return METRICS[name]
