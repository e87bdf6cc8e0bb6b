"""Synthetic tables with known effects, in the schemas that a study writes: for tests and for benchmarks/tables.py.

K classes; every tile has K rows and one of class -1. Counts are consistent with each other (tp + fn = target pixels, kept + repaired +
damaged + still_wrong = valid, ...), errors are shared by the tiles of a scene, and each variant has its own error rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from idgbr.config import Experiment
from idgbr.scores.schema import BANDS_SCHEMA, COUNTS_SCHEMA
from idgbr.store import Store
from sweeps import tables
from sweeps.study import Axis, Study, Trial, expand

LOSS = 2.0**32  # weighted losses are whole numbers of 2^-32 px
EDGES = (1.0, 2.0, 3.0, 5.0, 8.0, 16.0, float("inf"))


@dataclass(frozen=True)
class Layout:
    """Which tiles there are: scenes x tiles a scene x classes, of tile_px pixels a side, in blocks of some tiles."""

    scenes: int = 8
    tiles: int = 6
    n_classes: int = 2
    tile_px: int = 128
    blocks: int = 2  # a scene
    split: str = "val"
    label_sets: tuple[str, ...] = ("full",)
    seed: int = 0


SECONDS: dict[str, Callable[[Experiment], float]] = {
    "data": lambda e: 1.0,
    "backbone": lambda e: 20.0,
    "coarse": lambda e: 2.0,
    "refiner": lambda e: 100.0 + e.refiner.guidance_width,
    "refined": lambda e: 0.1 + 0.4 * e.sampler.steps,
    "counts": lambda e: 0.5,
}

Rates = tuple[float, float]  # error rate of pixels, error rate at boundaries


def rates(trial: Trial) -> Rates:
    """Refinement mends boundaries and a little of the rest; more steps and a wider guidance network mend more; schedules do not matter."""
    e = trial.experiment
    if e.refiner.kind == "none":
        return 0.10, 0.45
    if e.refiner.kind == "one_pass":
        return 0.090, 0.36
    return 0.086 - 0.002 * (e.refiner.guidance_width >= 32), 0.34 - 0.01 * np.log2(e.sampler.steps) - 0.02 * (
        e.refiner.guidance_width >= 32
    )


class Tiles:
    """What all trials of a layout share: targets, difficulties of scenes, the identity columns."""

    def __init__(self, layout: Layout):
        self.layout = layout
        rng = np.random.default_rng(layout.seed)
        s, t, k = layout.scenes, layout.tiles, layout.n_classes
        self.n = s * t
        self.scene = np.repeat(np.arange(s), t)
        share = rng.dirichlet(np.full(k, 3.0), self.n)
        self.target = np.floor(share * layout.tile_px**2).astype(np.int64)  # [n, K]
        self.target[:, 0] += layout.tile_px**2 - self.target.sum(axis=1)
        self.edge = np.maximum(8, (np.sqrt(self.target) * rng.uniform(3, 6, (self.n, k)))).astype(np.int64)
        self.difficulty = np.exp(rng.normal(0, 0.35, s))[self.scene] * np.exp(rng.normal(0, 0.2, self.n))
        tile = np.tile(np.arange(t), s)
        self.names = {
            "scene": np.array([f"scene{i:03d}" for i in self.scene]),
            "raster": np.array([f"scene{i:03d}" for i in self.scene]),
            "row": (tile // 4 * layout.tile_px).astype(np.int32),
            "col": (tile % 4 * layout.tile_px).astype(np.int32),
            "block": np.array([f"{i * layout.blocks // t}_0" for i in tile]),
        }

    def identity(self, trial: str, rows_a_tile: int, label_set: str) -> dict[str, pa.Array]:
        n = self.n * rows_a_tile

        def constant(text: str) -> pa.Array:
            return pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [text]).cast(pa.string())

        out = {name: pa.array(np.repeat(values, rows_a_tile)) for name, values in self.names.items()}
        return {"trial": constant(trial), "split": constant(self.layout.split), "label_set": constant(label_set), **out}

    def counts(
        self, error: float, boundary_error: float, label_set: str, rng: np.random.Generator, scene_noise: np.ndarray
    ) -> dict[str, Any]:
        """Columns [n * (K + 1)] in tile-major order, class -1 last within a tile."""
        k, n = self.layout.n_classes, self.n
        factor = (self.difficulty * scene_noise[self.scene])[:, None] * (0.6 if label_set == "eroded" else 1.0)
        fn = rng.binomial(self.target, np.clip(error * factor, 0, 0.9))
        fp = np.zeros_like(fn)
        for c in range(k):  # what one class loses, the others gain
            others = [i for i in range(k) if i != c]
            fp[:, others] += rng.multinomial(fn[:, c], np.full(k - 1, 1 / (k - 1)))
        tp, valid = self.target - fn, self.target.sum(axis=1)
        wrong = np.clip(boundary_error * factor, 0.02, 0.95)
        union = self.edge * 4
        repaired = rng.binomial(fn + fp, 0.5)
        repaired = np.minimum(repaired, tp)
        damaged = rng.binomial(fn, 0.2)
        energy = [fn.sum(axis=1, keepdims=True) * 0 + fn + fp]
        for level in range(4):
            energy.append(rng.binomial(energy[-1], 0.45) if level == 0 else rng.binomial(np.maximum(energy[-1], 0), 0.45))
        scaled = [e * 16**j for j, e in enumerate(energy)]
        per_class: dict[str, np.ndarray] = {
            "tp": tp,
            "fp": fp,
            "fn": fn,
            "biou_intersection": rng.binomial(union, 1 - wrong),
            "biou_union": union,
            "bf_pred_pixels": self.edge,
            "bf_target_pixels": self.edge,
            "bf_pred_hits": rng.binomial(self.edge, 1 - wrong / 2),
            "bf_target_hits": rng.binomial(self.edge, 1 - wrong / 2),
            "kept": tp - repaired,
            "repaired": repaired,
            "damaged": damaged,
            "still_wrong": fn - damaged,
            "wfm_edge_target": self.edge * 4,
            "wfm_edge_pred": self.edge * 4,
            "wfm_edge_target_loss": LOSS * self.edge * 4 * wrong * rng.uniform(0.7, 1.0, wrong.shape),
            "wfm_edge_rest_loss": LOSS * self.edge * 2 * wrong * rng.uniform(0.7, 1.0, wrong.shape),
            "wfm_region_target": self.target,
            "wfm_region_pred": self.target,
            "wfm_region_target_loss": LOSS * fn * 1.1,
            "wfm_region_rest_loss": LOSS * fp * 1.2,
            **{f"t{j}": e for j, e in enumerate(scaled)},
        }
        for w in (1, 3, 5, 10):
            band = np.minimum(self.edge * 2 * w, self.target)
            lost = rng.binomial(band, np.clip(wrong / 2, 0, 1))
            per_class |= {f"trimap{w}_tp": band - lost, f"trimap{w}_fp": lost[:, ::-1], f"trimap{w}_fn": lost}
            if w == 3:
                per_class |= {"trimap_tp": band - lost, "trimap_fp": lost[:, ::-1], "trimap_fn": lost}
        whole: dict[str, np.ndarray] = {
            "valid": valid,
            "correct": tp.sum(axis=1),
            "ignored": np.zeros(n, np.int64),
            "outside": np.zeros(n, np.int64),
            "kept": (tp - repaired).sum(axis=1),
            "repaired": repaired.sum(axis=1),
            "damaged": damaged.sum(axis=1),
            "still_wrong": (fn - damaged).sum(axis=1),
            **{f"t{j}": e.sum(axis=1) for j, e in enumerate(scaled)},
            "wfm_edge_legacy_1_value": 1 - wrong[:, 0] * 0.9,
            "wfm_edge_legacy_0_value": 1 - wrong[:, 0] * 0.1,
            **{f"mba{i}_pixels": self.edge.sum(axis=1) * (i + 1) for i in range(5)},
            **{f"mba{i}_hits": rng.binomial(self.edge.sum(axis=1) * (i + 1), 1 - wrong.mean(axis=1) / 2) for i in range(5)},
        }
        out: dict[str, Any] = {"class": np.tile(np.append(np.arange(k), -1), n).astype(np.int16)}
        for name in dict.fromkeys([*per_class, *whole]):
            values = np.full((n, k + 1), np.nan)
            if name in per_class:
                values[:, :k] = per_class[name]
            if name in whole:
                values[:, k] = whole[name]
            out[name] = values.reshape(-1)
        return out


def _table(schema: pa.Schema, identity: dict[str, pa.Array], columns: dict[str, Any]) -> pa.Table:
    n = len(next(iter(identity.values())))
    arrays = []
    for f in schema:
        if f.name in identity:
            arrays.append(identity[f.name].cast(f.type))
        elif f.name in columns:
            values = columns[f.name]
            if values.dtype.kind == "f" and not pa.types.is_floating(f.type):
                lack = np.isnan(values)
                arrays.append(pa.array(np.where(lack, 0, values).astype(np.int64), mask=lack).cast(f.type))
            else:
                arrays.append(pa.array(values, from_pandas=f.name not in ("low_px", "high_px")).cast(f.type))
        else:
            arrays.append(pa.nulls(n, f.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def band_columns(tiles: Tiles, counts: dict[str, Any]) -> dict[str, Any]:
    """Bands of distance to the target's boundary: error falls with distance."""
    k, n, b = tiles.layout.n_classes, tiles.n, len(EDGES)
    rows = n * (k + 1) * b
    by_class = {c: counts[c].reshape(n, k + 1) for c in ("tp", "fp", "fn")}
    weight = np.array([0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05])
    share = {"tp": weight[::-1] / weight.sum(), "fp": weight / weight.sum(), "fn": weight / weight.sum()}
    out: dict[str, Any] = {}
    for name in ("tp", "fp", "fn"):
        v = np.nan_to_num(by_class[name])
        v[:, k] = v[:, :k].sum(axis=1)
        out[name] = np.floor(v[..., None] * share[name])
    out["valid"], out["correct"] = out["tp"] + out["fn"], out["tp"]
    out["repaired"], out["damaged"] = np.floor(out["tp"] * 0.05), np.floor(out["fn"] * 0.2)
    out["kept"], out["still_wrong"] = out["tp"] - out["repaired"], out["fn"] - out["damaged"]
    out = {name: v.reshape(rows) for name, v in out.items()}
    out["class"] = np.repeat(np.tile(np.append(np.arange(k), -1), n), b).astype(np.int16)
    out["low_px"] = np.tile((0.0, *EDGES[:-1]), n * (k + 1))
    out["high_px"] = np.tile(EDGES, n * (k + 1))
    return out


def row_of(trial: Trial, status: str = "done", error: str | None = None) -> dict[str, Any]:
    e = trial.experiment
    manifests = {j.key: {"seconds": SECONDS[j.stage](e), "host": "made-up"} for j in trial.jobs}
    return tables.trial_row(
        e, trial.jobs, manifests, trial=trial.id, role=trial.role, label=trial.label, status=status, error=error, commit="0" * 40
    )


def write_study(
    root: Path,
    study: Study,
    layout: Layout,
    *,
    rates: Callable[[Trial], Rates] = rates,
    failed: Iterable[int] = (),
    bands: bool = True,
    keep: Callable[[str], bool] = lambda column: True,
) -> list[Trial]:
    """All trials of the study as tables below root; those at the places in `failed` failed. Returns the trials."""
    tiles, store = Tiles(layout), Store(root)
    trials, failed = expand(study), set(failed)
    for i, trial in enumerate(trials):
        base = root / "tables"
        name = f"study={study.name}/{trial.id}.parquet"
        if i in failed:
            tables.write_trial(store, study.name, row_of(trial, "failed", "Traceback ...\nRuntimeError: out of memory"))
            continue
        identity = {}
        parts, band_parts = [], []
        # noise follows the keys, so that one result under two names is the same
        rng = np.random.default_rng(int(trial.jobs[-1].key[:12], 16))
        error, boundary_error = rates(trial)
        scene_noise = np.exp(rng.normal(0, 0.03, layout.scenes))
        for label_set in layout.label_sets:
            counts = tiles.counts(error, boundary_error, label_set, rng, scene_noise)
            identity = tiles.identity(trial.id, layout.n_classes + 1, label_set)
            parts.append(_table(COUNTS_SCHEMA, identity, {k: v for k, v in counts.items() if keep(k)}))
            if bands:
                identity = tiles.identity(trial.id, (layout.n_classes + 1) * len(EDGES), label_set)
                band_parts.append(_table(BANDS_SCHEMA, identity, band_columns(tiles, counts)))
        for folder, rows in (("counts", parts), ("bands", band_parts)):
            if rows:
                path = base / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.concat_tables(rows), path, compression="zstd")
        tables.write_trial(store, study.name, row_of(trial))
    return trials


def small_study(name: str = "made", replicates: int = 3, steps: tuple[int, ...] = (4, 1)) -> Study:
    return Study(
        name=name,
        recipe="synthetic",
        axes=(Axis("refiner.guidance_width", (32, 16)), Axis("sampler.steps", steps)),
        replicates=replicates,
        yardsticks=("coarse", "one_pass"),
        yardsticks_of="baseline",
    )
