"""results/README.md: every published study with its headline, command and hours, from the published folders alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sweeps.analysis.request import Comparison
from sweeps.analysis.trials import load_trials
from sweeps.analysis.variants import Variant
from sweeps.analysis.views import View, views_of
from sweeps.report.page import headline, leading
from sweeps.report.publish import options, unpacked
from sweeps.report.score_tables import TITLES, number

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"  # README.md quotes what stands between them
MAPS = ("coarse", "one_pass", "cascade", "diffusion")


def text(folders: Sequence[Path]) -> str:
    """The whole page. `folders`: of published studies.

    Raises:
        Missing: a folder is not complete. Disagreement: its rows are damaged.
    """
    rows: list[str] = []
    said: list[str] = []
    for folder in folders:
        request = json.loads((folder / "published.json").read_text())
        study, comparison = request["study"], Comparison.from_json(request)
        with unpacked(folder / "rows", study) as store:
            trials = load_trials([store], [study])
            views = list(views_of(trials, comparison))
            rows += [_row(study, view, comparison.metric) for view in views]
            sentences = [s for view in leading(views) for s in headline(view, comparison.metric)]
            hours = sum(_hours(view) for view in views[:1])
        said += [
            f"## {study}",
            "",
            *(f"- {s}" for s in sentences),
            f"- `python -m sweeps run {study}`: {hours:.1f} hours of computing, one job at a time; "
            f"`python -m sweeps publish {study}{options(comparison)}`",
            f"- [tables](published/{study}/tables.md), [report](published/{study}/report.html), "
            f"[how it was made](published/{study}/README.md)",
            "",
        ]
    metric = TITLES["boundary_iou"]
    lines = [
        "# Published results",
        "",
        "Written by `python -m sweeps overview` from the rows of every study. `python -m sweeps verify` recomputes every number.",
        f"Primary score: {metric} in per cent, mean over seeds and over all variants of a kind of map (in brackets the best variant",
        "that has all seeds).",
        "",
        BEGIN,
        "| study | split, labels | units | seeds | coarse | one pass | cascade | diffusion |",
        "|---|---|---|---|---:|---:|---:|---:|",
        *rows,
        END,
        "",
        "The same network in one pass stands beside every diffusion model. A cascade takes steps without noise.",
        "",
        *said,
        "## What is not shown",
        "",
        "- Data sets of the paper, its sizes and its GPUs: studies `paper` and `paper_sd15` were never run in full.",
        "- Results that need a number of seeds or places which a study has not: its table says so (too few scenes, one seed).",
        "- Distance bands and pictures of studies whose maps are not kept here: rows hold counts by place and class alone.",
    ]
    return "\n".join(lines) + "\n"


def quote(page: str, readme: str) -> str:
    """README.md with its table of results replaced by the page's; links are from the folder above."""
    table = page[page.index(BEGIN) : page.index(END)].replace("](published/", "](results/published/")
    if BEGIN not in readme or END not in readme:
        return readme
    return readme[: readme.index(BEGIN)] + table + readme[readme.index(END) :]


def _row(study: str, view: View, metric: str) -> str:
    seeds = sorted({seed for v in view.population.variants for seed in v.seeds})
    units = f"{len(view.sums.units)} {'scenes' if view.sums.unit_kind == 'scene' else 'ground blocks'}"
    cells = []
    for kind in MAPS:
        found = [(_mean(view, v, metric), len(v.seeds)) for v in view.population.variants if v.kind == kind]
        if not found:
            cells.append("")
            continue
        scores, most = [score for score, _ in found], max(n for _, n in found)
        best = f" ({number(metric, max(score for score, n in found if n == most))})" if len(scores) > 1 else ""
        cells.append(number(metric, sum(scores) / len(scores)) + best)
    return (
        f"| [{study}](published/{study}/tables.md) | {view.split}, {view.label_set} | {units} | {len(seeds)} | " + " | ".join(cells) + " |"
    )


def _mean(view: View, variant: Variant, metric: str) -> float:
    return float(view.scorer.seeds(variant, metric).mean())


def _hours(view: View) -> float:
    """Hours of all distinct artefacts of the trials."""
    frame = view.population.frame
    total = 0.0
    for column in (c for c in frame.columns if c.startswith("key_")):
        seconds = f"seconds_{column.removeprefix('key_')}"
        if seconds in frame.columns:
            total += sum(dict(frame.select(column, seconds).drop_nulls().rows()).values())
    return total / 3600
