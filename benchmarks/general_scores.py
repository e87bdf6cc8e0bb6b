"""Scores of sharpened maps by place, and the classical sharpeners a user would try first.

Maps are of one class against the rest: probabilities of the class, float32 [H,W].
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.labels import IGNORE
from idgbr.refiner.decisions import boundary_bands

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

# ---- classical sharpeners: image uint8 [H,W,3], probability of the class [H,W] -> bool [H,W] -------------------------------------


def morphology(image: NDArray[np.uint8], p: Floats, radius: int = 2) -> Bools:
    """Opening and closing by a disk."""
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    mask = (p > 0.5).astype(np.uint8)
    return cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_OPEN, disk), cv2.MORPH_CLOSE, disk) > 0


def guided_filter(image: NDArray[np.uint8], p: Floats, radius: int = 6, eps: float = 1e-3) -> Bools:
    """Guided filter of p by the grey image (He, Sun, Tang, TPAMI 35, 2013, equations 5, 6 and 8)."""
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255

    def mean(x: Floats) -> Floats:
        return cv2.boxFilter(x, -1, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)

    a = (mean(guide * p) - mean(guide) * mean(p)) / (mean(guide * guide) - mean(guide) ** 2 + eps)
    b = mean(p) - a * mean(guide)
    return mean(a) * guide + mean(b) > 0.5


def superpixels(image: NDArray[np.uint8], p: Floats, area_px: int = 60, compactness: float = 10.0) -> Bools:
    """Mean probability of every SLIC superpixel (scikit-image)."""
    from skimage.segmentation import slic

    segments = slic(image, n_segments=max(2, p.size // area_px), compactness=compactness, start_label=0)
    sums, counts = np.bincount(segments.ravel(), p.ravel()), np.bincount(segments.ravel())
    return (sums / np.maximum(counts, 1) > 0.5)[segments]


def windowed_crf(image: NDArray[np.uint8], p: Floats, steps: int = 5, radius: int = 6) -> Bools:
    """Mean field of a CRF with the two kernels of Kraehenbuehl and Koltun (NIPS 2011), cut to a window (as Teichmann and
    Cipolla, arXiv 1805.04777): pydensecrf does not build with Cython 3."""
    pixels, shape = image.astype(np.float32), p.shape
    unary = np.log(p.clip(1e-3, 1 - 1e-3) / (1 - p).clip(1e-3, 1 - 1e-3))
    pairs = []
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy or dx:
                moved = _moved(pixels, dy, dx)
                place, colour = dy * dy + dx * dx, np.square(pixels - moved).sum(-1)
                bilateral = 5 * np.exp(-place / (2 * 40**2) - colour / (2 * 13**2))
                pairs.append((dy, dx, (bilateral + 3 * math.exp(-place / (2 * 3**2))).astype(np.float32)))
    total = sum(k for _, _, k in pairs)
    q = p.copy()
    for _ in range(steps):
        message = np.zeros(shape, np.float32)
        for dy, dx, kernel in pairs:
            message += kernel * (2 * _moved(q, dy, dx) - 1)
        q = (1 / (1 + np.exp(-(unary + 8 * message / total)))).astype(np.float32)
    return q > 0.5


def _moved(x: Floats, dy: int, dx: int) -> Floats:
    """x[row + dy, col + dx], the nearest pixel beyond the rim."""
    rows, cols = (np.clip(np.arange(n) + d, 0, n - 1) for n, d in zip(x.shape[:2], (dy, dx), strict=True))
    return x[rows][:, cols]


CLASSICAL: dict[str, Callable[[NDArray[np.uint8], Floats], Bools]] = {
    "morphology": morphology, "guided filter": guided_filter, "superpixels": superpixels, "windowed CRF": windowed_crf,
}  # fmt: skip

# ---- scores ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """Sums over the tiles of one place: [IoU, boundary IoU of 2 px] x [intersection, union] x [rest, class]."""

    sums: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 2, 2), np.int64))

    def add(self, found: Bools, target: NDArray[np.uint8]) -> None:
        """One tile: map of the class and target (255 unknown) [H,W]."""
        known = target != IGNORE
        truth = np.where(known, target, found).astype(np.uint8)
        index = found.astype(np.uint8)
        for row, (a, b) in enumerate(
            (
                (np.stack([index == k for k in (0, 1)]), np.stack([truth == k for k in (0, 1)])),
                (boundary_bands(index, 2), boundary_bands(truth, 2)),
            )
        ):
            self.sums[row, 0] += (a & b & known).sum((1, 2))
            self.sums[row, 1] += ((a | b) & known).sum((1, 2))

    def scores(self) -> NDArray[np.float64]:
        """Mean IoU and mean boundary IoU over the two classes, in per cent."""
        return 100 * (self.sums[:, 0] / np.maximum(self.sums[:, 1], 1)).mean(1)


def by_place(maps: Iterable[tuple[str, Bools, NDArray[np.uint8]]]) -> dict[str, NDArray[np.float64]]:
    """(place, map, target) of many tiles -> (mIoU, boundary IoU) of every place."""
    counts: dict[str, Counts] = defaultdict(Counts)
    for place, found, target in maps:
        counts[place].add(found, target)
    return {place: c.scores() for place, c in sorted(counts.items())}


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean over places and the ends of its 95 % interval (Student's t)."""
    from scipy import stats

    n, mean = len(values), float(values.mean())
    if n < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def line(name: str, found: dict[str, NDArray[np.float64]], coarse: dict[str, NDArray[np.float64]]) -> str:
    """A row of the table: means over places, and the differences to the coarse map with their intervals."""
    values, before = np.stack(list(found.values())), np.stack([coarse[place] for place in found])
    cells = [f"{m:.2f}" for m in values.mean(0)]
    cells += ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*interval((values - before)[:, i])) for i in (0, 1)]
    return f"| {name} | " + " | ".join(cells) + " |"


HEAD = "| map | mIoU | boundary IoU | difference in mIoU | difference in boundary IoU |\n|---|---|---|---|---|"


# ---- pictures --------------------------------------------------------------------------------------------------------------------

GAP_PX = 6
FOUND, TRUE = (255, 60, 40), (255, 255, 255)  # colours of the outlines of map and target


def side_by_side(image: NDArray[np.uint8], maps: Sequence[Bools], target: NDArray[np.uint8], zoom: int = 2) -> NDArray[np.uint8]:
    """The image [H,W,3] once for every map, with the map's outline in red over the target's in white; RGB."""
    large = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    panels = []
    for found in maps:
        panel = large.copy()
        for mask, colour in (((target == 1), TRUE), (found, FOUND)):
            edges = cv2.resize(mask.astype(np.uint8), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
            inner = cv2.erode(edges, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
            panel[edges != inner] = colour
        panels += [panel, np.full((large.shape[0], GAP_PX, 3), 255, np.uint8)]
    return np.concatenate(panels[:-1], axis=1)
