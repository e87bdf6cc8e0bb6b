"""Views: the trials of one population with their sums, as every table and figure reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from idgbr.errors import BadRequest
from sweeps.analysis.contrasts import Scorer
from sweeps.analysis.request import Comparison
from sweeps.analysis.trials import Trials, resolve
from sweeps.analysis.unit_sums import Sums, label_sets, unit_sums
from sweeps.analysis.variants import Population, populations

COUNTED = ("valid", "ignored")


@dataclass(frozen=True)
class View:
    """A population, one split and label set of it, and its counts summed by unit."""

    population: Population
    split: str
    label_set: str
    sums: Sums
    scorer: Scorer
    trials: Trials

    @property
    def name(self) -> str:
        """`val-full`; `val-full-2` of a second population."""
        return f"{self.split}-{self.label_set}" + (f"-{self.population.number}" if self.population.number > 1 else "")

    @classmethod
    def of(
        cls,
        trials: Trials,
        population: Population,
        metrics: Sequence[str],
        split: str,
        label_set: str,
        unit: str = "auto",
        columns: Sequence[str] = COUNTED,
    ) -> View:
        """Sum the counts of a population for one split and label set; `columns`: summed beside what the metrics read."""
        sums = unit_sums(population.parts, metrics, split=split, label_set=label_set, unit=unit, columns=columns)
        return cls(population, split, label_set, sums, Scorer(sums), trials)


def views(
    trials: Trials,
    metrics: Sequence[str],
    *,
    split: str = "",
    labels: str = "",
    unit: str = "auto",
    columns: Sequence[str] = COUNTED,
) -> Iterator[View]:
    """One view for each population, split and label set; each may be one table.

    Raises:
        BadRequest: no counts of the wanted split or label set.
    """
    there = [(p, s, label_set) for p in populations(trials) for s, label_set in label_sets(p.parts)]
    chosen = [(p, s, label_set) for p, s, label_set in there if split in ("", s) and labels in ("", label_set)]
    if not chosen:
        raise BadRequest(
            "no counts of that split and label set",
            value=f"split {split or 'any'}, labels {labels or 'any'}",
            allowed="; ".join(sorted({f"split {s}, labels {label_set}" for _, s, label_set in there})),
        )
    for population, s, label_set in chosen:
        yield View.of(trials, population, metrics, s, label_set, unit, columns)


def views_of(trials: Trials, comparison: Comparison, columns: Sequence[str] = COUNTED) -> Iterator[View]:
    """The views that a request asks for.

    Raises:
        BadRequest: no such metric, split, label set or unit of inference.
    """
    return views(trials, comparison.shown, split=comparison.split, labels=comparison.labels, unit=comparison.unit, columns=columns)


def by_level(view: View, by: str) -> Iterator[tuple[str, View]]:
    """The view itself, or one for each level of an axis (`by` may name a stage: its axes together)."""
    if not by:
        yield "", view
        return
    population = view.population
    axes = [a for a in population.axes if a.partition(".")[0] == by] or [resolve(by, population.axes)]
    for values in dict.fromkeys(tuple(v.axes[a] for a in axes) for v in population.variants):
        if None in values:
            continue
        chosen = tuple(v for v in population.variants if all(v.axes[a] in (None, x) for a, x in zip(axes, values)))
        rest = tuple(a for a in population.axes if a not in axes)
        part = Population(chosen, rest, population.parts, population.frame, population.notes, population.number)
        level = ", ".join(f"{a.rpartition('.')[2]}={x}" for a, x in zip(axes, values))
        yield level, View(part, view.split, view.label_set, view.sums, view.scorer, view.trials)
