"""Intervals and tests for ablation tables: numpy and scipy only, no table, no metric, no torch.

The unit of inference is the scene (or ground block), never the tile: tiles of one scene err together, so that a tile
bootstrap covers 70 % where it promises 95 %. Shapes: U units, S replicate seeds, B bootstrap draws.

| units      | interval                                                                                                      |
|------------|---------------------------------------------------------------------------------------------------------------|
| 1          | none                                                                                                          |
| 2 to 19    | Student t on the units' paired differences; replicate seeds add their own variance (Satterthwaite's freedom)  |
| 20 and up  | paired cluster bootstrap: units drawn, counts pooled again in every draw, seeds drawn as a second level       |

Percentile intervals of the bootstrap are a little short (93 % at 30 scenes), so the quantiles are widened as t over
normal: the "expanded percentile" of Hesterberg, The American Statistician 69(4), 2015.
`bootstrap_interval(expand=False)` is the plain one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats as ss

FloatArray = npt.NDArray[np.float64]

BOOTSTRAP_FROM = 20  # units
DRAWS = 10_000
LEVEL = 0.95
EXACT_UP_TO = 30  # units: 2 x 2^15 half sums, sorted, are exact and cheap
FLIPS = 99_999  # Monte Carlo sign flips above that


@dataclass(frozen=True)
class Interval:
    """A point, its interval, its standard error, and the degrees of freedom (inf for a bootstrap)."""

    estimate: float
    low: float
    high: float
    se: float
    df: float


@dataclass(frozen=True)
class Term:
    """One side of a contrast: a variant, times its coefficient.

    Attributes:
        coefficient: +1 for the variant, -1 for the baseline, fractions for averages over other axes.
        unit: [S, U] the metric in every unit, NaN where it is undefined.
        pooled: [S] the metric of all units' counts together.
        jackknife: [S, U] the metric of all units' counts but one's.
        draws: [S, B] the metric of resampled units' counts, or None below `BOOTSTRAP_FROM` units.
        group: terms of one group share what was drawn from the replicate seed (a sampler axis shares the trained
            refiner), so their seeds are paired; different groups have independent seeds.
    """

    coefficient: float
    unit: FloatArray
    pooled: FloatArray
    jackknife: FloatArray
    draws: FloatArray | None
    group: int


@dataclass(frozen=True)
class Effect:
    """Inference about one contrast. Differences in the metric's own unit; NaN where undefined."""

    estimate: float
    low: float
    high: float
    se: float
    df: float
    p: float
    p_is_exact: bool
    smallest_p: float  # 2^(1-U): no set of U units can give less
    units: int
    units_dropped: int  # undefined on one side at least
    seeds: tuple[int, ...]  # seeds of each term
    seed_sd: float  # between replicate seeds, of the contrast; NaN with one seed
    method: str  # "t", "bootstrap" or "none"
    pooled: float  # difference of the metrics of all counts together
    d_z: float
    rank_biserial: float
    detectable: float  # smallest true effect found with 80 % power at this level


# ---- procedures ------------------------------------------------------------------------------------------------------


def t_interval(differences: npt.ArrayLike, level: float = LEVEL) -> Interval:
    """Student t interval of the mean of [U] paired differences, one a unit."""
    d = np.asarray(differences, np.float64)
    n = d.size
    mean = float(d.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, math.nan, 0.0)
    se = float(d.std(ddof=1) / math.sqrt(n))
    half = float(ss.t.ppf(0.5 + level / 2, n - 1)) * se
    return Interval(mean, mean - half, mean + half, se, n - 1.0)


def two_level_interval(unit_seed: Sequence[FloatArray], level: float = LEVEL) -> Interval:
    """t interval over units and replicate seeds, for a sum of independent groups of crossed [S_g, U] values.

    Model: value[s, u] = mean + unit_u + seed_s + rest. The variance of the grand mean is s_U^2/U (units, with rest/SU
    in it) plus, for every group with two seeds or more, s_S^2/S less the rest/SU already counted, not below zero.
    Degrees of freedom: Satterthwaite, Biometrics Bulletin 2, 1946. With one seed, the interval holds for that seed
    only.
    """
    total = np.sum([v.mean(axis=0) for v in unit_seed], axis=0)  # [U]
    plain = t_interval(total, level)
    n = total.size
    if n < 2:
        return plain
    variances, freedoms = [plain.se**2], [n - 1.0]
    for v in unit_seed:
        s = v.shape[0]
        if s < 2:
            continue
        rest = v - v.mean(axis=0, keepdims=True) - v.mean(axis=1, keepdims=True) + v.mean()
        rest_variance = float((rest**2).sum()) / ((s - 1) * (n - 1))
        seeds = float(v.mean(axis=1).var(ddof=1)) / s - rest_variance / (s * n)
        if seeds > 0:
            variances.append(seeds)
            freedoms.append(s - 1.0)
    variance = sum(variances)
    if variance == 0:
        return plain
    df = variance**2 / sum(v**2 / f for v, f in zip(variances, freedoms))
    se = math.sqrt(variance)
    half = float(ss.t.ppf(0.5 + level / 2, df)) * se
    return Interval(plain.estimate, plain.estimate - half, plain.estimate + half, se, df)


def unit_weights(n_units: int, draws: int = DRAWS, seed: int = 0) -> FloatArray:
    """[B, U] how often each unit is drawn; one set of draws serves every contrast of a table (common random numbers)."""
    rng = np.random.default_rng([seed, n_units])
    return rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=draws).astype(np.float64)


@functools.lru_cache(maxsize=64)
def seed_weights(n_seeds: int, draws: int, group: int, seed: int = 0) -> FloatArray:
    """[B, S] weights of resampled replicate seeds, each row sums to 1.

    S-1 of S are drawn: this makes the bootstrap variance s^2/S without bias, where S draws lose the factor (S-1)/S, a
    third for three seeds (McCarthy and Snowden, Vital and Health Statistics 2-95, 1985; Rao and Wu, JASA 83, 1988).
    """
    if n_seeds < 2:
        return np.ones((draws, max(n_seeds, 1)))
    rng = np.random.default_rng([seed, 7919, group, n_seeds])
    counts = rng.multinomial(n_seeds - 1, np.full(n_seeds, 1 / n_seeds), size=draws)
    return np.asarray(counts / (n_seeds - 1), np.float64)


def bootstrap_interval(draws: FloatArray, estimate: float, n_units: int, level: float = LEVEL, expand: bool = True) -> Interval:
    """Percentile interval of [B] bootstrap statistics; `expand` widens the quantiles for few units (Hesterberg 2015)."""
    draws = draws[np.isfinite(draws)]
    if draws.size == 0:
        return Interval(estimate, math.nan, math.nan, math.nan, math.inf)
    tail = (1 - level) / 2
    if expand:
        tail = float(ss.norm.cdf(math.sqrt(n_units / (n_units - 1)) * ss.t.ppf(tail, n_units - 1)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high), float(draws.std(ddof=1)), math.inf)


def sign_flip_p(differences: npt.ArrayLike, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p of the sum of [U] differences when every sign may be turned; (p, whether it is exact).

    All 2^U signs are counted up to 30 units by sorting the sums of the two halves; above that 99,999 random flips.
    """
    d = np.asarray(differences, np.float64)
    d = d[d != 0]  # turning a zero changes nothing
    if d.size == 0:
        return 1.0, True
    observed = abs(float(d.sum()))
    slack = 1e-12 * float(np.abs(d).sum())  # sums of the same numbers in another order are the same sum
    if d.size > EXACT_UP_TO:
        hits = int((np.abs(_random_signs(d.size, seed) @ d) >= observed - slack).sum())
        return (hits + 1) / (FLIPS + 1), False
    if observed <= slack:
        return 1.0, True
    left, right = _signed_sums(d[: d.size // 2]), np.sort(_signed_sums(d[d.size // 2 :]))
    above = right.size - np.searchsorted(right, observed - slack - left, side="left")
    below = np.searchsorted(right, -observed + slack - left, side="right")
    return min(1.0, float(above.sum() + below.sum()) / float(left.size * right.size)), True


@functools.lru_cache(maxsize=4)
def _random_signs(n_units: int, seed: int) -> FloatArray:
    """[FLIPS, U] of -1 and 1, the same for every contrast of a table."""
    signs = np.random.default_rng([seed, n_units]).integers(0, 2, (FLIPS, n_units))
    return np.asarray(signs * 2.0 - 1.0, np.float64)


def _signed_sums(d: FloatArray) -> FloatArray:
    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate([sums + x, sums - x])
    return sums


def smallest_p(n_units: int) -> float:
    """The least two-sided p a sign-flip test of U units can give."""
    return min(1.0, 2.0 ** (1 - n_units)) if n_units > 0 else 1.0


def holm(p_values: npt.ArrayLike) -> FloatArray:
    """Holm's adjusted p (Scandinavian Journal of Statistics 6, 1979); NaN stay NaN and do not count in the family."""
    p = np.asarray(p_values, np.float64)
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * (order.size - np.arange(order.size))
    out[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if order.size else steps
    return out


def too_few(n_units: int, family: int, alpha: float = 1 - LEVEL) -> bool:
    """Whether no result whatever could be called significant: the smallest p, times the family, is not below alpha."""
    return smallest_p(n_units) * max(1, family) >= alpha


def d_z(differences: npt.ArrayLike) -> float:
    """Cohen's d of paired differences: mean over standard deviation."""
    d = np.asarray(differences, np.float64)
    sd = float(d.std(ddof=1)) if d.size > 1 else math.nan
    return float(d.mean()) / sd if sd > 0 else math.nan


def rank_biserial(differences: npt.ArrayLike) -> float:
    """Matched rank-biserial correlation: (ranks of gains - ranks of losses) / all ranks, zeros left out."""
    d = np.asarray(differences, np.float64)
    d = d[d != 0]
    if d.size == 0:
        return 0.0
    ranks = ss.rankdata(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum())


def probability_of_improvement(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """P(a seed of A scores above a seed of B), ties half (Agarwal et al., NeurIPS 2021, arXiv 2108.13264)."""
    x, y = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None, :]
    return float(((x > y) + 0.5 * (x == y)).mean())


@functools.lru_cache(maxsize=4096)
def detectable_ratio(df: float, alpha: float = 1 - LEVEL, power: float = 0.8) -> float:
    """Smallest true effect, in standard errors, that a two-sided t test finds with this power (noncentral t, solved)."""
    from scipy.optimize import brentq

    if not math.isfinite(df):
        return float(ss.norm.ppf(1 - alpha / 2) + ss.norm.ppf(power))
    critical = float(ss.t.ppf(1 - alpha / 2, df))
    return float(brentq(lambda x: ss.nct.sf(critical, df, x) - power, 0.0, critical * 20 + 20, xtol=1e-6))


def wilcoxon_p(differences: npt.ArrayLike) -> float:
    """Two-sided exact p of the Wilcoxon signed-rank test (zeros left out), with ties too: a robust companion of the sign-flip p.

    Under the null every sign of every rank is equally likely. Tied |differences| share their mean rank, a multiple of 1/2, so the
    distribution of the sum of the positive ranks is built rank by rank, without a table of untied ranks or an approximation.
    """
    d = np.asarray(differences, np.float64)
    d = d[d != 0]
    if not d.size:
        return 1.0
    doubled = np.rint(2 * ss.rankdata(np.abs(d))).astype(int)
    total = int(doubled.sum())
    chance = np.zeros(total + 1)  # chance[s]: probability that the doubled positive ranks sum to s
    chance[0] = 1
    for rank in doubled.tolist():
        chance[rank:] = (chance[rank:] + chance[:-rank]) / 2
        chance[:rank] /= 2
    away = abs(2 * np.arange(total + 1) - total) >= abs(2 * int(doubled[d > 0].sum()) - total)
    return min(1.0, float(chance[away].sum()))


# ---- a contrast, whole -----------------------------------------------------------------------------------------------


def infer(terms: Sequence[Term], *, level: float = LEVEL, seed: int = 0) -> Effect:
    """Estimate, interval, p and effect sizes of a linear contrast of variants (see the table at the top of the file)."""
    unit_values = [p.coefficient * p.unit for p in terms]
    per_unit = np.sum([v.mean(axis=0) for v in unit_values], axis=0)  # [U]
    known = np.isfinite(per_unit)
    n = int(known.sum())
    seeds = tuple(p.unit.shape[0] for p in terms)
    pooled = float(sum(p.coefficient * p.pooled.mean() for p in terms))
    groups = _seed_groups(terms)
    d = per_unit[known]
    if n < 2:
        estimate = float(d[0]) if n == 1 else math.nan
        return Effect(
            estimate,
            math.nan,
            math.nan,
            math.nan,
            0.0,
            math.nan,
            True,
            smallest_p(n),
            n,
            per_unit.size - n,
            seeds,
            _seed_sd(groups),
            "none",
            pooled,
            math.nan,
            rank_biserial(d),
            math.nan,
        )
    if n >= BOOTSTRAP_FROM and all(p.draws is not None for p in terms):
        statistic = np.zeros(terms[0].draws.shape[1])  # type: ignore[union-attr]
        for index, group in enumerate(groups):
            weights = seed_weights(group[0].unit.shape[0], statistic.size, index, seed)
            for p in group:
                statistic += p.coefficient * (weights * np.asarray(p.draws).T).sum(axis=1)
        interval = bootstrap_interval(statistic, pooled, n, level)
        # leave-one-out pseudo-values: each unit's share in the pooled difference, the "scene sums" of a ratio metric
        loo = np.sum([p.coefficient * p.jackknife.mean(axis=0) for p in terms], axis=0)
        share = per_unit.size * pooled - (per_unit.size - 1) * loo
        d = share[np.isfinite(share) & known]
        method, df = "bootstrap", n - 1.0
    else:
        interval = two_level_interval([np.sum([p.coefficient * p.unit[:, known] for p in g], axis=0) for g in groups], level)
        method, df = "t", interval.df
    p_value, exact = sign_flip_p(d, seed)
    detectable = detectable_ratio(round(df, 2), 1 - level) * interval.se if interval.se > 0 else math.nan
    return Effect(
        interval.estimate,
        interval.low,
        interval.high,
        interval.se,
        df,
        p_value,
        exact,
        smallest_p(n),
        n,
        per_unit.size - n,
        seeds,
        _seed_sd(groups),
        method,
        pooled,
        d_z(per_unit[known]),
        rank_biserial(per_unit[known]),
        detectable,
    )


def _seed_groups(terms: Sequence[Term]) -> list[list[Term]]:
    """Terms whose seeds are paired, together; a group whose terms lack some seeds falls apart into independent ones."""
    groups: list[list[Term]] = []
    for g in sorted({p.group for p in terms}):
        members = [p for p in terms if p.group == g]
        paired = len({p.unit.shape[0] for p in members}) == 1
        groups += [members] if paired else [[p] for p in members]
    return groups


def _seed_sd(groups: Sequence[Sequence[Term]]) -> float:
    """Standard deviation between seeds of the pooled contrast: paired in a group, independent between groups."""
    sums = [np.sum([p.coefficient * p.pooled for p in group], axis=0) for group in groups]
    several = [s for s in sums if s.size >= 2]
    return math.sqrt(sum(float(s.var(ddof=1)) for s in several)) if several else math.nan
