"""The main table: every variant's scores, and its effect against its own baseline with interval, p and smallest
detectable effect.
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Sequence

from idgbr.scores.read import METRICS
from sweeps.analysis import stats
from sweeps.analysis.contrasts import Contrast, against, best_and_ties
from sweeps.analysis.request import Comparison
from sweeps.analysis.variants import Variant, conditions, short_names, show
from sweeps.analysis.views import View
from sweeps.report.formats import Cell, Column, Table

TITLES = {
    "miou": "mIoU",
    "f1": "mF1",
    "precision": "precision",
    "recall": "recall",
    "oa": "OA",
    "kappa": "kappa",
    "boundary_iou": "boundary IoU",
    "boundary_f": "boundary F",
    "trimap_iou": "trimap IoU",
    "wfm_edge": "WFm edge",
    "wfm_region": "WFm region",
    "wfm_edge_legacy": "WF(3px) legacy",
    "wfm_region_legacy": "WFm region legacy",
    "mba": "mBA",
    "low_band_error": "low-frequency error",
    "high_band_error": "high-frequency error",
    "net_gain": "net gain",
    "repaired_share": "repaired",
    "damaged_share": "damaged",
    "hd95": "HD95",
    "hd95_directed": "HD95 directed",
    "assd": "ASSD",
    "boundary_iou_1px": "boundary IoU 1 px",
    "boundary_iou_2px": "boundary IoU 2 px",
    "boundary_iou_4px": "boundary IoU 4 px",
    "object_f1": "object F1",
    "brier": "Brier",
    "brier_near": "Brier near",
    "ece": "ECE",
    "ece_near": "ECE near",
    "error_auroc": "error AUROC",
    "error_auroc_near": "error AUROC near",
    "error_auroc_votes": "error AUROC votes",
    "aurc": "AURC",
    "aurc_near": "AURC near",
    "energy_iou": "energy score IoU",
    "energy_boundary": "energy score boundary",
    "energy_iou_levels": "energy score IoU, levels",
    "energy_boundary_levels": "energy score boundary, levels",
}
COUNTED = ("parts_error", "holes_error")  # numbers of things
IN_PX = ("hd95", "hd95_directed", "assd")
MANY_VARIANTS = 200


def title(metric: str) -> str:
    """Name with an arrow where lower is better, and the unit where it is not per cent."""
    text = TITLES.get(metric, metric.replace("_", " "))
    return text + (" (px)" if metric in IN_PX else "") + ("" if METRICS[metric].higher_is_better else " ↓")


def scaled(metric: str, value: float) -> float:
    """Per cent, px where the metric is a distance, or a number of things."""
    return value if metric in (*IN_PX, *COUNTED) else 100 * value


def number(metric: str, value: float, sign: bool = False) -> str:
    """A score in per cent (a distance in px) with two decimals; `undefined` where it is NaN."""
    if not math.isfinite(value):
        return "undefined"
    text = f"{scaled(metric, value):{'+' if sign else ''}.2f}"
    return text.replace("-0.00", "0.00") if float(text) == 0 else text


def p_text(p: float) -> str:
    """A p value with three decimals; empty where there is none."""
    return "" if not math.isfinite(p) else (f"{p:.3f}" if p >= 0.001 else "<0.001")


def duration(seconds: float) -> str:
    """`0.42 s`, `3.1 min`, `12.0 h`: three digits or so, whatever was measured."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"


def effect_data(c: Contrast | None, metric: str) -> dict[str, object] | None:
    """The numbers behind `effect_text`, for JSON and CSV; None without a contrast."""
    if c is None:
        return None
    e = c.effect
    return {
        "estimate": e.estimate,
        "low": e.low,
        "high": e.high,
        "se": e.se,
        "p": e.p,
        "p_holm": c.p_holm,
        "mark": c.mark,
        "units": e.units,
        "units_dropped": e.units_dropped,
        "seeds": list(e.seeds),
        "seed_sd": e.seed_sd,
        "method": e.method,
        "pooled": e.pooled,
        "d_z": e.d_z,
        "rank_biserial": e.rank_biserial,
        "detectable": e.detectable,
        "smallest_p": e.smallest_p,
        "p_is_exact": e.p_is_exact,
        "metric": metric,
        "baseline": c.baseline.label if c.baseline else None,
    }


def effect_text(c: Contrast | None, metric: str, with_mark: bool = True) -> str:
    """Estimate, 95 % interval and mark of significance, as a table prints them."""
    if c is None:
        return "–"
    e = c.effect
    if e.units == 0:
        return "undefined"
    if e.method == "none":
        return f"{number(metric, e.estimate, True)} (one unit: no interval)"
    mark = {"*": " *", "too few": " (too few scenes)"}.get(c.mark, "") if with_mark else ""
    return f"{number(metric, e.estimate, True)} [{number(metric, e.low, True)}, {number(metric, e.high, True)}]{mark}"


def score_cell(view: View, variant: Variant, metric: str, best: set[str]) -> Cell:
    """Mean and standard deviation over seeds; bold for labels in `best`."""
    values = view.scorer.seeds(variant, metric)
    mean = float(values.mean())
    sd = float(values.std(ddof=1)) if values.size > 1 else math.nan
    text = number(metric, mean) + (f" ± {scaled(metric, sd):.2f}" if math.isfinite(sd) else "")
    data = {"value": mean, "seed_sd": sd, "seeds": values.tolist(), "best_or_tied": variant.label in best}
    return Cell(text, data, bold=variant.label in best and math.isfinite(mean), sort=mean)


def score_table(view: View, comparison: Comparison, name: str = "scores") -> Table:
    """One row a variant: its scores, and its effect against the baseline (`variants.conditions`).

    Raises:
        BadRequest: the baseline is not in the study, or no such metric.
    """
    population, primary, baseline, metrics = view.population, comparison.metric, comparison.baseline, comparison.shown
    wanted = conditions(baseline, population)
    names = short_names(population.axes)
    columns = [Column("map", "map", False), *(Column(a, names[a], False) for a in population.axes), Column("seeds", "seeds")]
    effects = {m: against(view.scorer, population, m, wanted) for m in metrics}
    many = len(population.variants) > MANY_VARIANTS  # every tie is a test: in so long a table only the primary metric's are made out
    best = {m: best_and_ties(view.scorer, population, m) if m == primary or not many else set() for m in metrics}
    for m in metrics:
        aside = 0 if m == primary else 1
        columns += [Column(m, title(m), rank=aside), Column(f"{m}_effect", f"Δ {title(m)} [95 %]", rank=3 * aside)]
        if m == primary:
            columns += [Column(f"{m}_p", "p (Holm)", rank=1), Column(f"{m}_detectable", "detectable", rank=2)]
    rows = []
    for i, v in enumerate(population.variants):
        cells = [Cell(v.kind), *(Cell("" if v.axes[a] is None else show(v.axes[a]), v.axes[a]) for a in population.axes)]
        cells.append(Cell(str(len(v.seeds)), list(v.seeds), sort=len(v.seeds)))
        for m in metrics:
            c = effects[m][i]
            cells.append(score_cell(view, v, m, best[m]))
            cells.append(Cell(effect_text(c, m, m == primary), effect_data(c, m), sort=c.effect.estimate if c else None))
            if m == primary:
                cells.append(Cell(p_text(c.p_holm) if c else "", c.p_holm if c else None, sort=c.p_holm if c else None))
                found = c.effect.detectable if c else math.nan
                cells.append(Cell(number(m, found) if math.isfinite(found) else "", found if c else None, sort=found if c else None))
        rows.append(tuple(cells))
    compared = [c for c in effects[primary] if c is not None]
    header, facts = heading(view, baseline, primary)
    study = ", ".join(view.trials.studies)
    table_title = f"{study}: scores and effects against {baseline}"
    return Table(name, table_title, header, tuple(columns), tuple(rows), notes(view, compared, primary, baseline), facts)


def heading(view: View, baseline: str, primary: str) -> tuple[tuple[tuple[str, str], ...], dict[str, object]]:
    """What every table names: label set, split, scenes, seeds, versions; for people and for machines."""
    s, frame = view.sums, view.population.frame
    seeds = sorted({seed for v in view.population.variants for seed in v.seeds})
    unit = (
        f"{len(s.units)} scenes"
        if s.unit_kind == "scene"
        else f"{len(s.units)} ground blocks of {_block(view)} in {s.scenes} scene{'s' * (s.scenes > 1)}"
    )
    sets = collections.Counter(frame["versions"].to_list())
    commits = sorted({c for c in frame["git_commit"].to_list() if c})
    shown = ("idgbr", "torch", "diffusers", "timm")
    versions = [json.loads(text or "{}") for text in sets]
    text = "; ".join(", ".join(f"{k} {v[k]}" for k in shown if v.get(k)) for v in versions[:3]) + (
        f"; {len(sets)} sets" if len(sets) > 3 else ""
    )
    header = (
        ("label set", view.label_set),
        ("split", view.split),
        ("data", frame["key_data"][0][:12]),
        ("unit of inference", unit),
        ("tiles", f"{int(s.tiles.sum())}, paired"),
        ("classes", str(sum(c >= 0 for c in s.classes))),
        ("seeds", ", ".join(map(str, seeds))),
        ("trials", str(frame.height)),
        ("baseline", baseline),
        ("primary metric", TITLES.get(primary, primary)),
        ("versions", text + (f"; commit {', '.join(c[:10] + c[40:] for c in commits[:3])}" if commits else "")),
    )
    facts = {
        "studies": list(view.trials.studies),
        "label_set": view.label_set,
        "split": view.split,
        "key_data": frame["key_data"][0],
        "unit": s.unit_kind,
        "units": len(s.units),
        "scenes": s.scenes,
        "tiles": int(s.tiles.sum()),
        "seeds": seeds,
        "trials": frame.height,
        "duplicates": view.trials.duplicates,
        "baseline": baseline,
        "primary": primary,
        "versions": versions,
        "commits": commits,
        "level": stats.LEVEL,
        "draws": view.scorer.draws,
    }
    return header, facts


def _block(view: View) -> str:
    found = view.population.frame["data.block_m"].unique().to_list()
    return " or ".join(f"{b:g} m" for b in sorted(found))


def notes(view: View, contrasts: Sequence[Contrast], primary: str, baseline: str) -> tuple[str, ...]:
    """Notes below a table: the method in short, and limits of the numbers."""
    s = view.sums
    what = {"scene": "scene", "block": "ground block"}[s.unit_kind]
    methods = {c.effect.method for c in contrasts}
    out = [
        f"Scores in per cent{' (distances in px)' if primary in IN_PX else ''}, counts pooled over all tiles; "
        "mean ± standard deviation over replicate seeds."
    ]
    if "t" in methods:
        out.append(
            f"Δ against {baseline}: mean over {what}s of the paired difference in points, seeds averaged first; Student t interval "
            f"(fewer than {stats.BOOTSTRAP_FROM} {what}s), replicate seeds as a second level."
        )
    if "bootstrap" in methods:
        out.append(
            f"Δ against {baseline}: difference of pooled scores in points; paired cluster bootstrap, {what}s and seeds resampled, "
            f"counts pooled again in each of {view.scorer.draws} draws; expanded percentile interval."
        )
    if s.unit_kind == "block":
        out.append(
            f"The split has {s.scenes} scene{'s' * (s.scenes > 1)}, fewer than six: ground blocks stand in for scenes. Blocks of one "
            "scene are not independent; the intervals speak of this place, not of others."
        )
    if contrasts:
        out += _notes_on_p(contrasts, primary, what)
    else:
        out.append(f"No variant has a baseline {baseline!r} of its own to be compared with.")
    where = "" if len(view.population.variants) <= MANY_VARIANTS else f", {TITLES.get(primary, primary)} only"
    units, others = len(s.units), len(view.population.variants) - 1
    if others and stats.too_few(units, others):
        out.append(f"Nothing is bold: {units} {what}s are too few for any test to tell the best from the {others} others.")
    else:
        out.append(f"Bold: best, and all that the test cannot tell from it (paired with the best, Holm{where}).")
    out.append("Detectable: smallest true difference that this many units would find with 80 % power.")
    return (*out, *view.trials.notes, *view.population.notes, *s.notes)


def _notes_on_p(contrasts: Sequence[Contrast], primary: str, what: str) -> list[str]:
    family = sum(math.isfinite(c.effect.p) for c in contrasts)
    kind = "exact" if all(c.effect.p_is_exact for c in contrasts) else f"random ({stats.FLIPS} draws)"
    out = [
        f"p: {kind} sign-flip test over {what}s, Holm over the {family} comparison{'s' * (family != 1)} of "
        f"{TITLES.get(primary, primary)} here; "
        "* adjusted p below 0.05 and interval clear of zero. Other metrics are descriptive."
    ]
    if any(c.mark == "too few" for c in contrasts):
        units = min(c.effect.units for c in contrasts)
        out.append(
            f"Too few scenes: with {units} {what}s the smallest possible p is {stats.smallest_p(units):.3g}; times {family} comparisons, "
            "no result could be below 0.05."
        )
    dropped = sum(c.effect.units_dropped > 0 for c in contrasts)
    if dropped:
        out.append(f"In {dropped} comparisons some {what}s have no defined value and were left out of the interval.")
    if any(len(c.variant.seeds) < 2 for c in contrasts if c.variant is not None and c.variant.kind != "coarse"):
        out.append("Variants with one seed: their intervals speak of that training only.")
    return out
