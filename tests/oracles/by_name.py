"""One door to the scores for mask pairs and triples: names and shapes as in ../shared/reference/scores/expected.json.

What the product offers is computed by `idgbr.scores`; what only the reference file has, at the end of this file. Besides, only naming,
the choice of a convention (official where the name says so) and the rounding of widths happen here. `null` of the file is None, "nan"
is a float NaN.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.config import ScoreConfig
from idgbr.labels import IGNORE
from idgbr.rasters import edges as edges_of
from idgbr.scores import bands, boundary, formulas, legacy, region, surface, wfm
from idgbr.scores.nearest import places, squared_distances
from idgbr.scores.schema import JOINT, LEDGER
from idgbr.scores.tile import clean_target, count_tile

Map = NDArray[np.uint8]
WIDTHS = (1, 3, 5, 10)
LEVELS = 5


def scores_by_name(pred: Map, target: Map, n_classes: int, ignore_index: int | None) -> dict[str, Any]:
    """Every value of the reference file for a pair of class maps uint8 [H,W]; `ignore_index` None: all pixels are valid."""
    raw_pred, raw_target = pred, target
    target = clean_target(target, n_classes, 255 if ignore_index is None else ignore_index)
    valid = target < n_classes
    pred = np.where(valid, np.minimum(pred, np.uint8(n_classes)), np.uint8(255))
    pred[pred == n_classes] = 255
    inner = (0, target.shape[0], 0, target.shape[1])
    diagonal = math.hypot(*target.shape)
    classes = [1] if n_classes == 2 else list(range(n_classes))
    out: dict[str, Any] = {}

    table = region.confusion(raw_pred, target, n_classes)
    inside = table[:, :n_classes]
    out["confusion"] = inside.tolist()
    out |= {f"idgbr_{name}": value.tolist() for name, value in _confusion_scores(inside).items()}
    out["miou_present"] = float(formulas.mean_of_defined(formulas.iou(*region.rates(table))))

    s = wfm.sums(pred, target, n_classes, inner)
    out["wfm_region"] = _by_class(wfm.weighted_f(s.target, s.target_loss, s.rest_loss), classes, undefined=None)
    for kernel in (1, 3, 5, 7):
        both = [legacy.edge_band(np.ascontiguousarray(m), kernel) for m in (raw_pred, raw_target)]
        out[f"edge_pixels_k{kernel}"] = [int(b.sum()) for b in both]
        out[f"edge_sha1_k{kernel}"] = [hashlib.sha1(np.packbits(b.astype(bool)).tobytes()).hexdigest()[:16] for b in both]
        values = legacy.edge_f(raw_pred, raw_target, kernel).tolist()
        out[f"wfm_edge_k{kernel}"] = {str(c): v for c, v in enumerate(values) if not math.isnan(v)}

    for ratio in ("0.02", "0.005"):
        width = max(1, round(float(ratio) * diagonal))
        inter, union = boundary.boundary_iou(pred, target, n_classes, width, inner)
        each = formulas.ratio(inter, union)
        out[f"biou_{ratio}"] = {str(c): [int(inter[c]), int(union[c]), float(each[c])] for c in classes}
        out[f"biou_{ratio}_d"] = width
        out[f"biou_{ratio}_mean_present"] = float(formulas.mean_of_defined(each[classes]))
    for name, radius in (("0.008", math.ceil(0.008 * diagonal)), ("3", 3), ("1", 1)):
        hits = boundary.boundary_f(pred, target, n_classes, radius, inner)
        # DAVIS: two empty contours agree
        f = np.where(hits[1] + hits[3] == 0, 1.0, formulas.boundary_f(*hits))
        out[f"bf_davis_{name}"] = {str(c): float(f[c]) for c in range(n_classes)}

    hits_total = boundary.mba(pred, target, n_classes, radii := boundary.mba_radii(*target.shape), inner)
    out["mba"], out["mba_radii"] = float(np.mean(formulas.ratio(*hits_total))), list(radii)

    edges = edges_of.label_edges(target, n_classes)
    shells = boundary.trimap_shells(edges, WIDTHS)
    for i, width in enumerate(WIDTHS):
        out[f"trimap_edge_w{width}"] = _band_scores(raw_pred, target, shells <= i, n_classes)
        if ignore_index is not None:
            in_void = _band_scores(raw_pred, target, _void_band(target, n_classes, width), n_classes)
            out[f"trimap_void_w{width}"] = {name: in_void[name] for name in ("band", "iou", "acc")}

    _surface(out, pred, target, n_classes, classes, 0.0075 * diagonal)

    _, energy = bands.energies(pred, target, n_classes, LEVELS, inner)
    exact = [int(t) // 2 for t in energy] if n_classes == 2 else [int(t) for t in energy]
    out["band_T_exact"] = exact
    out["band_S"] = _energies(energy, int(valid.sum()))
    return out


def triple_scores_by_name(coarse: Map, refined: Map, target: Map, n_classes: int, ignore_index: int | None) -> dict[str, Any]:
    """Every value of the reference file for coarse, refined and target, and `ledger` of the valid pixels."""
    ignore = 255 if ignore_index is None else ignore_index
    config = ScoreConfig(band_levels=LEVELS, legacy=False)
    rows, _ = count_tile(refined, target, n_classes, config, coarse, ignore)
    before, _ = count_tile(coarse, target, n_classes, config, None, ignore)
    classes = [1] if n_classes == 2 else list(range(n_classes))
    out: dict[str, Any] = {"iou_imp": {}, "repair": {}}
    for c in classes:
        cells = [rows[c][name] for name in JOINT]
        kept, fixed_share = formulas.improvement_parts([np.array(n) for n in cells])
        out["iou_imp"][str(c)] = {
            "iou_rt": float(kept), "iou_rf": float(fixed_share), "imp_k1": float(formulas.iou_imp([np.array(n) for n in cells], k=1.0)),
            "counts8": cells,
        }  # fmt: skip
        _, n001, n010, n011, n100, n101, n110, _ = cells
        fixed, broken = n010 + n101, n001 + n110
        errors = n010 + n011 + n100 + n101
        out["repair"][str(c)] = {
            "errors": errors, "fixed": fixed, "broken": broken,
            "fix_rate": float(formulas.ratio(fixed, errors)), "break_rate": float(formulas.ratio(broken, sum(cells) - errors)),
            "net_gain": float(formulas.net_gain(np.array(fixed), np.array(broken), np.array(errors - fixed))),
        }  # fmt: skip
    whole, whole_before = rows[-1], before[-1]
    out["ledger"] = {name: whole[name] for name in LEDGER}
    out["ledger_per_class"] = {str(c): {name: rows[c][name] for name in LEDGER} for c in range(n_classes)}
    s_coarse = _energies([whole_before[f"t{j}"] for j in range(LEVELS + 1)], whole["valid"])
    s_refined = _energies([whole[f"t{j}"] for j in range(LEVELS + 1)], whole["valid"])
    out["band_S_coarse"], out["band_S_refined"] = s_coarse, s_refined
    low = 1 - formulas.ratio(s_refined[4], s_coarse[4])
    high = 1 - formulas.ratio(s_refined[0] - s_refined[4], s_coarse[0] - s_coarse[4])
    out["band_gain_J4"] = {"low": float(low), "high": float(high)}
    return out


def _energies(energy: Any, n_valid: int) -> list[float]:
    columns = {"valid": np.array(n_valid), **{f"t{j}": np.array(t) for j, t in enumerate(energy)}}
    return formulas.energies(columns).tolist()


def _by_class(values: NDArray, classes: list[int], undefined: float | None) -> dict[str, float | None]:
    return {str(c): undefined if math.isnan(values[c]) else float(values[c]) for c in classes}


def _band_scores(pred: Map, target: Map, band: NDArray[np.bool_], n_classes: int) -> dict[str, Any]:
    table = region.confusion(pred, np.where(band, target, np.uint8(255)), n_classes)
    iou = formulas.iou(*region.rates(table))
    return {
        "band": int(table.sum()), "iou": iou.tolist(), "miou_present": float(formulas.mean_of_defined(iou)),
        "acc": float(formulas.ratio(np.trace(table), table.sum())),
    }  # fmt: skip


def _surface(out: dict[str, Any], pred: Map, target: Map, n_classes: int, classes: list[int], theta_px: float) -> None:
    out["bf_csurka_0.0075"] = {}
    lists = surface.directed(pred, target, n_classes)
    for c in classes:
        is_pred, is_target = bool((pred == c).any()), bool((target == c).any())
        both = lists[c]
        if both is None:
            both_empty = not is_pred and not is_target
            out["bf_csurka_0.0075"][str(c)] = [1.0, 1.0, 1.0] if both_empty else [0.0, float(not is_pred), float(not is_target)]
            for name in ("surface", "hd95_medpy", "assd_medpy", "hd_medpy", "hd95_monai", "assd_monai", "hd95_deepmind", "asd_deepmind"):
                out[f"{name}_c{c}"] = None
            continue
        precision, recall = (float((d < theta_px).mean()) for d in both)
        f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        out["bf_csurka_0.0075"][str(c)] = [f, precision, recall]
        described = surface.describe(*both)
        assd = described["assd_sum"] / described["assd_pixels"]
        out |= {
            f"hd95_medpy_c{c}": described["hd95"], f"hd_medpy_c{c}": described["hausdorff"], f"assd_medpy_c{c}": assd,
            f"hd95_monai_c{c}": described["hd95_directed"], f"assd_monai_c{c}": assd,
        }  # fmt: skip
        elements = _contour_elements(pred == c, target == c)
        assert elements is not None
        out[f"hd95_deepmind_c{c}"] = _robust_hausdorff(elements, 95)
        out[f"asd_deepmind_c{c}"] = list(_weighted_means(elements)[::-1])
        for tolerance in (1, 3):
            out[f"surface_dice_t{tolerance}_c{c}"] = _surface_dice(elements, tolerance)


# ---- scores of the reference file that the product does not offer ----------------------------------------------------------------


def _confusion_scores(table: region.Counts) -> dict[str, NDArray[np.float64]]:
    """The authors' `compute_metrics` of a confusion matrix [K, K] (rows target): empty classes are 0 and counted.

    Keys: per_class_iou, _f1, _precision, _recall, support [K]; miou, mf1, oa, kappa, fw_iou.
    """
    total = table.sum()
    if not total:
        none = np.zeros(0)
        each = {f"per_class_{name}": none for name in ("iou", "f1", "precision", "recall")}
        return {**each, "support": none, **{name: np.array(0.0) for name in ("miou", "mf1", "oa", "kappa", "fw_iou")}}
    m = table.astype(np.float64)
    tp, of_target, of_pred = np.diag(m), m.sum(1), m.sum(0)

    def over(a: NDArray, b: NDArray) -> NDArray[np.float64]:
        return np.divide(a, b, out=np.zeros_like(a), where=b > 0)

    iou, f1 = over(tp, of_target + of_pred - tp), over(2 * tp, of_target + of_pred)
    agree, chance = tp.sum() / total, (of_target * of_pred).sum() / total**2
    return {
        "per_class_iou": iou,
        "per_class_f1": f1,
        "per_class_precision": over(tp, of_pred),
        "per_class_recall": over(tp, of_target),
        "support": of_target,
        "miou": iou.mean(),
        "mf1": f1.mean(),
        "oa": np.asarray(agree),
        "kappa": np.asarray((agree - chance) / (1 - chance + 1e-10)),
        "fw_iou": (of_target / total * iou).sum(),
    }


def _void_band(target: Map, n_classes: int, width_px: int) -> NDArray[np.bool_]:
    """DeepLab's trimap (`MyVOCevalsegBoundary.m`): valid pixels within `width_px` (chessboard) of an ignored one. Needs void contours."""
    ignored = (target >= n_classes).view(np.uint8)
    size = 2 * width_px + 1
    return (cv2.dilate(ignored, np.ones((size, size), np.uint8)) > 0) & (ignored == 0)


# ---- contour elements (DeepMind surface-distance 0.1) -----------------------------------------------------------------------------

# Length in px of the contour through the 2 x 2 pixels around a corner, by their bits: marching squares through the middles of the sides.
_LENGTHS = np.zeros(16)
for _code in range(1, 15):
    _bits = [_code >> i & 1 for i in range(4)]  # upper left, upper right, lower left, lower right
    _diagonal = _bits[0] == _bits[3] and _bits[1] == _bits[2]
    _LENGTHS[_code] = np.sqrt(2) if _diagonal else 1.0 if sum(_bits) == 2 else np.sqrt(0.5)


def _contour_elements(pred: NDArray[np.bool_], target: NDArray[np.bool_]) -> tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]] | None:
    """(distances in px, contour lengths in px) of the contour elements of pred to target, and of target to pred, each sorted by distance.

    Elements sit at pixel corners and are weighted with their contour's length; the frame counts as contour. None where either is empty.
    """
    if not pred.any() or not target.any():
        return None
    codes = []
    for mask in (pred, target):
        m = np.pad(mask, 1).astype(np.uint8)
        codes.append(m[:-1, :-1] | m[:-1, 1:] << 1 | m[1:, :-1] << 2 | m[1:, 1:] << 3)
    labels = [np.where((code > 0) & (code < 15), np.uint8(0), np.uint8(IGNORE)) for code in codes]
    out = []
    for a, b, code in ((labels[0], labels[1], codes[0]), (labels[1], labels[0], codes[1])):
        rows, cols = places(a == 0)
        distance = np.sqrt(squared_distances(b, 1, rows, cols, np.zeros(len(rows), np.int64)))
        length = _LENGTHS[code[rows, cols]]
        order = np.lexsort((length, distance))
        out.append((distance[order], length[order]))
    return out[0], out[1]


def _robust_hausdorff(lists: tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]], percent: float) -> float:
    """Larger of the directed, length-weighted percentiles."""
    worst = 0.0
    for distance, length in lists:
        share = np.cumsum(length) / length.sum()
        at = int(np.searchsorted(share, percent / 100))
        worst = max(worst, float(distance[min(at, len(distance) - 1)]))
    return worst


def _weighted_means(lists: tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]]) -> tuple[float, float]:
    """Length-weighted mean distance of (pred to target, target to pred)."""
    a, b = (float((distance * length).sum() / length.sum()) for distance, length in lists)
    return a, b


def _surface_dice(lists: tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]], tolerance_px: float) -> float:
    """Normalised surface dice (NSD): share of both contours' length within the tolerance (inclusive) of the other."""
    near = sum(float(length[distance <= tolerance_px].sum()) for distance, length in lists)
    return near / sum(float(length.sum()) for _, length in lists)
