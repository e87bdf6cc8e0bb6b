"""table, ablate, report, publish, verify: plain functions behind `python -m sweeps`. They import neither torch nor ray.

Arguments that `sweeps/__main__.py` passes on (all keyword, all with defaults but `studies`):

    studies   tuple of study names (publish and verify: one name)
    stores    tuple of folders or URIs, merged                         --store, may be repeated
    split     "" = every split there is, else "val", "test", ...       --split
    labels    "" = every label set, one table each; "full", "eroded"   --labels
    metric    primary metric                                           --metric boundary_iou
    metrics   metrics shown, comma separated; "" = the usual three     --metrics miou,boundary_iou,wfm_edge
    baseline  "coarse", "one_pass", "steps=1", "resnet50", or a label  --baseline
    by        axis or stage: one table a level (ablate: refined        --by backbone
              against coarse, one row a level)
    where     tuple of filters, "steps<=8 and schedule=cosine"         --where, may be repeated
    unit      "auto", "scene" or "block"                               --unit
    form      "rich", "md", "latex", "json" or "csv"                   --md | --latex | --json | --csv
    out       file to write instead of standard output                 -o

    table(studies, ...)                  -> None; prints
    ablate(studies, ...)                 -> None; prints contrasts, main effects, interactions, refined against coarse, cost, importance
    tiles(studies, ..., out="tiles.png") -> Path; best / median / worst tiles by improvement
    report(studies, ..., out="report.html", tile_images=True) -> Path
    publish(study, ..., results="results/published") -> Path
    verify(study, results="results/published")       -> None; raises Disagreement when a published number is not what its rows give
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from idgbr.errors import BadRequest, Missing
from idgbr.files import write_bytes
from sweeps.analysis.trials import Trials, load_trials
from sweeps.analysis.views import PRIMARY, by_level, views, wanted_metrics
from sweeps.report import formats
from sweeps.report.ablation_tables import ablation_tables
from sweeps.report.formats import Table
from sweeps.report.score_tables import score_table
from sweeps.report.tile_panels import panels_of


def table(
    studies: Sequence[str],
    *,
    stores: Sequence[str],
    split: str = "",
    labels: str = "",
    metric: str = PRIMARY,
    metrics: str = "",
    baseline: str = "coarse",
    by: str = "",
    where: Sequence[str] = (),
    unit: str = "auto",
    form: str = "rich",
    out: str = "",
) -> None:
    """Scores of every variant and its effect against the baseline, from Parquet alone."""
    trials = load_trials(stores, studies, where)
    emit(score_tables(trials, split=split, labels=labels, metric=metric, metrics=metrics, baseline=baseline, by=by, unit=unit), form, out)


def ablate(
    studies: Sequence[str],
    *,
    stores: Sequence[str],
    split: str = "",
    labels: str = "",
    metric: str = PRIMARY,
    metrics: str = "",
    baseline: str = "coarse",
    by: str = "",
    where: Sequence[str] = (),
    unit: str = "auto",
    form: str = "rich",
    out: str = "",
) -> None:
    """The main table, then refined against coarse, diffusion against one_pass, main effects, interactions, cost, importance."""
    trials = load_trials(stores, studies, where)
    found: list[Table] = []
    shown = wanted_metrics(metrics, metric)
    for view in views(trials, shown, split=split, labels=labels, unit=unit):
        found.append(score_table(view, metrics=shown, primary=metric, baseline=baseline, name=f"scores-{view.name}"))
        found += ablation_tables(view, metric, baseline, by)
    emit(found, form, out)


def score_tables(
    trials: Trials,
    *,
    split: str = "",
    labels: str = "",
    metric: str = PRIMARY,
    metrics: str = "",
    baseline: str = "coarse",
    by: str = "",
    unit: str = "auto",
) -> list[Table]:
    shown = wanted_metrics(metrics, metric)
    out = []
    for view in views(trials, shown, split=split, labels=labels, unit=unit):
        for level, part in by_level(view, by):
            name = "-".join(["scores", view.name, *([level] if level else [])])
            out.append(score_table(part, metrics=shown, primary=metric, baseline=baseline, name=name))
    return out


def emit(tables: Sequence[Table], form: str, out: str = "") -> None:
    """To a file (whole or not at all) or to standard output; "rich" in colour where that is a terminal."""
    if form not in formats.FORMATS:
        raise BadRequest("unknown table format", value=form, allowed=", ".join(formats.FORMATS))
    if out:
        write_bytes(Path(out), formats.render(tables, form).encode())
        print(out, file=sys.stderr)
    elif form == "rich" and sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        for t in tables:
            for part in formats.rich_renderables(t, console.width):
                console.print(part)
    else:
        print(formats.render(tables, form), end="")


def tiles(
    studies: Sequence[str],
    *,
    stores: Sequence[str],
    split: str = "",
    labels: str = "",
    metric: str = PRIMARY,
    where: Sequence[str] = (),
    each: int = 1,
    out: str = "tiles.png",
) -> Path:
    """PNG of the best, median and worst tiles by improvement of the best refined variant over its coarse map.

    Raises:
        Missing: no refined variant, or the artefacts are not in the store.
    """
    from sweeps.report import plots

    trials = load_trials(stores, studies, where)
    view = next(views(trials, [metric], split=split, labels=labels))
    shown, table, title = panels_of(view, metric, each)
    return plots.save_png(plots.tiles_figure(shown, table, title), Path(out))


def report(
    studies: Sequence[str],
    *,
    stores: Sequence[str],
    split: str = "",
    labels: str = "",
    metric: str = PRIMARY,
    metrics: str = "",
    baseline: str = "coarse",
    where: Sequence[str] = (),
    unit: str = "auto",
    out: str = "report.html",
    tile_images: bool = True,
) -> Path:
    """One self-contained HTML page.

    Raises:
        Missing: no such study. BadRequest: a baseline, metric, split or label set that is not there.
    """
    from sweeps.report.page import EXTRA_COLUMNS, page

    trials = load_trials(stores, studies, where)
    shown = wanted_metrics(metrics, metric)
    found = list(views(trials, shown, split=split, labels=labels, unit=unit, columns=EXTRA_COLUMNS))
    text = page(trials, found, metric=metric, metrics=shown, baseline=baseline, tile_images=tile_images)
    return write_bytes(Path(out), text.encode())


def publish(
    study: str,
    *,
    stores: Sequence[str],
    split: str = "",
    labels: str = "",
    metric: str = PRIMARY,
    metrics: str = "",
    baseline: str = "coarse",
    where: Sequence[str] = (),
    unit: str = "auto",
    results: str = "results/published",
    tile_images: bool = True,
) -> Path:
    """results/published/<study>/: rows under 1 MB, tables, report, README.

    Raises:
        Missing: no such study, or nowhere to write. BadRequest: rows too large, or a metric that rows by scene cannot give.
    """
    from sweeps.report import publish as published
    from sweeps.report.page import EXTRA_COLUMNS, page

    trials = load_trials(stores, [study], where)
    shown = wanted_metrics(metrics, metric)
    found = list(views(trials, shown, split=split, labels=labels, unit=unit, columns=EXTRA_COLUMNS))
    request = {
        "metric": metric,
        "metrics": shown,
        "baseline": baseline,
        "split": split,
        "labels": labels,
        "unit": unit,
        "where": list(where),
    }
    text = page(trials, found, metric=metric, metrics=shown, baseline=baseline, tile_images=tile_images)
    return published.write(Path(results) / study, study, trials, found, request, text)


def published(results: str = "results/published") -> tuple[str, ...]:
    """Names of all published studies.

    Raises:
        Missing: there is none.
    """
    names = tuple(sorted(p.parent.name for p in Path(results).glob("*/published.json")))
    if not names:
        raise Missing("nothing is published", value=results, hint="python -m sweeps publish STUDY")
    return names


def verify(study: str, *, results: str = "results/published") -> None:
    """Recompute every published number from its rows.

    Raises:
        Missing: nothing published under that name. Disagreement: a number is not what the rows give.
    """
    from sweeps.report.publish import verify as check

    n = check(Path(results) / study)
    print(f"{study}: every number of {n} tables is what the rows give")
