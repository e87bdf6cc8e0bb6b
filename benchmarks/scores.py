"""Every score against a plain scipy/numpy rendering of its definition, in one process on one core, values compared as they are timed.

    python benchmarks/scores.py [--repeats 3]             about a minute
    python benchmarks/scores.py --large 20000             a pair of rasters of that side streamed by `idgbr score`; peak memory

The functions named `plain_*` are the oracle: scipy and numpy only, one class against the rest at a time, as the definitions read.
Times are process times (user and system of this process), medians. The last line is one JSON object.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Map = NDArray[np.uint8]
Mask = NDArray[np.bool_]
EPS = 2.0**-52

# ---- the oracle: one mask pair at a time -----------------------------------------------------------------------------------


def plain_confusion(pred: Map, target: Map, n_classes: int) -> NDArray[np.int64]:
    ok = target < n_classes
    return np.bincount(target[ok].astype(np.int64) * n_classes + pred[ok], minlength=n_classes**2).reshape(n_classes, n_classes)


def plain_wfm(pred: Mask, target: Mask) -> float:
    """Margolin, Zelnik-Manor, Tal, CVPR 2014, as the authors of IDGBR and PySODMetrics write it."""
    if not target.any():
        return math.nan
    error = np.abs(pred.astype(float) - target)
    distance, nearest = ndimage.distance_transform_edt(~target, return_indices=True)
    spread = error.copy()
    spread[~target] = error[nearest[0][~target], nearest[1][~target]]
    smooth = ndimage.gaussian_filter(spread, sigma=5, truncate=0.6, mode="constant")
    least = np.where(target & (smooth < error), smooth, error)
    weight = np.where(target, 1.0, 2 - np.exp(np.log(0.5) / 5 * distance))
    weighted = least * weight
    hits = target.sum() - weighted[target].sum()
    recall = 1 - weighted[target].mean()
    precision = hits / (EPS + hits + weighted[~target].sum())
    return float(2 * recall * precision / (EPS + recall + precision))


def plain_edge_band(labels: Map, kernel: int = 3) -> Mask:
    """The authors' edge map: Sobel gradient of the raw values not 0, widened by a square; 255 drops out."""
    values = labels.astype(np.int32)
    gradient = (ndimage.sobel(values, 0, mode="mirror") != 0) | (ndimage.sobel(values, 1, mode="mirror") != 0)
    return ndimage.binary_dilation(gradient, np.ones((kernel, kernel))) & (labels < 255)


def plain_border(mask: Mask) -> Mask:
    return mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(2, 1), border_value=0)


def plain_surface(pred: Mask, target: Mask) -> tuple[float, float]:
    """(HD95, ASSD) as MedPy computes them."""
    if not pred.any() or not target.any():
        return math.nan, math.nan
    a, b = plain_border(pred), plain_border(target)
    both = np.concatenate([ndimage.distance_transform_edt(~b)[a], ndimage.distance_transform_edt(~a)[b]])
    return float(np.percentile(both, 95)), float(both.mean())


def plain_contour(mask: Mask) -> Mask:
    """seg2bmap: the pixel differs from its E, S or SE neighbour."""
    out = np.zeros_like(mask)
    out[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    out[:-1] |= mask[:-1] ^ mask[1:]
    out[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return out


def plain_boundary_f(pred: Mask, target: Mask, radius_px: float) -> float:
    a, b = plain_contour(pred), plain_contour(target)
    if not a.any() or not b.any():
        return math.nan if a.any() == b.any() else 0.0
    reach = math.floor(radius_px)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = x * x + y * y <= radius_px**2
    precision = (a & ndimage.binary_dilation(b, disk)).sum() / a.sum()
    recall = (b & ndimage.binary_dilation(a, disk)).sum() / b.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def plain_boundary_iou(pred: Mask, target: Mask, width_px: int) -> float:
    def inner(mask: Mask) -> Mask:
        padded = np.pad(mask, width_px).astype(np.uint8)
        return mask & (ndimage.minimum_filter(padded, 2 * width_px + 1)[width_px:-width_px, width_px:-width_px] == 0)

    a, b = inner(pred), inner(target)
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else math.nan


def plain_mba(pred: Map, target: Map) -> float:
    height, width = target.shape
    shares = []
    for i in range(5):
        r = 1 + int(((width + height) / 300 - 1) / 5 * i)
        dy = np.arange(-r, r + 1)
        half = np.rint(np.sqrt(r * r - dy * dy)).astype(int)  # cv2.MORPH_ELLIPSE
        ellipse = np.abs(np.arange(-r, r + 1))[None] <= half[:, None]
        band = ndimage.grey_dilation(target, footprint=ellipse, mode="reflect") != ndimage.grey_erosion(
            target, footprint=ellipse, mode="reflect"
        )
        shares.append((pred == target)[band].mean() if band.any() else math.nan)
    return float(np.mean(shares))


def plain_edges(target: Map) -> Mask:
    out = np.zeros(target.shape, bool)
    across, down = target[:, :-1] != target[:, 1:], target[:-1] != target[1:]
    out[:, :-1] |= across
    out[:, 1:] |= across
    out[:-1] |= down
    out[1:] |= down
    return out


def plain_trimap_iou(pred: Map, target: Map, n_classes: int, width_px: int) -> list[float]:
    band = ndimage.binary_dilation(plain_edges(target), np.ones((2 * width_px - 1,) * 2))
    m = plain_confusion(pred[band], target[band], n_classes)
    return [float(m[c, c] / u) if (u := m[c].sum() + m[:, c].sum() - m[c, c]) else math.nan for c in range(n_classes)]


def plain_distance_accuracy(pred: Map, target: Map, edges_px: tuple[float, ...]) -> list[float]:
    edges = plain_edges(target)
    distance = ndimage.distance_transform_edt(~edges) + 1 if edges.any() else np.full(target.shape, np.inf)
    bands = np.digitize(distance, edges_px, right=True)
    return [float((pred == target)[bands == i].mean()) if (bands == i).any() else math.nan for i in range(len(edges_px) + 1)]


def plain_energies(pred: Map, target: Map, n_classes: int, levels: int) -> list[float]:
    """S_0 .. S_levels of the band error by integral images."""
    out = []
    for j in range(levels + 1):
        n, total = 2**j, 0
        for c in [1] if n_classes == 2 else range(n_classes):
            e = np.pad((pred == c).astype(np.int64) - (target == c), n)
            integral = np.pad(e.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            box = integral[n:, n:] - integral[:-n, n:] - integral[n:, :-n] + integral[:-n, :-n]
            total += int((box * box).sum())
        out.append(total / 16**j / (target.size * (1 if n_classes == 2 else 2)))
    return out


def plain_ledger(coarse: Map, refined: Map, target: Map) -> list[int]:
    before, after = coarse == target, refined == target
    return [int((before & after).sum()), int((~before & after).sum()), int((before & ~after).sum()), int((~before & ~after).sum())]


# ---- both sides of every score ------------------------------------------------------------------------------------------------


def cases(pred: Map, target: Map, coarse: Map, k: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """name -> (ours, plain), both returning numbers to compare."""
    from idgbr.rasters import edges as edges_of
    from idgbr.scores import bands, boundary, formulas, legacy, region, surface, wfm

    height, width = target.shape
    inner, diagonal = (0, height, 0, width), math.hypot(height, width)
    ratio_px, wide_px, edges_px = max(1, round(0.005 * diagonal)), max(1, round(0.02 * diagonal)), (1.0, 2.0, 3.0, 5.0, 8.0, 16.0)

    def each(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        return lambda: [function(pred == c, target == c, *args) for c in range(k)]

    def ours_confusion() -> Any:
        tp, fp, fn = region.rates(region.confusion(pred, target, k))
        return [formulas.iou(tp, fp, fn), formulas.f1(tp, fp, fn)]

    def plain_iou_f1() -> Any:
        m = plain_confusion(pred, target, k)
        tp, both = np.diag(m), m.sum(0) + m.sum(1)
        return [tp / (both - tp), 2 * tp / both]

    def ours_wfm(a: Map, b: Map, n: int) -> Any:
        s = wfm.sums(a, b, n, inner)
        return wfm.weighted_f(s.target, s.target_loss, s.rest_loss)

    def ours_surface() -> Any:
        out = []
        for lists in surface.directed(pred, target, k):
            d = surface.describe(*lists) if lists else {"hd95": math.nan, "assd_sum": math.nan, "assd_pixels": 1}
            out.append((d["hd95"], d["assd_sum"] / d["assd_pixels"]))
        return out

    def ours_trimap() -> Any:
        shells = boundary.trimap_shells(edges_of.label_edges(target, k), (3,))
        return formulas.iou(*region.rates(region.joint([shells, target, pred], [1, k, k + 1])[0]))

    def ours_distance() -> Any:
        band = edges_of.distance_bands(edges_of.label_edges(target, k), edges_px)
        m = region.joint([band, target, pred], [len(edges_px) + 1, k, k + 1])
        return formulas.ratio(np.trace(m, axis1=1, axis2=2), m.sum((1, 2)))

    def ours_energies() -> Any:
        _, total = bands.energies(pred, target, k, 4, inner)
        return formulas.energies({"valid": np.array(target.size), **{f"t{j}": np.array(t) for j, t in enumerate(total)}})

    def ours_ledger() -> Any:
        cells = region.ledger(region.joint([target, coarse, pred], [k, k + 1, k + 1]))
        return [int(v.sum()) for v in cells.values()]

    found = {
        "confusion, IoU, F1": (ours_confusion, plain_iou_f1),
        "WFm region": (lambda: ours_wfm(pred, target, k), each(plain_wfm)),
        "WFm edge (legacy, k=3)": (
            lambda: legacy.edge_f(pred, target),
            lambda: [plain_wfm(a == v, b == v) for a, b in [(plain_edge_band(pred), plain_edge_band(target))] for v in (0, 1)],
        ),
        "HD95, ASSD": (ours_surface, each(plain_surface)),
        "boundary F, 3 px": (lambda: formulas.boundary_f(*boundary.boundary_f(pred, target, k, 3, inner)), each(plain_boundary_f, 3)),
        "boundary F, 0.008": (
            lambda: formulas.boundary_f(*boundary.boundary_f(pred, target, k, math.ceil(0.008 * diagonal), inner)),
            each(plain_boundary_f, math.ceil(0.008 * diagonal)),
        ),
        "boundary IoU, 0.005": (
            lambda: formulas.ratio(*boundary.boundary_iou(pred, target, k, ratio_px, inner)),
            each(plain_boundary_iou, ratio_px),
        ),
        "boundary IoU, 0.02": (
            lambda: formulas.ratio(*boundary.boundary_iou(pred, target, k, wide_px, inner)),
            each(plain_boundary_iou, wide_px),
        ),
        "mBA": (
            lambda: np.mean(formulas.ratio(*boundary.mba(pred, target, k, boundary.mba_radii(height, width), inner))),
            lambda: plain_mba(pred, target),
        ),
        "trimap IoU, 3 px": (ours_trimap, lambda: plain_trimap_iou(pred, target, k, 3)),
        "accuracy by distance": (ours_distance, lambda: plain_distance_accuracy(pred, target, edges_px)),
        "frequency bands": (ours_energies, lambda: plain_energies(pred, target, k, 4)),
        "repair ledger": (ours_ledger, lambda: plain_ledger(coarse, pred, target)),
    }
    return found


def scene(side: int, n_classes: int, seed: int) -> tuple[Map, Map, Map]:
    """(pred, target, coarse): blobs with a jittered boundary, a few objects missed and made up; coarse is worse."""
    rng = np.random.default_rng(seed)
    scale = 24 if n_classes == 2 else 16

    def field() -> NDArray[np.float64]:
        return np.stack([ndimage.gaussian_filter(rng.standard_normal((side, side)), scale) for _ in range(n_classes)])

    base = field()
    base /= base.std()
    target = base.argmax(0).astype(np.uint8)

    def worse(amount: float) -> Map:
        noise = np.stack([ndimage.gaussian_filter(rng.standard_normal((side, side)), 4) for _ in range(n_classes)])
        out = (base + amount * noise / noise.std()).argmax(0).astype(np.uint8)
        for _ in range(6):
            y, x = rng.integers(0, side - side // 12, 2)
            out[y : y + side // 16, x : x + side // 14] = rng.integers(n_classes)
        return out

    return worse(0.05), target, worse(0.2)


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        value = function()
        times.append(time.process_time() - start)
    return statistics.median(times) * 1e3, value


def compare(side: int, n_classes: int, repeats: int) -> tuple[float, float]:
    """(speed-up on the sum, ms of `count_tile` with the default set)."""
    import cv2

    from idgbr.config import ScoreConfig
    from idgbr.scores.tile import count_tile

    cv2.setNumThreads(1)
    pred, target, coarse = scene(side, n_classes, 1)
    ours_sum = plain_sum = 0.0
    print(f"\n{side} x {side} px, {n_classes} classes, error rate {np.mean(pred != target):.3f}; ms of process time")
    for name, (ours, plain) in cases(pred, target, coarse, n_classes).items():
        ours()
        fast, a = timed(ours, 2 * repeats + 1)
        slow, b = timed(plain, repeats)
        if not np.allclose(np.array(a, float), np.array(b, float), rtol=0, atol=1e-9, equal_nan=True):
            raise SystemExit(f"{name}: {a} is not {b}")
        ours_sum, plain_sum = ours_sum + fast, plain_sum + slow
        print(f"{name:26s} {fast:9.2f} {slow:9.2f} {slow / fast:7.1f} x")
    whole, _ = timed(lambda: count_tile(pred, target, n_classes, ScoreConfig(), coarse), 2 * repeats + 1)
    print(
        f"{'sum':26s} {ours_sum:9.2f} {plain_sum:9.2f} {plain_sum / ours_sum:7.1f} x;  default set of counts (count_tile): {whole:.1f} ms"
    )
    return plain_sum / ours_sum, whole


def stream(side: int) -> dict[str, float]:
    """Peak memory and time of `idgbr score` on two GeoTIFFs of side x side px, in a process of its own."""
    import resource
    import subprocess
    import sys

    import rasterio
    from rasterio.transform import from_origin

    pred, target, _ = scene(2048, 2, 3)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.tif" for name in ("pred", "target")]
        for path, tile in zip(paths, (pred, target)):
            kind = {"driver": "GTiff", "dtype": "uint8", "compress": "deflate", "tiled": True, "blockxsize": 512, "blockysize": 512}
            place = {"crs": "EPSG:32633", "transform": from_origin(400000, 5000000, 0.3, 0.3)}
            with rasterio.open(path, "w", width=side, height=side, count=1, **kind, **place) as file:
                for row in range(0, side, 2048):
                    line = np.tile(tile, (1, math.ceil(side / 2048)))[: min(2048, side - row), :side]
                    file.write(line, 1, window=((row, row + len(line)), (0, side)))
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "idgbr", "score", *map(str, paths), "--json"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{side} x {side} px: {seconds:.0f} s, {side * side / 1e6 / seconds:.2f} Mpx/s, peak memory {peak:.0f} MiB")
    return {"side_px": side, "seconds": round(seconds, 1), "peak_mib": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", type=int, default=0, help="stream a pair of rasters of this side instead")
    arguments = parser.parse_args()
    if arguments.large:
        print(json.dumps(stream(arguments.large)))
        return
    speedup_512x6, tile_ms = compare(512, 6, arguments.repeats)
    speedup_1024x2, large_ms = compare(1024, 2, arguments.repeats)
    print(json.dumps({"speedup_512x6": round(speedup_512x6, 2), "speedup_1024x2": round(speedup_1024x2, 2),
                      "count_tile_ms_512x6": round(tile_ms, 1), "count_tile_ms_1024x2": round(large_ms, 1)}))  # fmt: skip


if __name__ == "__main__":
    main()
