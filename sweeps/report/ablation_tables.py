"""Tables of an ablation: refined against coarse, diffusion against one pass, main effects, interactions, cost,
importance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from idgbr.scores.read import METRICS
from sweeps.analysis import stats
from sweeps.analysis.contrasts import Contrast, contrast, importance, interactions, main_effects, mark, pareto
from sweeps.analysis.variants import Level, Variant, baseline_of, conditions, level_text, short_names, show
from sweeps.analysis.views import View
from sweeps.definition import Definition
from sweeps.report.backbone_tables import backbones_table
from sweeps.report.formats import Cell, Column, Table
from sweeps.report.frequency_tables import frequency_table
from sweeps.report.score_tables import TITLES, duration, effect_data, effect_text, heading, number, p_text, score_cell, title

COSTS = ("seconds_per_megapixel", "training_hours")


def _effect_columns(metric: str) -> list[Column]:
    return [
        Column("effect", f"Δ {title(metric)} [95 %]"),
        Column("p", "p (Holm)"),
        Column("detectable", "detectable", rank=1),
        Column("d_z", "d_z", rank=2),
    ]


def _effect_cells(c: Contrast | None, metric: str) -> list[Cell]:
    if c is None:
        return [Cell("–"), Cell(""), Cell(""), Cell("")]
    e = c.effect
    return [
        Cell(effect_text(c, metric), effect_data(c, metric), sort=e.estimate),
        Cell(p_text(c.p_holm), c.p_holm, sort=c.p_holm),
        Cell(number(metric, e.detectable) if math.isfinite(e.detectable) else "", e.detectable, sort=e.detectable),
        Cell(f"{e.d_z:.2f}" if math.isfinite(e.d_z) else "", e.d_z, sort=e.d_z),
    ]


def _table(
    view: View, name: str, text: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], notes: Sequence[str], metric: str
) -> Table:
    header, facts = heading(view, "see each row", metric)
    full = f"{', '.join(view.trials.studies)}: {text}"
    return Table(f"{name}-{view.name}", full, header, tuple(columns), tuple(map(tuple, rows)), tuple(notes), facts)


def family_note(contrasts: Sequence[Contrast]) -> list[str]:
    """The family of one table, and whether it has enough units."""
    known = [c for c in contrasts if math.isfinite(c.effect.p)]
    out = [f"Intervals as in the main table. Holm over the {len(known)} comparison{'s' * (len(known) != 1)} of this table; * as there."]
    if any(c.mark == "too few" for c in contrasts):
        units = min(c.effect.units for c in contrasts)
        least = stats.smallest_p(units)
        out.append(f"Too few scenes: {units} units give p = {least:.3g} at best, too much for {len(contrasts)} comparisons at 0.05.")
    return out


# ---- tables ----------------------------------------------------------------------------------------------------------


def main_effects_table(view: View, metric: str, reference: Mapping[str, Level]) -> Table | None:
    """Every level of every axis against its reference level, averaged over the other axes; None without an axis."""
    rows, contrasts = [], []
    names = short_names(view.population.axes)
    for axis, level, base, n_pairs, c in main_effects(view.scorer, view.population, metric, reference):
        contrasts.append(c)
        cells = [Cell(names[axis], axis), Cell(show(level), level), Cell(show(base), base), Cell(str(n_pairs), n_pairs, sort=n_pairs)]
        rows.append([*cells, *_effect_cells(c, metric)])
    if not rows:
        return None
    columns = [
        Column("axis", "axis", False),
        Column("level", "level", False),
        Column("reference", "against", False),
        Column("pairs", "pairs"),
    ]
    notes = [
        "Main effect: mean over all pairs of variants that differ in this axis alone; averaged over the other axes first, then scenes.",
        *family_note(contrasts),
    ]
    return _table(view, "main-effects", "main effect of every axis", [*columns, *_effect_columns(metric)], rows, notes, metric)


def interactions_table(view: View, metric: str) -> Table | None:
    """Two-way interactions as differences of differences; None where no two axes cross."""
    found = interactions(view.scorer, view.population, metric)
    if not found:
        return None
    rows = [[Cell(name), Cell(str(n), n, sort=n), *_effect_cells(c, metric)] for name, n, c in found]
    columns = [Column("interaction", "step, and where", False), Column("cells", "cells")]
    notes = [
        "Interaction: by how much the first axis's step is larger there (difference of differences).",
        *family_note([c for *_, c in found]),
    ]
    return _table(view, "interactions", "two-way interactions", [*columns, *_effect_columns(metric)], rows, notes, metric)


def refined_against_coarse(view: View, metric: str, by: Sequence[str]) -> tuple[Table | None, list[Contrast]]:
    """The paper's claim: one row a level of `by` (a backbone), all its refined variants averaged, against its own
    coarse map.
    """
    groups: dict[tuple[Level, ...], list[tuple[Variant, Variant]]] = {}
    for v in view.population.variants:
        coarse = baseline_of(v, {"kind": "coarse"}, view.population)
        if v.kind == "diffusion" and coarse is not None:
            groups.setdefault(tuple(v.axes[a] for a in by), []).append((v, coarse))
    contrasts = []
    names = short_names(view.population.axes)
    for level, found in groups.items():
        parts = [view.scorer.term(x, metric, s / len(found)) for pair in found for x, s in zip(pair, (1.0, -1.0))]
        told = [level_text(names[a], x) for a, x in zip(by, level)]
        name = ", ".join(text for text in told if text) or "all refined variants"
        contrasts.append(Contrast(name, found[0][0] if len(found) == 1 else None, found[0][1], stats.infer(parts)))
    contrasts = mark(contrasts)
    if not contrasts:
        return None, []
    rows = []
    for c, found in zip(contrasts, groups.values()):
        coarse_score = float(np.mean([view.scorer.seeds(b, metric).mean() for _, b in found]))
        refined_score = float(np.mean([view.scorer.seeds(v, metric).mean() for v, _ in found]))
        cells = [Cell(c.name), Cell(str(len(found)), len(found), sort=len(found))]
        cells += [Cell(number(metric, x), x, sort=x) for x in (coarse_score, refined_score)]
        rows.append([*cells, *_effect_cells(c, metric)])
    columns = [
        Column("level", ", ".join(names[a] for a in by) or "variants", False),
        Column("variants", "refined variants"),
        Column("coarse", f"coarse {title(metric)}"),
        Column("refined", f"refined {title(metric)}"),
    ]
    notes = [
        "Each row: the mean of all its refined variants against their own coarse map (same backbone, same folds).",
        *family_note(contrasts),
    ]
    return _table(view, "refined-coarse", "refined against coarse", [*columns, *_effect_columns(metric)], rows, notes, metric), contrasts


def diffusion_against_one_pass(view: View, metric: str) -> tuple[Table | None, list[Contrast]]:
    """Each diffusion variant against the one-pass network of the same settings."""
    if not any(v.kind == "one_pass" for v in view.population.variants):
        return None, []
    contrasts, lacking = [], 0
    for v in view.population.variants:
        if v.kind != "diffusion":
            continue
        b = baseline_of(v, {"kind": "one_pass"}, view.population)
        if b is None:
            lacking += 1
        else:
            contrasts.append(Contrast(v.label, v, b, contrast(view.scorer, metric, v, b)))
    contrasts = mark(contrasts)
    if not contrasts:
        return None, []
    rows = []
    for c in contrasts:
        sides = [x for x in (c.baseline, c.variant) if x is not None]
        cells = [Cell(c.name), *(score_cell(view, x, metric, set()) for x in sides)]
        better = stats.probability_of_improvement(view.scorer.seeds(sides[1], metric), view.scorer.seeds(sides[0], metric))
        rows.append([*cells, *_effect_cells(c, metric), Cell(f"{better:.2f}", better, sort=better)])
    columns = [
        Column("variant", "diffusion", False),
        Column("one_pass", f"one_pass {title(metric)}"),
        Column("score", f"diffusion {title(metric)}"),
    ]
    columns += [*_effect_columns(metric), Column("improvement", "P(seed better)")]
    notes = ["one_pass: the same network without noise and steps, trained with cross-entropy."]
    if lacking:
        notes.append(f"{lacking} diffusion variants have no one_pass network of the same settings and are not compared.")
    notes.append("P(seed better): share of seed pairs in which diffusion scores above one_pass, ties half.")
    notes += family_note(contrasts)
    return _table(view, "diffusion-one-pass", "diffusion against one_pass", columns, rows, notes, metric), contrasts


def costs(view: View, v: Variant) -> tuple[float, float]:
    """(seconds a megapixel of refining, device hours of training the refiner), means over the replicates; NaN where
    not recorded.

    Device hours: time on the clock times the processes that shared the training, each on its GPU (or on the CPU).
    """
    rows = [view.population.rows[t] for t in v.trials]
    whole = view.sums.classes.index(-1)
    pixels = sum(view.sums.of(v.trials)[0, :, whole, view.sums.columns.index(c)].sum() for c in ("valid", "ignored"))
    seconds = [r["seconds_refined"] for r in rows if r.get("seconds_refined") is not None]
    training = [r["seconds_refiner"] * (r.get("processes_refiner") or 1) for r in rows if r.get("seconds_refiner") is not None]
    per_megapixel = float(np.mean(seconds)) / pixels * 1e6 if len(seconds) == len(rows) and pixels else math.nan
    hours = float(np.mean(training)) / 3600 if len(training) == len(rows) else (0.0 if v.kind == "coarse" else math.nan)
    return per_megapixel, hours


@dataclass
class CostPoint:
    """Score of a variant and what it costs, by `COSTS`; and whether it lies on that cost's Pareto front."""

    variant: str
    kind: str
    score: float
    cost: dict[str, float]
    gflop: float = math.nan  # of refining a megapixel; NaN where not recorded
    is_on_front: dict[str, bool] = field(default_factory=dict)


def cost_points(view: View, metric: str) -> list[CostPoint]:
    """Score, seconds a megapixel and training hours of every variant, and whether it lies on either front."""
    points: list[CostPoint] = []
    for v in view.population.variants:
        seconds, hours = (0.0, 0.0) if v.kind == "coarse" else costs(view, v)
        score = float(view.scorer.seeds(v, metric).mean())
        gflop = v.row.get("gflop_per_megapixel")
        points.append(
            CostPoint(v.label, v.kind, score, dict(zip(COSTS, (seconds, hours), strict=True)), math.nan if gflop is None else gflop)
        )
    higher = METRICS[metric].higher_is_better
    for cost in COSTS:
        for p, front in zip(points, pareto([(p.cost[cost], p.score) for p in points], higher)):
            p.is_on_front[cost] = front
    return points


def cost_table(view: View, metric: str) -> Table:
    """Score, seconds a megapixel and training time of every variant, and the Pareto fronts."""
    points = cost_points(view, metric)
    counted = any(math.isfinite(p.gflop) for p in points)  # studies stored before did not record it
    columns = [
        Column("variant", "variant", False),
        Column("score", title(metric)),
        *([Column("gflop_per_megapixel", "GFLOP / megapixel")] if counted else []),
        Column("seconds_per_megapixel", "s / megapixel"),
        Column("front_seconds_per_megapixel", "front", False),
        Column("training_hours", "training"),
        Column("front_training_hours", "front", False),
    ]
    rows = []
    for p in points:
        cells = [Cell(p.variant), Cell(number(metric, p.score), p.score, sort=p.score)]
        if counted:
            cells.append(Cell(f"{p.gflop:.1f}" if math.isfinite(p.gflop) else "", p.gflop, sort=p.gflop))
        texts = f"{p.cost['seconds_per_megapixel']:.3f}", duration(3600 * p.cost["training_hours"])
        for cost, text in zip(COSTS, texts, strict=True):
            value, on = p.cost[cost], p.is_on_front[cost]
            cells += [Cell(text if math.isfinite(value) else "", value, sort=value), Cell("yes" if on else "", on)]
        rows.append(cells)
    notes = [
        *(["GFLOP: counted, 2 a multiply-add, overlap of tiles included, no tile left out."] if counted else []),
        "Front: no other variant is both cheaper and better (Pareto). Seconds of refining alone, on the host that made it.",
        "Training: device time of the refiner's training (time on the clock times the GPUs or processes that shared it), mean over seeds; "
        "a refiner that several variants share counts for each.",
    ]
    return _table(view, "cost", "quality against cost", columns, rows, notes, metric)


def importance_table(view: View, metric: str) -> Table | None:
    """PED-ANOVA importance of the axes over single trials; None where there are too few trials or axes to say
    anything.
    """
    variants = [v for v in view.population.variants if v.kind == "diffusion"]
    rows, values = [], []
    for v in variants:
        for value in view.scorer.seeds(v, metric):
            rows.append(v.axes)
            values.append(float(value))
    axes = [a for a in view.population.axes if len({show(v.axes[a]) for v in variants}) > 1]
    found = importance(rows, axes, values, METRICS[metric].higher_is_better)
    if not found:
        return None
    names = short_names(view.population.axes)
    cells = [[Cell(names[a], a), Cell(f"{x:.3f}", x, sort=x)] for a, x in found.items()]
    notes = [
        f"PED-ANOVA importance (Watanabe et al. 2023) for {TITLES.get(metric, metric)}, computed by Optuna on a study rebuilt from "
        f"{len(rows)} trials: which axes tell the best tenth from the rest. Not a share of variance; no interval; main effects say more."
    ]
    columns = [Column("axis", "axis", False), Column("importance", "PED-ANOVA importance")]
    return _table(view, "importance", "PED-ANOVA importance of the axes", columns, cells, notes, metric)


# ---- all of them -----------------------------------------------------------------------------------------------------


def declared(view: View) -> Definition | None:
    """`studies/<name>.json` of the first study that has one: axes, baseline, replicates; None where only the tables
    were synced.
    """
    for part in view.population.parts[:1]:
        for study in view.trials.studies:
            data = part.store.read_bytes(f"studies/{study}.json")
            if data:
                found: Definition = json.loads(data)
                return found
    return None


def reference_levels(view: View, baseline: str) -> dict[str, Level]:
    """axis -> reference level: what the study declares as its baseline, overruled by axes named in `baseline`."""
    found = declared(view)
    out = {k: _text(v) for k, v in found["baseline"].items()} if found else {}
    if baseline not in ("", "coarse", "one_pass"):
        out |= {k: v for k, v in conditions(baseline, view.population).items() if k != "kind"}
    return out


def _text(value: object) -> Level:
    """A value of JSON as the trials table has it: lists are text there."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, bool | int | float | str) else None


def by_axes(view: View, by: str) -> list[str]:
    """The axes that `by` names: one axis, or all of a stage; the backbone's and the coarse map's where it is empty."""
    from sweeps.analysis.trials import resolve

    axes = view.population.axes
    if not by:
        return [a for a in axes if a.partition(".")[0] in ("backbone", "coarse")]
    return [a for a in axes if a.partition(".")[0] == by] or [resolve(by, axes)]


def ablation_tables(view: View, metric: str, baseline: str, by: str) -> list[Table]:
    """All tables but the main one, in reading order; empty ones are left out."""
    claim, _ = refined_against_coarse(view, metric, by_axes(view, by))
    against_one_pass, _ = diffusion_against_one_pass(view, metric)
    levels = by_axes(view, by)
    tables = [
        backbones_table(view, metric, levels) if levels else None,
        claim,
        against_one_pass,
        frequency_table(view, metric),
        main_effects_table(view, metric, reference_levels(view, baseline)),
        interactions_table(view, metric),
        cost_table(view, metric),
        importance_table(view, metric),
    ]
    return [t for t in tables if t is not None]
