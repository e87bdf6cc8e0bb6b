"""Counts of a tile about the confidence of a map: calibration, detection of errors, energy score of its samples.

Confidence is the probability of the class given. Whole numbers add up over tiles; the energy score and the spread
are values of one tile taken by itself. Energy score (Gneiting and Raftery, JASA 2007, section 4.3) of samples S and
the target Y: E d(S, Y) - E d(S, S') / 2 with d = 1 - IoU or 1 - boundary IoU of a class, both means over the samples
as they are; of a single map it is d itself. Beside it stands the energy score of maps cut from the probabilities at
`schema.LEVELS` levels, which any map with probabilities has: what samples add must be better than that.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from idgbr.interfaces import Json
from idgbr.labels import IGNORE
from idgbr.rasters.edges import label_edges
from idgbr.scores.boundary import Inner, crop, inner_boundary, trimap_shells
from idgbr.scores.region import Map, joint
from idgbr.scores.sampled import Sampled
from idgbr.scores.schema import (
    CALIBRATION_BINS,
    DOUBT_EDGES,
    LEVELS,
    NEAR_PX,
    REGIONS,
    VOTES,
    VOTES_RIGHT,
    VOTES_WRONG,
    confidence_columns,
)

_BIN = np.searchsorted(np.asarray(DOUBT_EDGES), np.arange(256), side="right").astype(np.uint8) - 1  # of doubt in 255ths


def fill(rows: list[Json], tile: Json, pred: Map, target: Map, sampled: Sampled, k: int, boundary_px: int, inner: Inner) -> None:
    """Put the columns `schema.UNCERTAINTY` into the rows of the classes and the row of the whole tile.

    Args:
        pred, target: class indices uint8 [H,W] of a window with a halo of `boundary_px` and `schema.NEAR_PX`; target
            values >= K are ignored. inner: the tile within the window.
    """
    near = crop(trimap_shells(label_edges(target, k), (NEAR_PX,)) == 0, inner)
    index, truth = crop(pred, inner), crop(target, inner)
    valid = truth < k
    levels = np.rint(sampled.probabilities[:, inner[0] : inner[1], inner[2] : inner[3]] * 255).astype(np.int64)
    given = np.minimum(index, k - 1)
    confidence = np.take_along_axis(levels, given[None].astype(np.intp), 0)[0]
    squares = ((levels - 255 * (np.arange(k)[:, None, None] == truth)) ** 2).sum(0)
    right = index == truth
    for region, inside in zip(REGIONS, (valid, valid & near), strict=True):
        _fill_confidence(tile, region, confidence[inside], right[inside], int(squares[inside].sum()))
    if len(sampled.samples) > 1:
        votes = np.rint(VOTES * (sampled.samples[:, inner[0] : inner[1], inner[2] : inner[3]] == index).mean(0)).astype(np.int64)
        for names, which in ((VOTES_RIGHT, right), (VOTES_WRONG, ~right)):
            tile.update(zip(names, np.bincount(votes[valid & which], minlength=VOTES + 1).tolist(), strict=True))
    _fill_energy(rows, sampled.samples, target, k, boundary_px, inner)
    cut = level_sets(sampled.probabilities)
    for name, (energy, _) in _energies(cut, target, k, boundary_px, inner).items():
        for row, value in zip(rows, energy, strict=True):
            row[f"energy_{name}_levels_value"] = value


def level_sets(probabilities: NDArray[np.float32], n: int = LEVELS) -> NDArray[np.uint8]:
    """Maps [n,H,W] of classes whose pixels share their luck, from probabilities [K,H,W]: each pixel has its classes as
    often as its probabilities say.

    Two classes: thresholds at (i + 1/2) / n. More: the greatest log p + g with one draw g of the Gumbel distribution a
    map and class for all pixels (Gumbel-max, arXiv 1411.0030), the same draws for every tile.
    """
    if len(probabilities) == 2:
        levels = (np.arange(n) + 0.5) / n
        return (probabilities[1] > levels[:, None, None]).astype(np.uint8)
    luck = np.random.default_rng(0).gumbel(size=(n, len(probabilities))).astype(np.float32)
    logs = np.log(probabilities.clip(1e-6))
    return np.stack([(logs + g[:, None, None]).argmax(0).astype(np.uint8) for g in luck])


def _fill_confidence(tile: Json, region: str, confidence: NDArray[np.int64], right: NDArray[np.bool_], squares: int) -> None:
    names = confidence_columns(region)
    doubt = 255 - confidence
    bins = _BIN[doubt]
    for name, which in (("right", right), ("wrong", ~right)):
        tile.update(zip(names[name], np.bincount(bins[which], minlength=len(DOUBT_EDGES)).tolist(), strict=True))
    coarse = np.minimum(doubt * CALIBRATION_BINS // 255, CALIBRATION_BINS - 1)
    total = np.bincount(coarse, weights=confidence, minlength=CALIBRATION_BINS)
    tile.update(zip(names["total"], np.rint(total).astype(np.int64).tolist(), strict=True))
    tile[names["brier"][0]] = squares


def _fill_energy(rows: list[Json], samples: NDArray[np.uint8], target: Map, k: int, boundary_px: int, inner: Inner) -> None:
    for name, (energy, spread) in _energies(samples, target, k, boundary_px, inner).items():
        for row, e, s in zip(rows, energy, spread, strict=True):
            row[f"energy_{name}_value"] = e
            row[f"spread_{name}_value"] = s if len(samples) > 1 else None


def _energies(
    samples: NDArray[np.uint8], target: Map, k: int, boundary_px: int, inner: Inner
) -> dict[str, tuple[list[float | None], list[float | None]]]:
    """Energy score and mean distance of two samples [K], by what is measured (iou, boundary); None for a class that is
    in no map."""
    valid = target < k
    maps = [np.where(valid & (m < k), m, np.uint8(IGNORE)) for m in (*samples, target)]
    found = {}
    for name, seen in (("iou", maps), ("boundary", [inner_boundary(m, boundary_px, frame=True) for m in maps])):
        *drawn, truth = (np.minimum(crop(m, inner), np.uint8(k)) for m in seen)
        missed = np.stack([_distance(m, truth, k) for m in drawn])
        pairs = np.stack([_distance(a, b, k) for a, b in itertools.combinations(drawn, 2)] or [np.zeros(k)])
        energy = missed.mean(0) - pairs.sum(0) / len(drawn) ** 2  # each pair stands twice among n^2, halved
        somewhere = [any(bool((m == c).any()) for m in (*drawn, truth)) for c in range(k)]
        found[name] = tuple([float(v) if there else None for v, there in zip(x, somewhere, strict=True)] for x in (energy, pairs.mean(0)))
    return found  # type: ignore[return-value]


def _distance(a: Map, b: Map, k: int) -> NDArray[np.float64]:
    """1 - intersection / union [K] of maps with values 0 to K; 0 for a class that is in neither."""
    both = joint([a, b], [k + 1, k + 1])
    inter = np.diagonal(both)[:k].astype(np.float64)
    union = both[:k].sum(1) + both[:, :k].sum(0) - inter
    return 1 - np.divide(inter, union, out=np.ones(k), where=union > 0)
