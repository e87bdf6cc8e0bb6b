"""Scores of objects and of shape, as whole numbers a raster that add up over rasters: `idgbr score --objects`.

Per class, one against the rest; where the target is ignored, neither map is of any class. Not local: an object that a
tile's frame cuts is two objects, so rasters are read whole.

- Boundary IoU (Cheng et al., CVPR 2021) within 1, 2 and 4 px.
- Objects: 8-connected components. A predicted object matches a target object if their IoU is above 1/2; such a
  partner is unique.
- Perimeter: pairs of 4-neighbours of which one is of the class.
- Betti numbers: 8-connected parts, and holes (4-connected parts of the rest that do not reach the frame); their error
  is the absolute difference of the counts of a raster, wherever parts and holes lie.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.interfaces import Json
from idgbr.labels import IGNORE
from idgbr.scores.boundary import boundary_iou
from idgbr.scores.formulas import f1, ratio
from idgbr.scores.region import Counts, Map
from idgbr.scores.schema import OBJECT_WIDTHS_PX, OBJECTS

OBJECT_NAMES = ("objects_matched", "objects_pred", "objects_target")


def count(pred: Map, target: Map, n_classes: int) -> dict[str, Counts]:
    """Counts [K] by name (`schema.OBJECTS`) of one raster.

    Args:
        pred, target: class indices uint8 [H,W]; values >= K of the target are ignored, those of `pred` are of no
            class.
    """
    valid = target < n_classes
    pred = np.where(valid & (pred < n_classes), pred, np.uint8(IGNORE))
    target = np.where(valid, target, np.uint8(IGNORE))
    out: dict[str, Counts] = {name: np.zeros(n_classes, np.int64) for name in OBJECTS}
    whole = (0, target.shape[0], 0, target.shape[1])
    for width in OBJECT_WIDTHS_PX:
        out[f"biou{width}_intersection"], out[f"biou{width}_union"] = boundary_iou(pred, target, n_classes, width, whole)
    for c in range(n_classes):
        a, b = (np.ascontiguousarray((m == c).view(np.uint8)) for m in (pred, target))
        (parts_a, labels_a), (parts_b, labels_b) = (_parts(m) for m in (a, b))
        holes_a, holes_b = _holes(a), _holes(b)
        values = (_matched(labels_a, labels_b), parts_a, parts_b, _perimeter(a), _perimeter(b), abs(parts_a - parts_b),
                  abs(holes_a - holes_b), parts_b, holes_b)  # fmt: skip
        for name, value in zip(OBJECTS[2 * len(OBJECT_WIDTHS_PX) :], values, strict=True):
            out[name][c] = value
    return out


def _parts(mask: NDArray[np.uint8]) -> tuple[int, NDArray[np.int32]]:
    n, labels = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)
    return n - 1, np.asarray(labels, np.int32)


def _holes(mask: NDArray[np.uint8]) -> int:
    padded = cv2.copyMakeBorder(1 - mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(1,))
    return int(cv2.connectedComponents(padded, connectivity=4)[0]) - 2  # without the mask itself and what lies around it


def _perimeter(mask: NDArray[np.uint8]) -> int:
    return int(np.count_nonzero(mask[1:] != mask[:-1])) + int(np.count_nonzero(mask[:, 1:] != mask[:, :-1]))


def _matched(pred: NDArray[np.int32], target: NDArray[np.int32]) -> int:
    both = (pred > 0) & (target > 0)
    if not both.any():
        return 0
    n = int(target.max()) + 1
    pairs, inter = np.unique(pred[both].astype(np.int64) * n + target[both], return_counts=True)
    areas = np.bincount(pred.ravel()), np.bincount(target.ravel())
    union = areas[0][pairs // n] + areas[1][pairs % n] - inter
    return int(np.count_nonzero(2 * inter > union))


def scores(total: Mapping[str, Counts]) -> dict[str, list[float]]:
    """Scores [K] of summed counts; NaN where undefined (a class in neither map, no target object, no target
    perimeter)."""
    matched, of_pred, of_target = (total[name] for name in OBJECT_NAMES)
    extra, missed = of_pred - matched, of_target - matched
    out = {f"boundary_iou_{w}px": ratio(total[f"biou{w}_intersection"], total[f"biou{w}_union"]) for w in OBJECT_WIDTHS_PX}
    out |= {
        "object_precision": ratio(matched, of_pred),
        "object_recall": ratio(matched, of_target),
        "object_f1": f1(matched, extra, missed),
        "perimeter_ratio": ratio(total["perimeter_pred"], total["perimeter_target"]),
        "parts_error": total["parts_error"].astype(np.float64),
        "holes_error": total["holes_error"].astype(np.float64),
    }
    return {name: values.tolist() for name, values in out.items()}


def add(total: dict[str, Counts], one: Mapping[str, Counts]) -> None:
    """Add the counts of one raster."""
    for name, values in one.items():
        total[name] = total[name] + values if name in total else values


def summary(total: Mapping[str, Counts]) -> Json:
    """`{"counts": {name: [K]}, "scores": {name: [K]}}` for JSON."""
    return {"counts": {name: values.tolist() for name, values in total.items()}, "scores": scores(total)}
