"""Coarse maps without a backbone: targets corrupted to a wanted IoU per class, with the errors that networks make.

First a map with realistic errors of about the right amount (one severity dial, found by bisection), then an exact
correction: errors are taken back, blob by blob, for classes that came out too low, and boundaries are moved for those
that came out too high.

IoU of a class: TP / (TP + FP + FN) over pixels that are not ignored.

K classes, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from idgbr.errors import BadRequest, nearest
from idgbr.labels import IGNORE

MODES = ("resample", "jitter", "holes", "missed", "false", "shift")
BISECTIONS = 8
ROUGH_BISECTIONS = 3

Index = NDArray[np.uint8]
Field = NDArray[np.float32]


def corrupt(
    target: Index,
    n_classes: int,
    iou: float | Sequence[float],
    modes: Sequence[str],
    rng: np.random.Generator,
    start: Index | None = None,
) -> Index:
    """A class map whose IoU against `target` is `iou`, for every class there but the largest (usually background).

    The largest class takes part in the errors of all others, so its IoU follows from theirs and cannot be chosen with
    them.

    Args:
        target: uint8 [H, W], 255 ignored; these pixels stay 255.
        n_classes: K.
        iou: wanted, in (0, 1]; one for all or one for each class.
        modes: resample (coarse logits blown up), jitter (wavy outlines), holes, missed (objects), false (objects),
            shift.
        rng: numpy generator; the only source of randomness.
        start: the map that errors are added to, uint8 [H, W] without 255; the target unless given. Errors that it has
            already count; they are taken back only where there are too many.

    Returns:
        uint8 [H, W]. Within one point of the wanted IoU, or one pixel for classes of fewer than a hundred. A target
        of one class comes back as it is: no error would leave the IoU of an absent class defined.

    Raises:
        BadRequest: unknown mode, none at all, or an IoU outside (0, 1].
    """
    wanted = np.broadcast_to(np.asarray(iou, float), (n_classes,))
    _check(modes, wanted)
    known = target != IGNORE
    counts = np.bincount(target[known], minlength=n_classes)
    classes = [int(c) for c in np.flatnonzero(counts) if c != counts.argmax()]
    if not classes:
        return target.copy() if start is None else np.where(known, start, np.uint8(IGNORE))
    largest = int(counts.argmax())
    # Severity dials a continuous family of ever worse maps, drawn from the same random fields.
    draw = _Errors(target if start is None else start, n_classes, classes, largest, modes, rng)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        got = class_iou(draw(middle), target, n_classes)
        low, high = (middle, high) if np.mean(got[classes]) > np.mean(wanted[classes]) else (low, middle)
    found = draw(high)
    found[~known] = IGNORE
    _take_back(found, target, n_classes, classes, largest, wanted, draw.order)
    _move_boundaries(found, target, n_classes, classes, largest, wanted, draw.order)
    return found


def roughly(target: Index, n_classes: int, iou: float, modes: Sequence[str], rng: np.random.Generator) -> Index:
    """As `corrupt`, for one IoU and without the exact correction: within some 0.1 of it, several times as fast. For
    maps that are made anew for every training crop.

    Raises:
        BadRequest: as `corrupt`.
    """
    _check(modes, np.array([iou]))
    known = target != IGNORE
    counts = np.bincount(target[known], minlength=n_classes)
    classes = [int(c) for c in np.flatnonzero(counts) if c != counts.argmax()]
    if not classes:
        return target.copy()
    draw = _Errors(target, n_classes, classes, int(counts.argmax()), modes, rng)
    low, high, best, found = 0.0, 1.0, np.inf, target
    for severity in [min(1.0, 0.9 * (1 - iou))] + [-1.0] * (ROUGH_BISECTIONS - 1):
        middle = (low + high) / 2 if severity < 0 else severity
        errors = draw(middle)
        got = float(np.mean(class_iou(errors, target, n_classes)[classes]))
        if abs(got - iou) < best:
            best, found = abs(got - iou), errors
        low, high = (middle, high) if got > iou else (low, middle)
    found = found.copy()
    found[~known] = IGNORE
    return found


def fresh(target: Index, n_classes: int, ious: tuple[float, float], rng: np.random.Generator) -> Field:
    """Coarse probabilities [K, H, W] of a target, unlike those of any other call: an IoU drawn from `ious`, some of the
    kinds of error, a random blur; one in four is a plain class map (probabilities 0 and 1).

    Raises:
        BadRequest: IoUs outside (0, 1].
    """
    modes = [mode for mode in MODES if rng.random() < 0.6] or [MODES[int(rng.integers(len(MODES)))]]
    index = roughly(target, n_classes, float(rng.uniform(*ious)), modes, rng)
    blur_px = float(np.exp(rng.uniform(np.log(0.7), np.log(5.0))))
    if rng.random() < 0.25:
        return np.asarray(_filled(index)[None] == np.arange(n_classes)[:, None, None], np.float32)
    return soften(index, n_classes, rng, blur_px)


def class_iou(index: Index, target: Index, n_classes: int) -> NDArray[np.float64]:
    """[K]; nan where a class is in neither map."""
    return iou_of(confusion(index, target, n_classes))


def iou_of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU [K] of a confusion matrix; nan where a class is in neither map."""
    right = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - right
    return np.where(either > 0, right / np.maximum(either, 1), np.nan)


def _check(modes: Sequence[str], wanted: NDArray[np.float64]) -> None:
    for mode in modes:
        if mode not in MODES:
            raise BadRequest(
                "unknown mode of corruption", value=f"coarse.modes={mode}", allowed=", ".join(MODES), hint=nearest(mode, MODES) or None
            )
    if not modes or not ((wanted > 0) & (wanted <= 1)).all():
        raise BadRequest("a corruption needs a mode and a wanted IoU above 0, at most 1", value=f"modes={tuple(modes)}, iou={wanted}")


def soften(index: Index, n_classes: int, rng: np.random.Generator, blur_px: float = 2.0) -> NDArray[np.float32]:
    """Probabilities [K, H, W] as a network's: sure inside, unsure towards borders, argmax equal to `index`.

    Blurred one-hot map, sharpened unevenly by a smooth random temperature. Ignored pixels take the nearest class.
    """
    index = _filled(index)
    one_hot = (index[None] == np.arange(n_classes)[:, None, None]).astype(np.float32)
    blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), blur_px) for plane in one_hot])
    temperature = np.exp(0.4 * smooth(index.shape, 16, rng))
    logits = np.log(np.clip(blurred, 2e-3, 1)) / temperature
    p = np.exp(logits - logits.max(0))
    p /= p.sum(0)
    # Blurring rounds corners off; the map itself must stay, with a margin that survives rounding to 1/255.
    chosen = np.take_along_axis(p, index[None].astype(np.intp), 0)[0]
    others = np.where(one_hot > 0, 0, p).max(0)
    lift = np.maximum(0, others + 0.012 - chosen)
    p += one_hot * lift
    return (p / p.sum(0)).astype(np.float32)


# ---- realistic errors ------------------------------------------------------------------------------------------------------


class _Errors:
    """`self(severity)`: the target with errors; severity 0 none, 1 far too many. All randomness is drawn once,
    here."""

    def __init__(self, target: Index, n_classes: int, classes: list[int], largest: int, modes: Sequence[str], rng: np.random.Generator):
        self.target, self.n_classes, self.largest, self.modes = _filled(target), n_classes, largest, modes
        shape = target.shape
        objects = np.isin(self.target, classes)
        self.parts, n_parts = ndimage.label(objects)
        area = objects.sum() / max(1, n_parts)
        self.reach = float(np.clip(0.5 * np.sqrt(area), 3, 24))  # px: errors scale with the objects
        self.order = smooth(shape, 4, rng)  # blobs that errors come and go in
        self.wave = [smooth(shape, max(2.0, self.reach / 2), rng) for _ in range(2)]
        angle = rng.uniform(0, 2 * np.pi)
        drift = [smooth(shape, 64, rng) for _ in range(2)]
        self.drift = [np.cos(angle) + 0.5 * drift[0], np.sin(angle) + 0.5 * drift[1]]
        self.holes = smooth(shape, max(1.5, self.reach / 4), rng)
        self.fate = rng.random(n_parts + 1)  # objects with a low number are missed first
        self.fate[0] = 2
        self.false_field = smooth(shape, max(2.0, self.reach / 2), rng)
        self.false_class = np.asarray(classes, np.uint8)[
            np.clip(((smooth(shape, 4 * self.reach, rng) + 2) / 4 * len(classes)).astype(int), 0, len(classes) - 1)
        ]

    def __call__(self, severity: float) -> Index:
        s, out = severity, self.target
        if "missed" in self.modes:
            out = np.where(self.fate[self.parts] < 0.6 * s, np.uint8(self.largest), out)
        if "shift" in self.modes:
            out = _warp(out, *(s * self.reach * d for d in self.drift))
        if "jitter" in self.modes:
            out = _warp(out, *(s * self.reach * w for w in self.wave))
        if "resample" in self.modes:
            factor = 1 + s * self.reach
            small = (max(1, round(out.shape[1] / factor)), max(1, round(out.shape[0] / factor)))
            planes = [cv2.resize((out == c).astype(np.float32), small, interpolation=cv2.INTER_AREA) for c in range(self.n_classes)]
            planes = [cv2.resize(p, out.shape[::-1], interpolation=cv2.INTER_LINEAR) for p in planes]
            out = (planes[1] > planes[0] if self.n_classes == 2 else np.argmax(planes, 0)).astype(np.uint8)
        if "holes" in self.modes:
            out = np.where((self.holes > 3.2 - 2.7 * s) & (out != self.largest), np.uint8(self.largest), out)
        if "false" in self.modes:
            out = np.where((self.false_field > 3.6 - 2.6 * s) & (out == self.largest), self.false_class, out)
        return np.ascontiguousarray(out, np.uint8)


def smooth(shape: tuple[int, ...], sigma_px: float, rng: np.random.Generator) -> Field:
    """Gaussian noise of unit variance, smooth over `sigma_px` (made small and blown up: fast at any sigma)."""
    step = max(1, int(sigma_px / 2))
    small = [-(-n // step) + 8 for n in shape]
    noise = cv2.GaussianBlur(rng.standard_normal(small).astype(np.float32), (0, 0), sigma_px / step, borderType=cv2.BORDER_REFLECT)
    noise = (noise - noise.mean()) / (noise.std() + 1e-9)
    big = cv2.resize(noise, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    return np.asarray(big[: shape[0], : shape[1]], np.float32)


def _warp(index: Index, dy: Field, dx: Field) -> Index:
    rows, cols = np.indices(index.shape, np.float32)
    found = cv2.remap(index, cols + dx.astype(np.float32), rows + dy.astype(np.float32), cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return found.astype(np.uint8, copy=False)


def _filled(index: Index) -> Index:
    """Ignored pixels take the class of the nearest pixel that has one (class 0 if there is none)."""
    ignored = index == IGNORE
    if not ignored.any():
        return index
    if ignored.all():
        return np.zeros_like(index)
    nearest_pixel = ndimage.distance_transform_edt(ignored, return_distances=False, return_indices=True)
    return index[tuple(nearest_pixel)]


# ---- exact correction ------------------------------------------------------------------------------------------------------


def confusion(index: Index, target: Index, n_classes: int) -> NDArray[np.int64]:
    """[K, K]: rows target, columns map; ignored targets are left out."""
    known = target != IGNORE
    pairs = target[known].astype(np.int64) * n_classes + index[known]
    return np.bincount(pairs, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


def _counts(index: Index, target: Index, c: int) -> tuple[int, int]:
    """TP and TP + FP + FN of one class."""
    here, there, known = index == c, target == c, target != IGNORE
    return int((here & there).sum()), int(((here | there) & known).sum())


def _take_back(
    found: Index, target: Index, n_classes: int, classes: list[int], largest: int, wanted: NDArray[np.float64], order: Field
) -> None:
    """Undo errors of classes below the wanted IoU, in blobs, those shared with the largest class first. In place. No
    IoU falls."""
    for c in classes:
        right, either = _counts(found, target, c)
        if either == 0 or right / either >= wanted[c]:
            continue
        wrong = ((found == c) != (target == c)) & (target != IGNORE)
        partner = np.where(found == c, target, found)
        blobs, n = ndimage.label(wrong)
        rank = ndimage.minimum(order, blobs, np.arange(n + 1))[blobs]  # whole blobs, one after the other
        where = np.flatnonzero(wrong)
        where = where[np.lexsort((order.ravel()[where], rank.ravel()[where], partner.ravel()[where] != largest))]
        missed = target.ravel()[where] == c  # taken back: TP + 1; a false pixel taken back: union - 1
        curve = (right + np.cumsum(missed)) / (either - np.cumsum(~missed))
        enough = int(np.searchsorted(curve, wanted[c])) + 1
        found.ravel()[where[:enough]] = target.ravel()[where[:enough]]


def _move_boundaries(
    found: Index, target: Index, n_classes: int, classes: list[int], largest: int, wanted: NDArray[np.float64], order: Field
) -> None:
    """Add errors between a class above the wanted IoU and the largest class, along the class's outline. In place.

    Right pixels of the class are given away where the smooth field is high, right pixels of the largest class taken
    where it is low: the outline bends in and out. Touches no third class.
    """
    for c in classes:
        right, either = _counts(found, target, c)
        if either == 0 or right / either <= wanted[c]:
            continue
        inside = found == c
        distance = (
            ndimage.distance_transform_edt(inside) + ndimage.distance_transform_edt(~inside) if inside.any() else np.ones(found.shape)
        )
        lose = inside & (target == c)
        gain = (found == largest) & (target == largest)
        cost = np.where(lose, distance - 3 * order, distance + 3 * order)
        where = np.flatnonzero(lose | gain)
        where = where[np.argsort(cost.ravel()[where], kind="stable")]
        loses = lose.ravel()[where]
        curve = (right - np.cumsum(loses)) / (either + np.cumsum(~loses))
        enough = int(np.searchsorted(-curve, -wanted[c])) + 1
        if enough > 1 and abs(curve[enough - 2] - wanted[c]) < abs(curve[min(enough, len(curve)) - 1] - wanted[c]):
            enough -= 1  # the nearer side, which matters for small classes
        chosen = where[:enough]
        found.ravel()[chosen] = np.where(loses[:enough], np.uint8(largest), np.uint8(c))
