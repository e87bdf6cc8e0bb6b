"""One row a backbone: its coarse map, and what one pass, cascade and diffusion make of it; and all backbones together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sweeps.analysis import stats
from sweeps.analysis.contrasts import Contrast, mark
from sweeps.analysis.variants import Level, Variant, baseline_of, level_text, short_names
from sweeps.analysis.views import View
from sweeps.report.formats import Cell, Column, Table
from sweeps.report.score_tables import effect_data, effect_text, heading, number, title

REFINED = ("one_pass", "cascade", "diffusion")
AGAINST = ("diffusion", "one_pass")  # compared with one another too
Group = dict[str, list[tuple[Variant, Variant]]]  # kind -> (variant, its coarse map)


def groups_of(view: View, by: Sequence[str]) -> dict[tuple[Level, ...], Group]:
    """Levels of `by` -> kind -> its variants, each with its own coarse map."""
    groups: dict[tuple[Level, ...], Group] = {}
    for v in view.population.variants:
        coarse = baseline_of(v, {"kind": "coarse"}, view.population)
        if v.kind in REFINED and coarse is not None:
            groups.setdefault(tuple(v.axes[a] for a in by), {}).setdefault(v.kind, []).append((v, coarse))
    return groups


def backbones_table(view: View, metric: str, by: Sequence[str]) -> Table | None:
    """Every kind of refined map against the coarse map, by backbone and over all of them; None with fewer than two
    backbones.
    """
    groups = groups_of(view, by)
    if len(groups) < 2:
        return None
    kinds = [kind for kind in REFINED if any(kind in group for group in groups.values())]
    every: Group = {kind: [pair for group in groups.values() for pair in group.get(kind, [])] for kind in kinds}
    names = short_names(view.population.axes)
    lines = [*groups.items(), (None, every)]
    sides = [(kind, "") for kind in kinds] + ([AGAINST] if set(AGAINST) <= set(kinds) else [])
    marked = {side: _marked(view, metric, lines, side) for side in sides}
    rows = []
    for n, (level, group) in enumerate(lines):
        coarse = [b for pairs in group.values() for _, b in pairs]
        score = float(np.mean([view.scorer.seeds(b, metric).mean() for b in coarse]))
        if level is None:
            cells = [Cell("all" if i == 0 else "") for i in range(len(by))]
        else:
            cells = [Cell(level_text(names[a], x), x) for a, x in zip(by, level)]
        cells.append(Cell(number(metric, score), score, sort=score))
        for side in sides:
            c = marked[side].get(n)
            if side != AGAINST:
                scores = [view.scorer.seeds(v, metric).mean() for v, _ in group.get(side[0], [])]
                cells.append(
                    Cell(number(metric, float(np.mean(scores))), float(np.mean(scores)), sort=float(np.mean(scores)))
                    if scores
                    else Cell("")
                )
            cells.append(Cell(effect_text(c, metric), effect_data(c, metric), sort=c.effect.estimate) if c else Cell("–"))
        rows.append(tuple(cells))
    columns = [*(Column(a, names[a], False) for a in by), Column("coarse", f"coarse {title(metric)}")]
    for kind, other in sides:
        if other:
            columns.append(Column(f"{kind}_{other}", f"{kind} - {other} [95 %]"))
        else:
            columns += [Column(kind, kind), Column(f"{kind}_effect", f"Δ {kind} [95 %]")]
    header, facts = heading(view, "coarse", metric)
    notes = (
        "Each row: its refined maps, averaged, against their own coarse map. An empty name: the value that is not set (no weights: random; "
        "no pool: a refiner of its own).",
        "Intervals as in the main table. Holm over the comparisons of a column, each a question of its own; * as there.",
    )
    study = ", ".join(view.trials.studies)
    return Table(f"backbones-{view.name}", f"{study}: every kind of map by backbone", header, tuple(columns), tuple(rows), notes, facts)


def _marked(view: View, metric: str, lines: Sequence[tuple[tuple[Level, ...] | None, Group]], side: tuple[str, str]) -> dict[int, Contrast]:
    """One column: row -> a kind against its coarse maps, or against another kind of the same row."""
    kind, other = side
    contrasts = {}
    for n, (level, group) in enumerate(lines):
        pairs = group.get(kind, [])
        rivals = [v for v, _ in group.get(other, [])] if other else [coarse for _, coarse in pairs]
        if pairs and rivals:
            parts = [view.scorer.term(v, metric, 1 / len(pairs)) for v, _ in pairs]
            parts += [view.scorer.term(v, metric, -1 / len(rivals)) for v in rivals]
            contrasts[n] = Contrast(f"{level} {kind} {other}", None, pairs[0][1], stats.infer(parts))
    return dict(zip(contrasts, mark(list(contrasts.values())), strict=True))
