"""Formulas: scores as functions of summed counts, arrays of any shape. NaN where undefined: an empty class is neither
0 nor 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from idgbr.scores.schema import CALIBRATION_BINS, DOUBT_EDGES, ENERGIES, LOSS_UNIT

Columns = Mapping[str, NDArray]
Array = NDArray[np.float64]


def mean_of_defined(values: Array, axis: int = -1) -> Array:
    """Mean over the entries that are not NaN; NaN where there is none."""
    defined = np.isfinite(values)
    n = defined.sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > 0, np.where(defined, values, 0.0).sum(axis) / n, np.nan)


def ratio(a: ArrayLike, b: ArrayLike) -> Array:
    """a / b, NaN where b is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(b) != 0, np.asarray(a, np.float64) / np.asarray(b), np.nan)


def iou(tp: NDArray, fp: NDArray, fn: NDArray) -> Array:
    """Undefined for a class that is in neither map."""
    return ratio(tp, tp + fp + fn)


def f1(tp: NDArray, fp: NDArray, fn: NDArray) -> Array:
    """2 tp / (2 tp + fp + fn); undefined for a class that is in neither map."""
    return ratio(2 * tp, 2 * tp + fp + fn)


def overall_accuracy(tp: NDArray, fn: NDArray) -> Array:
    """Share of labelled pixels [..., K] that have the right class."""
    return ratio(tp.sum(-1), (tp + fn).sum(-1))


def kappa(tp: NDArray, fp: NDArray, fn: NDArray) -> Array:
    """Cohen 1960: (pa - pe) / (1 - pe); undefined where chance agreement is 1."""
    n = (tp + fn).sum(-1)
    agree = ratio(tp.sum(-1), n)
    chance = ratio(((tp + fn).astype(np.float64) * (tp + fp)).sum(-1), n.astype(np.float64) ** 2)
    return ratio(agree - chance, 1 - chance)


def boundary_f(pred_hits: NDArray, pred_pixels: NDArray, target_hits: NDArray, target_pixels: NDArray) -> Array:
    """F of boundary precision and recall; undefined if neither map has a contour, 0 if only one has."""
    precision, recall = ratio(pred_hits, pred_pixels), ratio(target_hits, target_pixels)
    both = ratio(2 * precision * recall, precision + recall)
    only_one = (pred_pixels > 0) ^ (target_pixels > 0)
    neither_hit = (pred_pixels > 0) & (target_pixels > 0) & (pred_hits + target_hits == 0)
    return np.where(only_one | neither_hit, 0.0, both)


def weighted_f(target: NDArray, pred: NDArray, target_loss: NDArray, rest_loss: NDArray) -> Array:
    """Margolin 2014, beta 1 (`wfm.py`), losses in units of 2^-32 px; undefined if neither map has it, 0 if only
    pred."""
    eps = 2.0**-52
    target_loss, rest_loss = (np.asarray(loss, np.float64) * LOSS_UNIT for loss in (target_loss, rest_loss))
    recall = 1 - ratio(target_loss, target)
    hits = target - target_loss
    precision = hits / (eps + hits + rest_loss)
    value = 2 * recall * precision / (eps + recall + precision)
    return np.where((target == 0) & (pred > 0), 0.0, value)


def energies(columns: Columns) -> Array:
    """S_j [..., J+1] from T_j of the rows of class -1: S_0 is the pixel error rate, S_J the share left in boxes of
    2^J px (`bands.py`)."""
    n = np.asarray(columns["valid"], np.float64)
    levels = [np.asarray(columns[name], np.float64) for name in ENERGIES if name in columns]
    return np.stack([ratio(t, n * 2 * 16.0**j) for j, t in enumerate(levels)], -1)


def iou_imp(cells: Sequence[NDArray], k: float = 1.0) -> Array:
    """IoU_imp of IDGBR's README, of one class, from the joint cells n(target, coarse, refined) in the order of
    schema.JOINT.

    IoU_RT - how much of what the coarse map had right was kept; IoU_RF - of what it had wrong was repaired; IoU_RF -
    k (1 - IoU_RT). New false positives outside both maps never enter, and pure false-positive errors give 0/0
    (undefined): read `net_gain` beside it.
    """
    kept, repaired = improvement_parts(cells)
    return repaired - k * (1 - kept)


def improvement_parts(cells: Sequence[NDArray]) -> tuple[Array, Array]:
    """(IoU_RT, IoU_RF)."""
    _, _, _, n011, n100, n101, n110, n111 = cells
    return ratio(n111, n110 + n111), ratio(n101, n100 + n101 + n011)


def net_gain(repaired: NDArray, damaged: NDArray, still_wrong: NDArray) -> Array:
    """(repaired - damaged) / errors of the coarse map; undefined where it had none."""
    return ratio(repaired - damaged, repaired + still_wrong)


def mba(columns: Columns) -> Array:
    """Mean of five band accuracies; undefined unless the target has a boundary in each."""
    return np.mean([ratio(columns[f"mba{i}_hits"], columns[f"mba{i}_pixels"]) for i in range(5)], axis=0)


def band_error(columns: Columns, low: bool) -> Array:
    """S_J (low) or S_0 - S_J (high); their sum is the pixel error rate."""
    s = energies(columns)
    if s.shape[-1] < 2:
        return np.full(s.shape[:-1], np.nan)
    last = np.where(np.isfinite(s), np.arange(s.shape[-1]), -1).max(-1)  # levels that were not counted are null
    lowest = np.take_along_axis(s, np.maximum(last, 0)[..., None], -1)[..., 0]
    return lowest if low else s[..., 0] - lowest


def legacy_min(means: Array) -> float:
    """The authors' `wfm_aggregate: min`: the smaller of the class means above 0, so a map without any edge gets the
    non-edge score."""
    defined = means[np.isfinite(means) & (means > 0)]
    return float(defined.min()) if len(defined) else float("nan")


# ---- confidence ------------------------------------------------------------------------------------------------------------


def error_auroc(right: NDArray, wrong: NDArray) -> Array:
    """Area under the ROC curve of the detection of errors by doubt: pixels [..., bins] by rising doubt.

    The share of pairs of a right and a wrong pixel in which the wrong one has more doubt, ties half; undefined
    without either.
    """
    right, wrong = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    below = np.cumsum(right, -1) - right
    return ratio((wrong * (below + right / 2)).sum(-1), right.sum(-1) * wrong.sum(-1))


def risk_coverage(right: NDArray, wrong: NDArray) -> Array:
    """Area under the curve of the error rate among the most confident pixels against their share, pixels [..., bins]
    by rising doubt (AURC, Geifman et al., ICLR 2019).

    Pixels of one bin come in random order: its area is the expected one. Undefined without pixels.
    """
    from scipy.special import digamma

    right, wrong = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    n = right + wrong
    before, wrong_before = np.cumsum(n, -1) - n, np.cumsum(wrong, -1) - wrong
    rate = np.divide(wrong, n, out=np.zeros_like(n), where=n > 0)
    # sum over i = 1..n of (wrong_before + i rate) / (before + i)
    area = n * rate + (wrong_before - before * rate) * (digamma(before + n + 1) - digamma(before + 1))
    return ratio(area.sum(-1), n.sum(-1))


def calibration_error(right: NDArray, wrong: NDArray, total: NDArray) -> Array:
    """Expected calibration error in 15 bins of equal width (Guo et al., ICML 2017): mean over pixels of |accuracy -
    confidence| of their bin.

    Args:
        right, wrong: pixels [..., bins of `schema.DOUBT_EDGES`]. total: sums of the confidence in 255ths [..., 15], by
            rising doubt.
    """
    into = np.zeros((len(DOUBT_EDGES), CALIBRATION_BINS))
    into[np.arange(len(DOUBT_EDGES)), np.asarray(DOUBT_EDGES) * CALIBRATION_BINS // 255] = 1
    right, wrong = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    return ratio(np.abs(right @ into - np.asarray(total) / 255).sum(-1), (right + wrong).sum(-1))


def brier(total: NDArray, right: NDArray, wrong: NDArray) -> Array:
    """Brier score, the sum over classes (of two classes: twice the one of the second), mean over pixels; `total` in
    units of 1/255^2."""
    pixels = np.asarray(right, np.float64).sum(-1) + np.asarray(wrong, np.float64).sum(-1)
    return ratio(np.asarray(total, np.float64) / 255**2, pixels)
