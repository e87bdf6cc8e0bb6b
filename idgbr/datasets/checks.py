"""What may be wrong with a data set although every file can be read: measured on a sample of its rasters, reported by
`idgbr prepare`.

Shape letters: C bands, H, W pixels, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.labels import IGNORE, UNKNOWN, ClassTable
from idgbr.rasters.edges import label_edges

if TYPE_CHECKING:
    from idgbr.datasets.index import Dataset, Raster

REACH_PX = 10  # shifts that are tried, in every direction
OFF_PX = 2.0  # a label farther from the image than this is reported
CROP_PX = 512  # what is read of a raster: its middle, or a quarter where the middle has no edges
RASTERS = 24  # that are looked at, spread over the data set
LEAST_EDGES = 200  # pixels; fewer say nothing about a shift

# The largest share of all pixels that a class of this name is likely to cover
LIKELY = (
    (re.compile(r"\b(building|house|roof)s?\b", re.IGNORECASE), 0.6),
    (re.compile(r"\b(road|street|railway|rail)s?\b", re.IGNORECASE), 0.6),
    (re.compile(r"\b(car|vehicle|truck|ship|boat|plane|airplane|aircraft)s?\b", re.IGNORECASE), 0.3),
)
NOT = re.compile(r"^\s*(no|non|not|without)\b|background|other", re.IGNORECASE)


@dataclass(frozen=True)
class Shift:
    """Where label edges agree best with the image: (down, right) in px that the label would have to move.

    `gain`: how much larger the mean gradient under the edges is there than where the label lies (0.1: 10 %).
    `clear`: whether the best place stands out from the other places; a picture without visible edges has none.
    """

    down: int
    right: int
    gain: float
    clear: bool

    @property
    def px(self) -> float:
        """Length of the shift in px."""
        return float(np.hypot(self.down, self.right))


def edge_shift(image: NDArray[np.float32], label: NDArray[np.uint8], n_classes: int, reach_px: int = REACH_PX) -> Shift | None:
    """The shift of `label` [H,W] (255 ignored) at which its class edges lie on the largest gradients of `image`
    [C,H,W].

    Every shift of up to `reach_px` in both axes is tried. Gradients (Scharr, after a blur of 1 px) are compressed by
    a square root, so that a few strong edges do not decide. None where the label has too few edges.
    """
    rows, cols = np.nonzero(label_edges(label, n_classes))
    inside = (rows >= reach_px) & (rows < label.shape[0] - reach_px) & (cols >= reach_px) & (cols < label.shape[1] - reach_px)
    rows, cols = rows[inside], cols[inside]
    if len(rows) < LEAST_EDGES:
        return None
    steepness = np.zeros(label.shape, np.float32)
    for band in image:
        smooth = cv2.GaussianBlur(band, (0, 0), 1.0)
        spread = float(smooth.std())
        if spread > 0:
            x, y = (cv2.Scharr(smooth, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
            steepness += np.hypot(x, y) / spread
    steepness = np.sqrt(steepness)
    if not float(steepness.mean()) > 0:
        return None
    side = 2 * reach_px + 1
    at = rows * label.shape[1] + cols
    flat = steepness.ravel()
    tried = range(-reach_px, reach_px + 1)
    agreement = np.array([[flat[at + (down * label.shape[1] + right)].mean() for right in tried] for down in tried])
    best = int(agreement.argmax())
    down, right = divmod(best, side)
    here = float(agreement[reach_px, reach_px])
    middle, spread = float(np.median(agreement)), float(agreement.std())
    clear = float(agreement.max()) - middle > 3 * spread
    return Shift(down - reach_px, right - reach_px, float(agreement.max()) / here - 1, clear)


def rim_shares(label: NDArray[np.uint8], n_classes: int) -> NDArray[np.int64]:
    """[K, 2]: pixels of each class that have two other classes within 2 px (chessboard), and all its pixels.

    Interpolated and lossily compressed masks have a rim of in-between values, so a class all of whose pixels lie
    between two others.
    """
    kernel = np.ones((5, 5), np.uint8)
    masks = [(label == c).view(np.uint8) for c in range(n_classes)]
    near = np.zeros(label.shape, np.uint8)
    for mask in masks:
        if mask.any():
            near += cv2.dilate(mask, kernel).astype(np.uint8, copy=False)
    return np.array([[np.count_nonzero(mask & (near >= 3)), np.count_nonzero(mask)] for mask in masks], np.int64)


def grey_rims(path: Path, table: ClassTable) -> str | None:
    """What to do about a mask whose unknown codes are in-between values at the borders of classes; None where they
    are something else.

    Looks at the raw values in the middle of the file: unknown codes must be the smaller part, and nine tenths of them
    within 8 px (a JPEG block) of a border between known classes.
    """
    from rasterio.windows import Window

    from idgbr.rasters.grid import opened

    with opened(path) as source:
        side = min(2 * CROP_PX, source.height, source.width)
        bands = [1, 2, 3] if source.count >= 3 else [1]
        raw = source.read(bands, window=Window((source.width - side) // 2, (source.height - side) // 2, side, side)).astype(np.int64)
    label = np.full(raw.shape[1:], UNKNOWN, np.uint8)
    for index, codes in [*enumerate(c.codes for c in table.classes), (IGNORE, table.ignore)]:
        for code in codes:
            colour = np.array(code if isinstance(code, tuple) else [code] * len(raw))
            if len(colour) == len(raw):
                label[(raw == colour[:, None, None]).all(0)] = index
    unknown, known = label == UNKNOWN, label < table.n_classes
    if not unknown.any() or unknown.sum() > known.sum():
        return None
    kernel = np.ones((17, 17), np.uint8)
    low = cv2.erode(np.where(known, label, np.uint8(UNKNOWN)), kernel)
    high = cv2.dilate(np.where(known, label, np.uint8(0)), kernel)
    if (low < high)[unknown].mean() < 0.9:
        return None
    lossy = path.suffix.lower() in (".jpg", ".jpeg", ".webp")
    kind = "a JPEG mask" if lossy else "resampled smoothly, or once stored with losses"
    return (
        f"{path} has grey rims: {unknown.mean():.2%} of its pixels have values between the codes, at the borders of classes ({kind}). "
        "Take the original masks; or threshold these and store them without losses (PNG), which moves borders by up to a pixel"
    )


# ---- the whole data set -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """One raster that was looked at: the part [row, col, side], its shift (None: too few edges) and the rims of its
    classes [K, 2]."""

    raster: Raster
    shift: Shift | None
    rims: NDArray[np.int64]


def look(dataset: Dataset, most: int = RASTERS) -> Iterator[Seen]:
    """Up to `most` labelled rasters, spread over the data set, each with the first part that has enough class
    edges."""
    labelled = [r for r in dataset.rasters if r.label is not None]
    for raster in spread(labelled, most):
        yield look_at(dataset, raster)


def look_at(dataset: Dataset, raster: Raster) -> Seen:
    """The raster's middle; where that has too few class edges, the first of its quarters that has enough."""
    from idgbr.rasters.read import read_labels

    k = dataset.table.n_classes
    assert raster.label is not None
    side = min(CROP_PX, max(raster.height, raster.width))
    label = np.zeros((0, 0), np.uint8)
    rims = np.zeros((k, 2), np.int64)
    for row, col in _parts(raster, side):
        label = read_labels(raster.label, dataset.table, row, col, min(side, raster.height - row), min(side, raster.width - col))
        image, valid = raster.reader(dataset.bands).read(row, col, *label.shape)
        label[~valid] = IGNORE
        rims += rim_shares(label, k)
        shift = edge_shift(image, label, k)
        if shift is not None:
            return Seen(raster, shift, rims)
    return Seen(raster, None, rims)


def _parts(raster: Raster, side: int) -> list[tuple[int, int]]:
    """Upper left corners: the middle, then the middles of the quarters (of a raster larger than one part)."""
    places = [(0.5, 0.5)]
    if max(raster.height, raster.width) > side:
        places += [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)]

    def start(share: float, length: int) -> int:
        return max(0, min(round(share * length - side / 2), length - side))

    return list(dict.fromkeys((start(down, raster.height), start(right, raster.width)) for down, right in places))


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """Up to `most` of the items, evenly spaced."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).astype(int))]


def warnings_of(seen: Sequence[Seen], table: ClassTable) -> list[str]:
    """What the looked-at rasters say about the labels."""
    return [*_shift_warnings(seen), *_rim_warnings(seen, table)]


def _shift_warnings(seen: Sequence[Seen]) -> list[str]:
    shifts = [(s.raster.id, s.shift) for s in seen if s.shift is not None and s.shift.clear]
    off = [(name, shift) for name, shift in shifts if shift.px > OFF_PX and shift.gain >= 0.1]
    if not off:
        return []
    down, right = (float(np.median([getattr(shift, axis) for _, shift in off])) for axis in ("down", "right"))
    named = ", ".join(f"{name} ({shift.right:+d}, {shift.down:+d})" for name, shift in off[:5])
    more = f" and {len(off) - 5} more" if len(off) > 5 else ""
    each = f"; all together by about ({right:+.0f}, {down:+.0f})" if len(off) > len(shifts) / 2 and len(off) > 1 else ""
    return [
        f"label edges of {len(off)} of {len(shifts)} rasters with clear edges agree best with the image when moved by more than "
        f"{OFF_PX:g} px: (right, down) {named}{more}{each}. Labels made on another image, or a lost georeference"
    ]


def _rim_warnings(seen: Sequence[Seen], table: ClassTable) -> list[str]:
    rims = sum((s.rims for s in seen), np.zeros((table.n_classes, 2), np.int64))
    found = [f"{table.names[c]} ({on_rim / of:.0%})" for c, (on_rim, of) in enumerate(rims.tolist()) if of >= 100 and on_rim > 0.6 * of]
    return [f"classes that lie almost only between two others: {', '.join(found)}. Masks that were resampled smoothly or stored "
            "with losses (JPEG) have such rims; take the originals, or resample by nearest neighbour"] if found else []  # fmt: skip


def unlikely_shares(rows: Sequence[dict[str, Any]], table: ClassTable) -> list[str]:
    """Splits in which a class covers more of the labelled pixels than its name makes likely; `rows` of the index."""
    out = []
    for split in dict.fromkeys(row["split"] for row in rows):
        counts = [row["class_px"] for row in rows if row["split"] == split and row["class_px"] is not None]
        total = np.sum(counts, axis=0) if counts else np.zeros(table.n_classes)
        for name, count in zip(table.names, total):
            most = next((share for pattern, share in LIKELY if pattern.search(name) and not NOT.search(name)), 1.0)
            if count > most * total.sum():
                out.append(f"{name} covers {count / total.sum():.0%} of {split}, more than {most:.0%}: are the codes exchanged? "
                           "Compare the contact sheet (--sheet) with the images")  # fmt: skip
    return out
