"""What `idgbr score` reports of one label set, as plain numbers: every score, the ledger, the frequency bands, the
curve over distance."""

from __future__ import annotations

import numpy as np
import polars as pl

from idgbr.config import ScoreConfig
from idgbr.interfaces import Json
from idgbr.scores import formulas
from idgbr.scores.read import METRICS, Metric, Value, arrays, distance_curve, evaluate, gain
from idgbr.scores.schema import JOINT, LEDGER, MAX_LEVELS, PER_CLASS_VALUES, PER_TILE_VALUES


def summarise(counts: pl.DataFrame, bands: pl.DataFrame, label_set: str, config: ScoreConfig, iou_imp_k: float = 1.0) -> Json:
    """Of the trials pred and (if there) coarse.

    Keys: pixels, scores {name: {score, per_class, undefined, of, how, higher_is_better, doc, coarse, gain, gain_of,
    gain_left_out}}, confusion [K][K+1], frequency {levels, pred, coarse, gain_low, gain_high}, distance [...], and
    with a coarse map ledger and improvement. Every score that was asked for is there. `gain` is its change for the
    better over what is defined in both maps: `gain_of` values were compared (classes; in scores that are means over
    tiles, classes of tiles), `gain_left_out` are defined in one map only. Undefined numbers are NaN.
    """
    counts, bands = (frame.filter(pl.col("label_set") == label_set) for frame in (counts, bands))
    after, before = (counts.filter(pl.col("trial") == trial) for trial in ("pred", "coarse"))
    has_coarse = len(before) > 0
    whole = after.filter(pl.col("class") == -1)
    out: Json = {
        "pixels": {name: int(whole[name].sum()) for name in ("valid", "correct", "ignored", "outside")},
        "tiles": len(whole),
        "scores": {},
        "confusion": confusion(after),
        "distance": distance_curve(bands.filter(pl.col("trial") == "pred")),
    }
    for name, wanted in METRICS.items():
        if not set(wanted.columns) <= set(counts.columns) or not _asked_for(wanted, config, has_coarse):
            continue
        entry = _entry(evaluate(after, name), wanted)
        if has_coarse and not _needs_coarse(wanted):
            entry["coarse"] = evaluate(before, name).score
            entry["gain"], entry["gain_of"], entry["gain_left_out"] = gain(after, before, name)
        out["scores"][name] = entry
    out["frequency"] = frequency(after, before if has_coarse else None)
    if has_coarse:
        out["ledger"] = {name: int(whole[name].sum()) for name in LEDGER}
        out["ledger_per_class"] = _per_class(after, LEDGER)
        out["improvement"] = improvement(after, iou_imp_k)
        if "iou_imp" in out["scores"]:
            values = np.array([e["iou_imp"] for e in out["improvement"]["per_class"]], np.float64)
            doc = f"IoU_imp of IDGBR's README with k = {iou_imp_k:g}, pooled (blind to new false positives)"
            out["scores"]["iou_imp"] |= {"score": float(formulas.mean_of_defined(values)), "per_class": values.tolist(), "doc": doc}
    return out


def _needs_coarse(wanted: Metric) -> bool:
    return wanted.columns[0] in (*LEDGER, *JOINT)


def _asked_for(wanted: Metric, config: ScoreConfig, has_coarse: bool) -> bool:
    """Whether the columns of a score were counted; whether it is defined is another question."""
    legacy = [c for c in (*PER_CLASS_VALUES, *PER_TILE_VALUES) if c.startswith("wfm_")]
    if wanted.columns[0] in legacy:
        return config.legacy
    if wanted.columns[0] in PER_CLASS_VALUES:
        return config.surface
    return has_coarse or not _needs_coarse(wanted)


def _entry(value: Value, wanted: Metric) -> Json:
    return {
        "score": value.score,
        "per_class": list(value.per_class),
        "undefined": list(value.undefined),
        "of": value.of,
        "how": value.how,
        "higher_is_better": wanted.higher_is_better,
        "doc": wanted.doc,
    }


def confusion(counts: pl.DataFrame) -> list[list[int]]:
    """[K][K+1], rows target; the last column is predictions outside the classes."""
    rows = counts.filter(pl.col("class") >= 0).select("class", "predicted_as").with_columns(pl.col("predicted_as").list.to_struct(
        fields=[str(i) for i in range(len(counts.filter(pl.col("class") == 0)["predicted_as"][0]))])).unnest("predicted_as")  # fmt: skip
    return [list(row) for row in rows.group_by("class").sum().sort("class").drop("class").rows()]


def _per_class(counts: pl.DataFrame, names: tuple[str, ...]) -> list[dict[str, int]]:
    table = counts.filter(pl.col("class") >= 0).group_by("class").agg(pl.col(n).sum() for n in names).sort("class")
    return table.drop("class").to_dicts()


def improvement(counts: pl.DataFrame, k: float) -> Json:
    """IoU_RT, IoU_RF and IoU_imp with weight k, one class against the rest, beside the net gain that does see new
    false positives."""
    per_class = []
    for row in _per_class(counts, JOINT):
        cells = [np.array(row[n]) for n in JOINT]
        kept, repaired = formulas.improvement_parts(cells)
        _, n001, n010, n011, n100, n101, n110, _ = (row[n] for n in JOINT)
        gain = formulas.net_gain(np.array(n010 + n101), np.array(n001 + n110), np.array(n011 + n100))
        per_class.append(
            {"iou_rt": float(kept), "iou_rf": float(repaired), "iou_imp": float(formulas.iou_imp(cells, k)), "net_gain": float(gain)}
        )
    return {"k": k, "per_class": per_class}


def frequency(after: pl.DataFrame, before: pl.DataFrame | None) -> Json:
    """Error energy by structure size. S: energy left in boxes of 2^j px; bands: S_j - S_{j+1}; low: the last S. bands
    + low = error."""
    out: Json = {}
    for name, frame in (("pred", after), ("coarse", before)):
        if frame is None:
            continue
        _, columns = arrays(frame, METRICS["low_band_error"], ("label_set",))
        s = formulas.energies(columns)[0]
        s = s[np.isfinite(s)][: MAX_LEVELS + 1]
        out[name] = {"s": s.tolist(), "bands": (s[:-1] - s[1:]).tolist(), "low": float(s[-1]) if len(s) else float("nan")}
    if "coarse" in out and len(out["coarse"]["s"]):
        (a, b) = (out[name]["s"] for name in ("pred", "coarse"))
        out["gain_low"] = float(1 - formulas.ratio(a[-1], b[-1]))
        out["gain_high"] = float(1 - formulas.ratio(a[0] - a[-1], b[0] - b[-1]))
    return out
