"""From draws to one map: mean, minimum Bayes risk, and a guard that leans towards the coarse map. numpy only.

One sample of a posterior is the wrong answer where a score over regions counts: with a doubt of 2 px about an outline
the mean of samples scores far higher than a sample. `decide` makes the answer, `tune` finds the settings of the guard
on blocks that trained nothing.

Shape letters: S samples, B tiles, K classes, H, W pixels.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from idgbr.config import SamplerConfig
from idgbr.errors import BadRequest
from idgbr.labels import IGNORE
from idgbr.rasters.edges import changeable

BAND_PX = 2  # of boundary IoU, as in the scores of 256 px tiles
TRUSTS = (1.0, 0.75, 0.5, 0.25)
REACHES_PX = (0.0, 4.0, 8.0, 16.0)
CONFIDENCES = (0.0, 0.97, 0.9)
ENOUGH_BLOCKS = 8  # to tell from their differences how far a gain holds; fewer are cut in four, which are no longer quite independent
SURES = (0.0, 0.7, 0.8, 0.9)  # for refiners that meet maps of any quality: they must also leave good ones alone

Floats = NDArray[np.float32]


def decide(draws: Floats, coarse: Floats, decision: str = "mean", trust: float = 1.0, sure: float = 0.0) -> Floats:
    """Probabilities [B,K,H,W] from draws [S,B,K,H,W] and coarse probabilities [B,K,H,W].

    Args:
        decision: "mean" of the draws; or "mbr", minimum Bayes risk: of the draws and their mean the map with the
            highest mean boundary IoU against the draws. trust, sure: see `guarded`.
    """
    found = draws.mean(axis=0)
    if decision == "mbr" and len(draws) > 1:
        found = np.stack([_least_risk(draws[:, b], found[b]) for b in range(draws.shape[1])])
    return guarded(found, coarse, trust, sure)


def guarded(refined: Floats, coarse: Floats, trust: float, sure: float = 0.0) -> Floats:
    """log p = l log p_refined + (1 - l) log p_coarse with l = `trust`, for probabilities [...,K,H,W]; l = 1 is the
    refined map. The coarse probabilities stay where no refined one reaches `sure`."""
    if sure:
        keep = refined.max(axis=-3, keepdims=True) < sure
        return np.asarray(np.where(keep, coarse, guarded(refined, coarse, trust)), np.float32)
    if trust == 1:
        return refined
    logits = trust * np.log(refined.clip(1e-6)) + (1 - trust) * np.log(coarse.clip(1e-6))
    powers = np.exp(logits - logits.max(axis=-3, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-3, keepdims=True), np.float32)


def _least_risk(draws: Floats, mean: Floats) -> Floats:
    """One tile: draws [S,K,H,W] and their mean [K,H,W] -> the one that agrees best with the draws, the mean where
    they are level."""
    n_classes = len(mean)
    candidates = [mean, *draws]
    maps = [c.argmax(axis=0).astype(np.uint8) for c in candidates]
    bands = [boundary_bands(m, n_classes) for m in maps]

    def agreement(i: int) -> float:
        others = [j for j in range(1, len(maps)) if j != i]
        return float(np.mean([_band_iou(bands[i], bands[j]) for j in others]))

    return candidates[max(range(len(candidates)), key=lambda i: (agreement(i), -i))]


def boundary_bands(index: NDArray[np.uint8], n_classes: int, band_px: int = BAND_PX) -> NDArray[np.bool_]:
    """Of every class the pixels within `band_px` (chessboard steps) of its own edge, inside it [K,H,W] (arXiv
    2103.16562)."""
    kernel = np.ones((2 * band_px + 1,) * 2, np.uint8)
    masks = [(index == k).astype(np.uint8) for k in range(n_classes)]
    return np.stack([(m - cv2.erode(m, kernel, borderType=cv2.BORDER_REPLICATE)) > 0 for m in masks])


def _band_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Mean over the classes that either map has an edge of; 1 where neither has any."""
    both, either = (a & b).sum(axis=(1, 2)), (a | b).sum(axis=(1, 2))
    return float((both[either > 0] / either[either > 0]).mean()) if either.any() else 1.0


def refuse_confidence(sampler: SamplerConfig) -> None:
    """For coarse maps without probabilities.

    Raises:
        BadRequest: settings that need to know how sure the coarse map is.
    """
    for name, off in (("keep_confidence", 0.0), ("trust", 1.0)):
        if getattr(sampler, name) not in (off, 0.0):
            raise BadRequest(
                f"sampler.{name} needs coarse probabilities; a class map says nothing about confidence",
                value=f"sampler.{name}={getattr(sampler, name)}",
                hint=f"sampler.{name}={off:g}, or a coarse map with one probability band a class",
            )


def without_confidence(sampler: SamplerConfig) -> SamplerConfig:
    """A saved decision for a class map: its reach holds, what needs confidence is off; a trust of 0 (the coarse map
    itself) stays."""
    return dataclasses.replace(sampler, keep_confidence=0.0, trust=0.0 if sampler.trust == 0 else 1.0)


# ---- settings of the guard ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A block of ground that trained nothing: refined and coarse probabilities [K,H,W], and its labels [H,W], 255
    unknown."""

    refined: Floats
    coarse: Floats
    target: NDArray[np.uint8]


@dataclass(frozen=True)
class Tuned:
    """What `tune` chose, and how the maps score on the blocks, in 0..1."""

    trust: float
    reach_px: float
    keep_confidence: float
    miou: float
    boundary_iou: float
    coarse_miou: float
    coarse_boundary_iou: float
    sure: float = 0.0

    def apply(self, sampler: SamplerConfig) -> SamplerConfig:
        """The sampler settings with this guard."""
        values = {name: getattr(self, name) for name in ("trust", "reach_px", "keep_confidence", "sure")}
        return dataclasses.replace(sampler, **values)


def decided_map(
    refined: Floats, coarse: Floats, trust: float, reach_px: float, keep_confidence: float, sure: float = 0.0
) -> NDArray[np.uint8]:
    """Class map [H,W] from probabilities [K,H,W] under a guard."""
    before = coarse.argmax(axis=0).astype(np.uint8)
    may = changeable(before, coarse.max(axis=0), reach_px, keep_confidence)
    return np.where(may, guarded(refined, coarse, trust, sure).argmax(axis=0), before).astype(np.uint8)


def tune(blocks: Sequence[Block], sures: Sequence[float] = (0.0,)) -> Tuned:
    """The guard under which boundary IoU is greatest, of those whose mIoU is not below the coarse map's and whose gain
    in boundary IoU is more than its standard error over the blocks; else the coarse map itself (trust 0).

    Among equals the one that changes least comes first. The best of many guards looks better than it is: a gain within
    one standard error is taken for none.

    Raises:
        ValueError: no block.
    """
    if not blocks:
        raise ValueError("no blocks to tune a decision on")
    before = _counts(blocks, [b.coarse.argmax(axis=0).astype(np.uint8) for b in blocks])
    start = _scores(before.sum(axis=0))
    best: tuple[Any, ...] = (start[1], 0.0, 0.0, 0.0, 0.0, start[0])
    for trust, reach, confidence, sure in itertools.product(sorted(TRUSTS), REACHES_PX, CONFIDENCES, sorted(sures, reverse=True)):
        after = _counts(blocks, [decided_map(b.refined, b.coarse, trust, reach, confidence, sure) for b in blocks])
        miou, boundary = _scores(after.sum(axis=0))
        if miou >= start[0] and boundary > best[0] and boundary - start[1] > _gain_error(before, after):
            best = (boundary, trust, reach, confidence, sure, miou)
    boundary, trust, reach, confidence, sure, miou = best
    return Tuned(trust, reach, confidence, miou, boundary, *start, sure=sure)


def _gain_error(before: NDArray[np.int64], after: NDArray[np.int64]) -> float:
    """Standard error of the gain in boundary IoU between counts [N,4,K] of N pieces of ground: the jackknife (Efron and
    Tibshirani 1993, eq. 11.5)."""
    n = len(before)
    gains = [_scores(after.sum(axis=0) - a)[1] - _scores(before.sum(axis=0) - b)[1] for b, a in zip(before, after, strict=True)]
    return float(np.sqrt((n - 1) * np.var(gains)))


def _counts(blocks: Sequence[Block], maps: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """[N,4,K] of every block, or of its quarters where blocks are few: pixels of a class in both maps and in either,
    and the same of its boundary band."""
    n_classes = len(blocks[0].coarse)
    cuts = 1 if len(blocks) >= ENOUGH_BLOCKS else 2
    counts = []
    for block, index in zip(blocks, maps, strict=True):
        known = block.target != IGNORE
        truth = np.where(known, block.target, index)  # unknown pixels make no edges and count nowhere
        here, there = (np.stack([m == k for k in range(n_classes)]) for m in (index, truth))
        band, wanted = boundary_bands(index, n_classes), boundary_bands(truth.astype(np.uint8), n_classes)
        pixels = np.stack([here & there & known, (here | there) & known, band & wanted & known, (band | wanted) & known])
        counts += [piece.sum(axis=(2, 3)) for rows in np.array_split(pixels, cuts, axis=2) for piece in np.array_split(rows, cuts, axis=3)]
    return np.stack(counts)


def _scores(counts: NDArray[np.int64]) -> tuple[float, float]:
    """(mIoU, boundary IoU) of counts [4,K]: means over the classes that occur."""
    values = [counts[2 * r][counts[2 * r + 1] > 0] / counts[2 * r + 1][counts[2 * r + 1] > 0] for r in (0, 1)]
    return tuple(float(v.mean()) if len(v) else 1.0 for v in values)  # type: ignore[return-value]
