"""Contrasts of variants: against a baseline, main effects, interactions; Pareto fronts; importance of the axes.

Every contrast is a sum of variants times coefficients, so that one procedure (`stats.infer`) serves them all.
S seeds, U units, K classes, C columns, B bootstrap draws.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from idgbr.scores.read import metric as metric_named
from sweeps.analysis import stats
from sweeps.analysis.unit_sums import Sums, metric_values, rows_for
from sweeps.analysis.variants import Level, Population, Variant, baseline_of, short_names, show

K = TypeVar("K")
Levels = tuple[Level, ...]

MANY_TRIALS = 300  # above, fewer bootstrap draws: the table says how many
FEWER_DRAWS = 2000


class Scorer:
    """Scores of variants, by unit, pooled, leaving a unit out, and in bootstrap draws, from one `Sums`."""

    def __init__(self, sums: Sums):
        self.sums = sums
        self.n_units = len(sums.units)
        self.draws = stats.DRAWS if len(sums.trials) <= MANY_TRIALS else FEWER_DRAWS
        self.weights = stats.unit_weights(self.n_units, self.draws) if self.n_units >= stats.BOOTSTRAP_FROM else None
        self._term = functools.cache(self._make_term)

    def term(self, variant: Variant, metric: str, coefficient: float) -> stats.Term:
        """A variant's values of a metric as a term of a contrast, with its coefficient."""
        unit, pooled, jackknife, draws = self._term(variant.trials, metric)
        return stats.Term(coefficient, unit, pooled, jackknife, draws, variant.group)

    def _make_term(self, trials: tuple[str, ...], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        counts, columns = rows_for(self.sums, self.sums.of(trials), metric)  # [S,U,K,C]
        total = counts.sum(axis=1)
        draws = None
        if self.weights is not None:
            flat = counts.reshape(len(trials), self.n_units, -1)
            draws = np.stack([metric_values((self.weights @ x).reshape(-1, *counts.shape[2:]), columns, metric) for x in flat])
        leave_one_out = metric_values(total[:, None] - counts, columns, metric)
        return metric_values(counts, columns, metric), metric_values(total, columns, metric), leave_one_out, draws

    def seeds(self, variant: Variant, metric: str) -> np.ndarray:
        """[S] the metric of all units together, one a replicate."""
        return self._term(variant.trials, metric)[1]


@dataclass(frozen=True)
class Contrast:
    """A named difference and its inference; `p_holm`: adjusted within its family, `mark`: what a table prints after
    it.
    """

    name: str
    variant: Variant | None
    baseline: Variant | None
    effect: stats.Effect
    p_holm: float = math.nan
    mark: str = ""


def contrast(scorer: Scorer, metric: str, variant: Variant, baseline: Variant) -> stats.Effect:
    """Paired difference of two variants in a metric, with its inference."""
    return stats.infer([scorer.term(variant, metric, 1.0), scorer.term(baseline, metric, -1.0)])


def against(scorer: Scorer, population: Population, metric: str, wanted: Mapping[str, Level]) -> list[Contrast | None]:
    """Every variant against its own baseline; None for the baselines and for variants that have none.

    Marked as one family.
    """
    out: list[Contrast | None] = []
    candidates = [v for v in population.variants if v.matches(wanted)]
    for v in population.variants:
        b = baseline_of(v, wanted, population, candidates)
        out.append(Contrast(v.label, v, b, contrast(scorer, metric, v, b)) if b is not None else None)
    marked = iter(mark([c for c in out if c is not None]))
    return [next(marked) if c is not None else None for c in out]


def mark(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Holm over the family, and what to print: `*` (adjusted p below 5 % and the interval clear of zero), `too few
    scenes`, or nothing.
    """
    adjusted = stats.holm([c.effect.p for c in contrasts])
    family = int(np.isfinite(adjusted).sum())
    out = []
    for c, p in zip(contrasts, adjusted):
        e = c.effect
        text = ""
        if e.units == 0:
            text = "undefined"
        elif stats.too_few(e.units, family):
            text = "too few"
        elif p < 1 - stats.LEVEL and (e.low > 0 or e.high < 0):
            text = "*"
        out.append(Contrast(c.name, c.variant, c.baseline, e, float(p), text))
    return out


def best_and_ties(scorer: Scorer, population: Population, metric: str) -> set[str]:
    """Labels of the best variant and of all that do not differ from it significantly.

    Empty where there are too few units for any test to be significant: every variant would be tied with the best.
    """
    higher = metric_named(metric).higher_is_better
    scores = {v.label: float(np.mean(scorer.seeds(v, metric))) for v in population.variants}
    known = {k: s for k, s in scores.items() if math.isfinite(s)}
    if not known:
        return set()
    top = (max if higher else min)(known, key=lambda k: known[k])
    best = next(v for v in population.variants if v.label == top)
    others = [v for v in population.variants if v.label in known and v is not best]
    marked = mark([Contrast(v.label, v, best, contrast(scorer, metric, v, best)) for v in others])
    if marked and all(c.mark in ("too few", "undefined") for c in marked):
        return set()
    return {top} | {c.name for c in marked if c.mark != "*"}


# ---- axes ------------------------------------------------------------------------------------------------------------


def levels(population: Population, axis: str) -> list[Level]:
    """Levels of an axis in the order of the variants."""
    return list(dict.fromkeys(v.axes[axis] for v in population.variants if v.axes[axis] is not None))


def _cells(population: Population, axes: Sequence[str]) -> dict[Levels, dict[Levels, Variant]]:
    """Other axes' values -> levels of `axes` -> variant."""
    cells: dict[Levels, dict[Levels, Variant]] = {}
    for v in population.variants:
        if any(v.axes[a] is None for a in axes):
            continue
        rest = (v.kind, *(v.axes[a] for a in population.axes if a not in axes))
        cells.setdefault(rest, {})[tuple(v.axes[a] for a in axes)] = v
    return cells


def main_effects(
    scorer: Scorer, population: Population, metric: str, reference: Mapping[str, Level]
) -> list[tuple[str, Level, Level, int, Contrast]]:
    """For every axis and level: against the reference level, averaged over the other axes where both levels are there.

    Args:
        reference: axis -> level; the first level where it is not named.

    Returns:
        (axis, level, reference level, number of pairs averaged, contrast), all marked as one family.
    """
    out: list[tuple[str, Level, Level, int, Contrast]] = []
    names = short_names(population.axes)
    for axis in population.axes:
        all_levels = levels(population, axis)
        base = next((x for x in all_levels if show(x) == show(reference.get(axis))), all_levels[0])
        cells = _cells(population, [axis])
        for level in all_levels:
            pairs = [(c[(level,)], c[(base,)]) for c in cells.values() if (level,) in c and (base,) in c]
            if level == base or not pairs:
                continue
            parts = [scorer.term(v, metric, sign / len(pairs)) for pair in pairs for v, sign in zip(pair, (1.0, -1.0))]
            name = f"{names[axis]}: {show(level)} against {show(base)}"
            out.append((axis, level, base, len(pairs), Contrast(name, None, None, stats.infer(parts))))
    marked = mark([row[-1] for row in out])
    return [(*row[:-1], m) for row, m in zip(out, marked)]


def interactions(scorer: Scorer, population: Population, metric: str) -> list[tuple[str, int, Contrast]]:
    """Two-way interactions: by how much the step of one axis differs between two levels of another (difference of
    differences).
    """
    out: list[tuple[str, int, Contrast]] = []
    names = short_names(population.axes)
    for a, b in itertools.combinations(population.axes, 2):
        la, lb = levels(population, a), levels(population, b)
        cells = _cells(population, [a, b])
        for x, y in itertools.product(la[1:], lb[1:]):
            four = [(x, y), (la[0], y), (x, lb[0]), (la[0], lb[0])]
            whole = [c for c in cells.values() if all(f in c for f in four)]
            if not whole:
                continue
            parts = [scorer.term(c[f], metric, s / len(whole)) for c in whole for f, s in zip(four, (1.0, -1.0, -1.0, 1.0))]
            name = f"{names[a]} {show(la[0])} to {show(x)}, at {names[b]} {show(y)} rather than {show(lb[0])}"
            out.append((name, len(whole), Contrast(name, None, None, stats.infer(parts))))
    marked = mark([row[-1] for row in out])
    return [(*row[:-1], m) for row, m in zip(out, marked)]


# ---- cost ------------------------------------------------------------------------------------------------------------


def pareto(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[bool]:
    """Which (cost, score) points no other one beats: not dearer, not worse, and better in one of the two.

    NaN is never on the front.
    """
    sign = 1.0 if higher_is_better else -1.0
    out = []
    for cost, value in points:
        if not (math.isfinite(cost) and math.isfinite(value)):
            out.append(False)
            continue
        out.append(
            not any(
                c <= cost and sign * s >= sign * value and (c < cost or sign * s > sign * value)
                for c, s in points
                if math.isfinite(c) and math.isfinite(s)
            )
        )
    return out


def importance(
    rows: Sequence[Mapping[str, Level]], axes: Sequence[str], values: Sequence[float], higher_is_better: bool
) -> dict[str, float]:
    """PED-ANOVA importance (Watanabe et al., IJCAI 2023, arXiv 2304.10255) by Optuna, on a study rebuilt from the rows.

    It measures which axes separate the best tenth of the trials from the rest. It is not a share of variance and has
    no interval. Empty with fewer than two axes or ten trials.
    """
    import optuna

    known = [(r, v) for r, v in zip(rows, values) if math.isfinite(v) and all(r.get(a) is not None for a in axes)]
    if len(axes) < 2 or len(known) < 10:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if higher_is_better else "minimize")
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    columns: dict[str, list[float] | list[str]] = {}
    for a in axes:
        numbers = [float(x) for x in (r[a] for r, _ in known) if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(numbers) == len(known) and min(numbers) < max(numbers):
            columns[a], distributions[a] = numbers, optuna.distributions.FloatDistribution(min(numbers), max(numbers))
        else:
            texts = [show(r[a]) for r, _ in known]
            columns[a], distributions[a] = texts, optuna.distributions.CategoricalDistribution(sorted(set(texts)))
    for i, (_, v) in enumerate(known):
        params = {a: column[i] for a, column in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=float(v)))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = {name: round(value, 9) for name, value in optuna.importance.get_param_importances(study, evaluator=evaluator).items()}
    # axes that vary together are equal but for the last digit, which differs from run to run
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def pairs(variants: Sequence[Variant], key: Callable[[Variant], K]) -> dict[K, list[Variant]]:
    """Variants by a key, in their order."""
    out: dict[K, list[Variant]] = {}
    for v in variants:
        out.setdefault(key(v), []).append(v)
    return out
