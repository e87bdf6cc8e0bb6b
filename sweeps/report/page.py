"""One self-contained HTML page: headline, tables, figures, tiles, cost, failures, versions and keys.

No request leaves it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from idgbr.errors import IdgbrError, Missing
from idgbr.labels import ClassTable
from idgbr.scores.read import METRICS
from idgbr.scores.schema import ENERGIES, LEDGER
from idgbr.stages import STAGES
from sweeps.analysis import breakdowns
from sweeps.analysis.contrasts import Contrast, against
from sweeps.analysis.request import Comparison
from sweeps.analysis.trials import Trials
from sweeps.analysis.variants import Variant, baseline_of, brief_names, conditions
from sweeps.analysis.views import View
from sweeps.report import plots
from sweeps.report.ablation_tables import (
    ablation_tables,
    by_axes,
    cost_points,
    declared,
    diffusion_against_one_pass,
    refined_against_coarse,
)
from sweeps.report.formats import Cell, Column, Table
from sweeps.report.score_tables import IN_PX, TITLES, duration, effect_text, heading, number, p_text, score_table
from sweeps.report.tile_panels import best_refined, panels_of

EXTRA_COLUMNS = ("valid", "ignored", *LEDGER, *ENERGIES)
MOST_FOREST_ROWS = 40
MOST_NAMES = 20
MOST_AXES = 4  # columns of the main table; with more axes its rows have brief names instead


@dataclass(frozen=True)
class Shown:
    """A figure of the page: inline SVG, or a PNG as data URI."""

    alt: str
    caption: str
    svg: str = ""
    src: str = ""
    wide: bool = False


def page(trials: Trials, views: Sequence[View], comparison: Comparison, tile_images: bool) -> str:
    """The whole page as one string. `views` were read with `EXTRA_COLUMNS`."""
    import jinja2

    metric, baseline = comparison.metric, comparison.baseline

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown = []
    for i, view in enumerate(views):
        header, _ = heading(view, baseline, metric)
        found = [score_table(view, comparison, name=f"scores-{view.name}"), *ablation_tables(view, metric, baseline, "")]
        figures, notes = figures_of(view, metric, baseline)
        picture, why_not = picture_of(view, metric) if tile_images else (None, "")
        shown.append(
            {
                "id": f"view{i}",
                "title": f"Split {view.split}, label set {view.label_set}"
                + (f", group {view.population.number}" if view.population.number > 1 else ""),
                "header": header,
                "picture": picture,
                "tables": [t for i, t in enumerate(found) if i == 0 or not undecided(t)],
                "undecided": [t for t in found[1:] if undecided(t)],
                "figures": figures,
                "notes": [*notes, *([why_not] if why_not else [])],
                "folded": folded_axes(view),
                "brief": {k: v for k, v in brief_names(view.population)[0].items() if k != v},
            }
        )
    plan_tables, plan_notes = planned(trials, views)
    studies = ", ".join(trials.studies)
    return environment.get_template("page.html.j2").render(
        title=f"{studies}: coarse maps refined",
        headline=[sentence for view in leading(views) for sentence in headline(view, metric)],
        sections=[
            *((v["id"], v["title"]) for v in shown),
            ("plan", "Plan and cost"),
            ("failed", "Failed trials"),
            ("keys", "Versions and keys"),
        ],
        views=shown,
        plan_tables=plan_tables,
        plan_notes=plan_notes,
        failed=failures(trials),
        key_tables=keys_tables(trials),
    )


def folded_axes(view: View) -> dict[str, Sequence[str]]:
    """Of a study with many axes: the columns that the main table shows on request only, and the brief names of its rows."""
    axes = view.population.axes
    if len(axes) <= MOST_AXES:
        return {"columns": (), "names": ()}
    brief = brief_names(view.population)[0]
    return {"columns": axes, "names": [brief[v.label] for v in view.population.variants]}


def undecided(table: Table) -> bool:
    """Whether a table holds comparisons and the test calls none of them."""
    marks = [cell.data["mark"] for row in table.rows for cell in row if isinstance(cell.data, dict) and "mark" in cell.data]
    return bool(marks) and "*" not in marks


# ---- words -----------------------------------------------------------------------------------------------------------


def leading(views: Sequence[View]) -> list[View]:
    """The views of the headline: every split of the largest population, with the full label set if there is one."""
    mine = [v for v in views if v.population is views[0].population]
    return [v for v in mine if v.label_set == "full"] or mine[:1]


def headline(view: View, metric: str) -> list[str]:
    """What came out, in one sentence with number and interval, and whether the noise is worth its steps in another."""
    name = TITLES.get(metric, metric)
    s = view.sums
    units = f"{len(s.units)} {'scenes' if s.unit_kind == 'scene' else 'ground blocks'}, split {view.split}, label set {view.label_set}"
    out = []
    claim, contrasts = refined_against_coarse(view, metric, [])
    if claim is None:
        out.append("This study holds no refined map together with its coarse map: there is nothing to compare.")
    for c in contrasts:
        n = claim.rows[0][1].data if claim else 0
        who = "the refined map" if n == 1 else f"the mean of {n} refined variants"
        out.append(f"Against the coarse map, {who} changed {name} by {words(c, metric)} ({units}).")
    found, pairs = diffusion_against_one_pass(view, metric)
    if found is not None:
        alone = sum(v.kind == "diffusion" for v in view.population.variants) - len(pairs)
        better = sum(c.mark == "*" and _improves(c, metric) for c in pairs)
        worse = sum(c.mark == "*" and not _improves(c, metric) for c in pairs)
        out.append(
            f"Diffusion against the same network in one pass: better in {better}, worse in {worse} and not to be told apart in "
            f"{len(pairs) - better - worse} of {len(pairs)} comparisons ({name}, Holm, split {view.split})."
            + (
                f" {alone} further variant{'s have' if alone > 1 else ' has'} no such network beside {'them' if alone > 1 else 'it'}."
                if alone
                else ""
            )
        )
    return out


def _improves(c: Contrast, metric: str) -> bool:
    return (c.effect.estimate > 0) == METRICS[metric].higher_is_better


def words(c: Contrast, metric: str) -> str:
    """An effect in words: estimate, interval and p, or why there is none."""
    e = c.effect
    unit = "px" if metric in IN_PX else "points"
    if e.units == 0:
        return "an amount that is not defined"
    if e.method == "none":
        return f"{number(metric, e.estimate, True)} {unit}; with a single unit there is no interval"
    text = f"{number(metric, e.estimate, True)} {unit}, 95 % interval {number(metric, e.low, True)} to {number(metric, e.high, True)}"
    if c.mark == "too few":
        return text + ", from too few scenes for any test"
    p = p_text(c.p_holm)
    return text + f", p {'< ' + p[1:] if p.startswith('<') else '= ' + p}" + ("" if c.mark == "*" else ", which chance may explain")


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures_of(view: View, metric: str, baseline: str) -> tuple[list[Shown], list[str]]:
    """Every figure that the study has data for, and notes on what they leave out."""
    name, scale = TITLES.get(metric, metric), 1.0 if metric in IN_PX else 100.0
    unit = "px" if metric in IN_PX else "%"
    points_unit = "px" if metric in IN_PX else "points"
    figures: list[Shown] = []
    brief, usual = brief_names(view.population)
    notes = [f"In the figures, settings that are not named: {usual}."] if usual else []
    wanted = conditions(baseline, view.population)
    effects = [c for c in against(view.scorer, view.population, metric, wanted) if c is not None]
    if effects:
        few, caption = effects, f"Effects against {baseline}"
        if len(effects) > MOST_FOREST_ROWS:
            sign = 1 if METRICS[metric].higher_is_better else -1
            known = [c for c in effects if math.isfinite(c.effect.estimate)]
            best_first = sorted(known, key=lambda c: -sign * c.effect.estimate)[:MOST_FOREST_ROWS]
            few, caption = [c for c in effects if c in best_first], f"{caption}, the best {MOST_FOREST_ROWS} of {len(effects)} variants"
        few = [dataclasses.replace(c, name=brief.get(c.name, c.name)) for c in few]
        figures.append(effects_figure(few, f"difference in {name} from {baseline} ({points_unit})", scale, metric, caption))
    _, claims = refined_against_coarse(view, metric, by_axes(view, ""))
    if len(claims) > 1:
        figures.append(
            effects_figure(
                claims, f"refined minus coarse, {name} ({points_unit})", scale, metric, "Refined against coarse, one row a backbone"
            )
        )
    if len(view.population.variants) > 1:
        points = cost_points(view, metric)
        front = [f"{i} {brief.get(label, label)}" for label, i in plots.numbered_fronts(points).items()]
        more = f"; and {len(front) - MOST_NAMES} more" if len(front) > MOST_NAMES else ""
        caption = f"Quality against cost; numbered: on a Pareto front. {'; '.join(front[:MOST_NAMES])}{more}."
        alt = f"Scatter of {name} against seconds per megapixel and against training hours for {len(points)} variants."
        figures.append(Shown(alt, caption, plots.svg(plots.pareto_figure(points, f"{name} ({unit})", scale)), wide=True))
    best = best_refined(view, metric)
    coarse = baseline_of(best, {"kind": "coarse"}, view.population) if best else None
    if best is not None and coarse is not None:
        figures += breakdown_figures(view, best, coarse)
    steps, averaged = breakdowns.by_steps(view, metric)
    if any(len(line) > 1 for line in steps.values()):
        levels = {}
        for kind in ("coarse", "one_pass"):
            scores = [float(view.scorer.seeds(v, metric).mean()) for v in view.population.variants if v.kind == kind]
            if scores:
                levels[kind if len(scores) == 1 else f"{kind}, mean of {len(scores)}"] = sum(scores) / len(scores)
        figure = plots.lines_figure(steps, "denoising steps", f"{name} ({unit})", scale=scale, log_x=True, levels=levels)
        text = (
            f"Quality against steps, averaged over {' and '.join(averaged)}."
            if averaged
            else "Quality against steps, one line a combination of the other axes; bars: standard deviation over seeds."
        )
        alt = f"{name} against denoising steps for {len(steps)} combinations of the other settings."
        figures.append(Shown(alt, text, plots.svg(figure), wide=True))
    curves = breakdowns.learning_curves(view)
    if curves:
        figure = plots.lines_figure(curves, "images seen", "training loss")
        figures.append(
            Shown(
                f"Training loss of {len(curves)} refiners against images seen.",
                "Learning curves of the refiners, mean over seeds.",
                plots.svg(figure),
                wide=True,
            )
        )
    return figures, notes


def picture_of(view: View, metric: str) -> tuple[Shown | None, str]:
    """The best, median and worst places with their boundaries, or why there is no picture."""
    if best_refined(view, metric) is None:
        return None, ""
    try:
        return places_of(view, metric), ""
    except Missing:  # its message names folders of this machine, which a page that is sent around should not
        return None, "No places are shown: the maps or the data of this study are not in the store, only its tables."
    except IdgbrError as error:
        return None, f"No places are shown: {error}"


def effects_figure(contrasts: Sequence[Contrast], xlabel: str, scale: float, metric: str, caption: str) -> Shown:
    """Forest plot of contrasts in per cent or px, with its alternative text."""
    rows = [(c.name, scale * c.effect.estimate, scale * c.effect.low, scale * c.effect.high, c.mark) for c in contrasts]
    alt = "; ".join(f"{c.name}: {effect_text(c, metric)}" for c in contrasts[:12])
    text = f"{caption}: estimate and 95 % interval; filled where significant after Holm."
    return Shown(f"Forest plot. {alt}", text, plots.svg(plots.forest(rows, xlabel)), wide=True)


def breakdown_figures(view: View, best: Variant, coarse: Variant) -> list[Shown]:
    """By distance, frequency and class, of the best refined variant and of one pass and cascade beside it."""
    out = []
    brief = brief_names(view.population)[0]
    name = brief.get(best.label, best.label)
    beside = [baseline_of(best, {"kind": kind}, view.population) for kind in ("one_pass", "cascade")]
    maps = [coarse, *(v for v in beside if v is not None), best]
    interval = f"95 % bands over {view.sums.unit_kind}s (jackknife)"
    curve = breakdowns.by_distance(view, maps)
    if curve is not None:
        first = curve.gain[best.kind][0]
        near = f"nearest band: {100 * first.value:+.1f} points over coarse"
        alt = f"Pixel accuracy by distance to the boundary for {', '.join(curve.accuracy)}; {near}."
        caption = f"Score against distance to the target's boundary, {name}; {interval}."
        out.append(Shown(alt, caption, plots.svg(plots.distance_figure(curve)), wide=True))
    bands = breakdowns.by_band(view, maps)
    if bands is not None:
        alt = "; ".join(f"{size} px: {100 * p.value:+.1f} %" for size, p in zip(bands.names, bands.removed[best.kind]))
        caption = f"Score by frequency band: error by size of the erroneous structure, {name}; {interval}."
        out.append(Shown(f"Error removed by frequency band. {alt}", caption, plots.svg(plots.band_figure(bands)), wide=True))
    repairs = breakdowns.repair_by_class(view, best)
    if repairs and all(math.isfinite(r["repaired"]) for r in repairs):
        table = class_table(view)
        names = [
            table.names[int(r["class"])] if table and int(r["class"]) < table.n_classes else f"class {int(r['class'])}" for r in repairs
        ]
        alt = "; ".join(f"{n}: {100 * r['repaired']:.2f} % repaired, {100 * r['damaged']:.2f} % damaged" for n, r in zip(names, repairs))
        caption = f"Repaired and damaged pixels of every class, {name}, all seeds together."
        out.append(Shown(alt, caption, plots.svg(plots.repair_figure(repairs, names))))
    return out


def class_table(view: View) -> ClassTable | None:
    """Names of the classes, where the data artefact is at hand."""
    part = view.population.parts[0]
    try:
        return ClassTable.load(part.store.path("data", view.population.frame["key_data"][0]) / "classes.json")
    except IdgbrError:
        return None  # only the tables were synced: classes keep their numbers


def places_of(view: View, metric: str) -> Shown:
    """Picture of the best, median and worst places as a data URI.

    Raises:
        Missing: artefacts or data are not there any more.
    """
    shown, _, title = panels_of(view, metric)
    src = "data:image/jpeg;base64," + base64.b64encode(plots.jpeg(plots.places_figure(shown))).decode()
    alt = f"{title}. Above coarse, below refined, each over the image with the target's boundaries. " + "; ".join(
        p.title.replace("\n", ", ") for p in shown
    )
    return Shown(alt, f"{title}. Numbers: {TITLES.get(metric, metric)} of the place, coarse → refined.", src=src, wide=True)


# ---- plan, failures, keys --------------------------------------------------------------------------------------------


def planned(trials: Trials, views: Sequence[View]) -> tuple[list[Table], list[str]]:
    """Trials planned and done, and by stage: distinct artefacts, their seconds, and what they would have cost without
    sharing.
    """
    frame = trials.frame
    definition = declared(views[0])
    counts = f"{frame.height} results in the tables, {trials.failed.height} failed, {trials.duplicates} duplicates by key"
    notes = [
        f"Planned: {len(definition['trials'])} trials. {counts}." if definition else f"{counts}. (The study's definition is not here.)"
    ]
    rows = []
    total = [0.0, 0.0]
    for stage in STAGES:
        made = frame.select(f"key_{stage}", f"seconds_{stage}").drop_nulls().rows()
        distinct = dict(made)
        seconds, alone = sum(distinct.values()), sum(s for _, s in made)
        total[0] += seconds
        total[1] += alone
        rows.append((Cell(stage), _integer(len(distinct)), _integer(len(made)), _time(seconds), _time(alone)))
    rows.append((Cell("all"), Cell(""), Cell(""), _time(total[0]), _time(total[1])))
    columns = (
        Column("stage", "stage", False),
        Column("artefacts", "distinct artefacts"),
        Column("trials", "trials that use one"),
        Column("hours", "time on the clock"),
        Column("unshared", "time if nothing were shared"),
    )
    return [Table("cost-by-stage", "Cost by stage", (), columns, tuple(rows))], notes


def _integer(n: int) -> Cell:
    return Cell(str(n), n, sort=n)


def _time(seconds: float) -> Cell:
    return Cell(duration(seconds), seconds / 3600, sort=seconds)


def failures(trials: Trials, lines: int = 6) -> list[dict[str, str]]:
    """Label and last lines of the error of every failed trial."""
    out = []
    for row in trials.failed.iter_rows(named=True):
        text = "\n".join((row.get("error") or "no message").strip().splitlines()[-lines:])
        out.append({"trial": row["trial"], "label": row.get("label") or row["trial"], "lines": text})
    return out


def keys_tables(trials: Trials) -> list[Table]:
    """Trials with their keys, and the sets of versions that they were made with, by number: few sets serve thousands
    of trials.
    """
    columns = [Column("trial", "trial", False), Column("study", "study", False), Column("label", "what was varied", False)]
    columns += [Column(f"key_{s}", s, False) for s in STAGES] + [Column("commit", "commit", False), Column("versions", "versions")]
    numbers: dict[str, int] = {}
    rows = []
    for row in trials.frame.iter_rows(named=True):
        number = numbers.setdefault(row["versions"] or "{}", len(numbers) + 1)
        values = [row["trial"], row["study"], row.get("label")]
        values += [(row[f"key_{s}"] or "")[:12] for s in STAGES] + [(row["git_commit"] or "")[:10]]
        rows.append((*(Cell(str(v or "")) for v in values), _integer(number)))
    packages = list(dict.fromkeys(name for text in numbers for name in json.loads(text)))
    sets = [(_integer(n), *(Cell(json.loads(text).get(name) or "") for name in packages)) for text, n in numbers.items()]
    heads = (Column("versions", "versions"), *(Column(name, name, False) for name in packages))
    return [
        Table("versions", "Versions", (), heads, tuple(sets)),
        Table("keys", "Trials and keys", (), tuple(columns), tuple(rows)),
    ]
