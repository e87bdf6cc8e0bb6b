"""Where a refiner helps: by distance to the boundary, by class, by frequency band; and learning curves.

Plain numbers for figures.

S seeds, U units, K classes, J frequency levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from idgbr.scores.read import ratio
from idgbr.scores.schema import ENERGIES, LEDGER
from sweeps.analysis import stats
from sweeps.analysis.contrasts import pairs
from sweeps.analysis.trials import damaged
from sweeps.analysis.variants import Level, Variant, short_names, show
from sweeps.analysis.views import View

T = TypeVar("T")

BAND_COLUMNS = ("trial", "split", "label_set", "scene", "block", "class", "low_px", "high_px", "valid", "correct")


@dataclass(frozen=True)
class Point:
    """A number with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class DistanceCurve:
    """Pixel accuracy by distance to the target's boundary: of each map, and the paired gain over coarse."""

    low_px: tuple[float, ...]
    high_px: tuple[float, ...]
    accuracy: dict[str, list[Point]]  # by kind of map
    gain: dict[str, list[Point]]


@dataclass(frozen=True)
class BandCurve:
    """Error by size of the erroneous structure, fine to coarse: of each kind of map as a share of all pixels, and the
    share of the first map's that it removed. `names`: sizes in px.
    """

    names: tuple[str, ...]
    error: dict[str, list[Point]]
    removed: dict[str, list[Point]]


def _jackknife(pooled: float, leave_one_out: np.ndarray) -> Point:
    """t interval on pseudo-values: right for ratios of sums, where a unit by itself may be undefined."""
    u = leave_one_out.size
    shares = u * pooled - (u - 1) * leave_one_out
    shares = shares[np.isfinite(shares)]
    if shares.size < 2:
        return Point(pooled, math.nan, math.nan)
    i = stats.t_interval(shares)
    half = (i.high - i.low) / 2
    return Point(pooled, pooled - half, pooled + half)


def _read_bands(view: View, variants: Sequence[Variant]) -> pl.DataFrame | None:
    frames = []
    for v in variants:
        for trial in v.trials:
            part = view.population.part_of(trial).of("bands")
            try:
                found = pq.read_table(part.path, columns=list(BAND_COLUMNS), filesystem=part.store.fs, partitioning=None)
            except FileNotFoundError:
                return None
            except (pa.ArrowInvalid, OSError) as error:
                raise damaged(part, error, "move it and its part in tables/trials away, then run the study again") from error
            frames.append(pl.DataFrame(pl.from_arrow(found)))
    bands = pl.concat(frames)
    unit = pl.col("scene") if view.sums.unit_kind == "scene" else pl.concat_str("scene", "block", separator=" ")
    mine = (pl.col("split") == view.split) & (pl.col("label_set") == view.label_set) & (pl.col("class") == -1)
    kept = bands.filter(mine).with_columns(unit.alias("unit"))
    return kept.group_by("trial", "unit", "low_px", "high_px").agg(pl.col("valid").sum(), pl.col("correct").sum())


def by_distance(view: View, variants: Sequence[Variant]) -> DistanceCurve | None:
    """Accuracy by band of distance for some variants, the first of which is the coarse map; None where the bands were
    not synced.
    """
    frame = _read_bands(view, variants)
    if frame is None or not frame.height:
        return None
    edges = frame.select("low_px", "high_px").unique().sort("low_px").rows()
    units = view.sums.units
    counts: dict[str, np.ndarray] = {}
    for v in variants:
        out = np.zeros((len(v.trials), len(units), len(edges), 2))
        rows = frame.filter(pl.col("trial").is_in(list(v.trials)))
        t = rows["trial"].replace_strict(list(v.trials), list(range(len(v.trials))), return_dtype=pl.Int64).to_numpy()
        u = rows["unit"].replace_strict(list(units), list(range(len(units))), return_dtype=pl.Int64).to_numpy()
        b = np.searchsorted([low for low, _ in edges], rows["low_px"].to_numpy())
        out[t, u, b] = rows.select("correct", "valid").to_numpy()
        counts[v.kind] = out
    accuracy: dict[str, list[Point]] = {}
    gain: dict[str, list[Point]] = {}
    first = variants[0].kind

    def value(c: np.ndarray) -> np.ndarray:  # [S, U, bands, 2] summed over any axis 1 -> mean over seeds
        return ratio(c[..., 0], c[..., 1]).mean(axis=0)

    total = {k: (value(c.sum(axis=1)), value(c.sum(axis=1, keepdims=True) - c)) for k, c in counts.items()}  # [bands], [U, bands]
    for kind, (pooled, loo) in total.items():
        accuracy[kind] = [_jackknife(float(pooled[b]), loo[:, b]) for b in range(len(edges))]
        if kind != first:
            gain[kind] = [_jackknife(float(pooled[b] - total[first][0][b]), loo[:, b] - total[first][1][:, b]) for b in range(len(edges))]
    return DistanceCurve(tuple(e[0] for e in edges), tuple(e[1] for e in edges), accuracy, gain)


def repair_by_class(view: View, variant: Variant) -> list[dict[str, float]] | None:
    """For each class: repaired, damaged and still wrong as shares of its pixels, all seeds together; None without
    ledger columns.
    """
    columns = view.sums.columns
    if not set(LEDGER) <= set(columns):
        return None
    classes = [i for i, c in enumerate(view.sums.classes) if c >= 0]
    summed = view.sums.of(variant.trials).sum(axis=(0, 1))[classes]  # [K, C]
    parts = {name: summed[:, columns.index(name)] for name in LEDGER}
    pixels = sum(parts.values())
    return [
        {"class": float(view.sums.classes[i]), **{n: float(parts[n][j] / pixels[j]) if pixels[j] else math.nan for n in LEDGER}}
        for j, i in enumerate(classes)
    ]


def by_band(view: View, variants: Sequence[Variant]) -> BandCurve | None:
    """Error by size of structure for some variants, the first of which is the coarse map; None without frequency
    counts.

    Band j of the error field is S_j - S_(j+1), the last S_J (docs/scores.md): together they are the share of wrong
    pixels. Removed: 1 - error / error of the first.
    """
    columns = view.sums.columns
    names = [e for e in ENERGIES if e in columns]
    whole = view.sums.classes.index(-1)

    def energies(v: Variant) -> np.ndarray:  # [U, J + 1] in pixels, seeds averaged
        t = view.sums.of(v.trials)[:, :, whole][..., [columns.index(n) for n in names]]
        return np.asarray((t / (2 * 16.0 ** np.arange(len(names)))).mean(axis=0))

    found = [energies(v) for v in variants]
    levels = min(int(np.isfinite(e.sum(axis=0)).sum()) for e in found)
    if levels < 2:
        return None
    pixels = view.sums.of(variants[0].trials)[0, :, whole, columns.index("valid")]  # [U]
    labels = tuple(f"{2**j}" if j < levels - 1 else f"≥{2**j}" for j in range(levels))
    bands = [np.concatenate([e[:, : levels - 1] - e[:, 1:levels], e[:, levels - 1 : levels]], axis=1) for e in found]  # [U, J + 1]
    error: dict[str, list[Point]] = {}
    removed: dict[str, list[Point]] = {}
    first = bands[0]
    rest, rest_pixels = first.sum(axis=0) - first, pixels.sum() - pixels
    for v, e in zip(variants, bands):
        others = e.sum(axis=0) - e  # [U, J + 1] all units but one
        error[v.kind] = [_jackknife(float(e[:, j].sum() / pixels.sum()), ratio(others[:, j], rest_pixels)) for j in range(levels)]
        if v is not variants[0]:
            removed[v.kind] = [
                _jackknife(1 - float(ratio(e[:, j].sum(), first[:, j].sum())), 1 - ratio(others[:, j], rest[:, j])) for j in range(levels)
            ]
    return BandCurve(labels, error, removed)


def learning_curves(view: View, name: str = "loss", most: int = 12) -> dict[str, list[tuple[float, float]]]:
    """label -> (images, value) of the refiner's training, mean over seeds; one a trained refiner.

    Empty where no curves were synced.
    """
    out: dict[str, list[tuple[float, float]]] = {}
    seen: set[str] = set()
    for v in view.population.variants:
        key = str(v.row.get("key_refiner"))
        if v.kind == "coarse" or key in seen or len(out) >= most:
            continue
        seen.add(key)
        sums: dict[int, list[float]] = {}
        for trial in v.trials:
            part = view.population.part_of(trial).of("curves")
            try:
                rows = pq.read_table(part.path, filesystem=part.store.fs, partitioning=None).to_pylist()
            except FileNotFoundError:
                continue
            for row in rows:
                if row["stage"] == "refiner" and row["name"] == name:
                    sums.setdefault(row["images"], []).append(row["value"])
        if sums:
            trained = {a: x for a, x in v.axes.items() if x is not None and not a.startswith("sampler.")}
            label = ", ".join([v.kind, *(f"{a.rpartition('.')[2]}={x}" for a, x in trained.items())])
            out[label] = [(float(n), float(np.mean(x))) for n, x in sorted(sums.items())]
    return told_apart(out)


def told_apart(lines: Mapping[str, T]) -> dict[str, T]:
    """The same lines with names that leave out what all of them say: `kind, a=1, b=2` -> `kind, b=2`."""
    parts = {name: name.split(", ") for name in lines}
    common = set.intersection(*map(set, parts.values())) if len(lines) > 1 else set()
    return {", ".join([p for i, p in enumerate(parts[name]) if i == 0 or p not in common]): line for name, line in lines.items()}


def _values(axes: Sequence[str], variant: Variant) -> tuple[Level, ...]:
    return tuple(variant.axes[a] for a in axes)


def _steps(variant: Variant) -> float:
    return float(variant.axes["sampler.steps"] or 0)


def by_steps(view: View, metric: str, most: int = 8) -> tuple[dict[str, list[tuple[float, float, float]]], list[str]]:
    """Score against denoising steps.

    Returns:
        label -> (steps, score, standard deviation over seeds), one line for every combination of the other axes; and
        the axes that were averaged. Above `most` lines, all axes but noise schedule and widths are averaged, then
        widths too; an average has no deviation.
    """
    if "sampler.steps" not in view.population.axes:
        return {}, []
    variants = [v for v in view.population.variants if v.kind == "diffusion" and v.axes["sampler.steps"] is not None]
    others = [a for a in view.population.axes if a != "sampler.steps" and len({show(v.axes[a]) for v in variants}) > 1]
    for kept in (others, [a for a in others if a.endswith(("schedule", "width"))], [a for a in others if a.endswith("schedule")], []):
        lines = pairs(variants, partial(_values, kept))
        if len(lines) <= most:
            break
    names = short_names(view.population.axes)
    out: dict[str, list[tuple[float, float, float]]] = {}
    for values, line in lines.items():
        points = []
        for steps, alike in sorted(pairs(line, _steps).items()):
            scores = [view.scorer.seeds(v, metric) for v in alike]
            sd = float(scores[0].std(ddof=1)) if len(alike) == 1 and scores[0].size > 1 else 0.0
            points.append((steps, float(np.mean([s.mean() for s in scores])), sd))
        out[", ".join(f"{names[a]}={show(x)}" for a, x in zip(kept, values)) or "diffusion"] = points
    return out, [names[a] for a in others if a not in kept]
