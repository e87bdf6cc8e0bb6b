"""Trials -> variants (one set of settings, several replicate seeds), their axes, their baselines, and which seeds are
paired.

A population is what may be compared at all: one data key and one way of counting.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from idgbr.config import about_setting
from idgbr.errors import BadRequest, nearest
from idgbr.stages import STAGES
from sweeps.analysis.trials import TablePart, Trials, resolve
from sweeps.tables import Row

Level = bool | int | float | str | None  # value of an axis; None where a kind of refiner does not read the setting
KINDS = {"none": "coarse", "one_pass": "one_pass", "cascade": "cascade", "diffusion": "diffusion"}
_FIRST = {"coarse": 0, "one_pass": 1, "cascade": 2, "diffusion": 3}


@dataclass(frozen=True)
class Variant:
    """Trials that differ in nothing but the replicate seed.

    Attributes:
        kind: coarse, one_pass or diffusion. axes: the settings that vary in the population (None: not read by this
            kind).
        trials, seeds: one a replicate, by rising seed. group: variants of one group share what was drawn from the seed.
        row: the trials-table row of the first replicate.
    """

    label: str
    kind: str
    axes: Mapping[str, Level]
    trials: tuple[str, ...]
    seeds: tuple[int, ...]
    group: int
    row: Row

    def matches(self, conditions: Mapping[str, Level]) -> bool:
        """Whether it has all these levels."""
        return all(self.kind == v if k == "kind" else same(self.axes.get(k), v) for k, v in conditions.items())


@dataclass(frozen=True)
class Population:
    """Variants that may be compared: same data key, same settings of the counting.

    `number`: 1 for the largest of several.
    """

    variants: tuple[Variant, ...]
    axes: tuple[str, ...]
    parts: tuple[TablePart, ...]
    frame: pl.DataFrame
    notes: tuple[str, ...] = ()
    number: int = 1

    @functools.cached_property
    def rows(self) -> dict[str, Row]:
        """Trials-table rows by trial id."""
        return {row["trial"]: row for row in self.frame.iter_rows(named=True)}

    def part_of(self, trial: str) -> TablePart:
        """The trial's part of the table."""
        return self.parts[list(self.rows).index(trial)]


def populations(trials: Trials) -> list[Population]:
    """Split the trials into comparable populations, largest first."""
    score = [c for c in trials.frame.columns if c.startswith("score.")]
    by = ["key_data", *score]
    groups = trials.frame.select(by).unique(maintain_order=True)
    out = []
    for values in groups.iter_rows():
        mask = pl.all_horizontal([pl.col(c).eq_missing(pl.lit(v)) for c, v in zip(by, values)])
        out.append(_population(trials.only(trials.frame.select(mask).to_series())))
    out.sort(key=lambda p: -p.frame.height)
    if len(out) < 2:
        return out
    differing = [c for c in by if groups[c].n_unique() > 1]
    why = "other data" if "key_data" in differing else f"other {', '.join(differing)}"
    return [
        dataclasses.replace(
            p, number=i, notes=(*p.notes, f"The trials fall into {len(out)} groups that cannot be compared ({why}); this is group {i}.")
        )
        for i, p in enumerate(out, 1)
    ]


def _population(trials: Trials) -> Population:
    frame = trials.frame
    settings = [
        c for c in frame.columns if c.partition(".")[0] in ("backbone", "coarse", "refiner", "sampler") and not about_setting(c).speed_only
    ]
    settings += [c for c in ("reseed",) if c in frame.columns]
    axes = tuple(c for c in settings if c != "refiner.kind" and frame[c].drop_nulls().n_unique() > 1)
    names = short_names(axes)
    notes, found = [], []
    for rows in frame.with_row_index("_row").group_by(settings, maintain_order=True):
        part = rows[1].sort("seed", maintain_order=True)
        unique = part.unique("seed", keep="first", maintain_order=True)
        if unique.height < part.height:
            notes.append(
                f"{part.height - unique.height} trials repeat a seed of the same settings with another key (inputs or versions differ)."
            )
        found.append(unique.rows(named=True))
    groups = _seed_groups(found)
    variants = []
    for rows_, group in zip(found, groups):
        first = rows_[0]
        kind = KINDS.get(first["refiner.kind"], first["refiner.kind"])
        values = {a: first[a] for a in axes}
        label = ", ".join([kind, *(f"{names[a]}={show(values[a])}" for a in axes if values[a] is not None)])
        trial_ids, seeds = tuple(r["trial"] for r in rows_), tuple(r["seed"] for r in rows_)
        variants.append(Variant(label, kind, values, trial_ids, seeds, group, first))
    variants.sort(key=lambda v: (_FIRST.get(v.kind, 9), [_order(v.axes[a]) for a in axes]))
    return Population(tuple(variants), axes, trials.parts, frame, tuple(notes))


def short_names(axes: Iterable[str]) -> dict[str, str]:
    """`sampler.steps` -> `steps` where no other axis has that name."""
    axes = list(axes)
    last = [a.rpartition(".")[2] for a in axes]
    return {a: name if last.count(name) == 1 else a for a, name in zip(axes, last)}


def brief_names(population: Population) -> tuple[dict[str, str], str]:
    """Names of variants for figures: of an axis that has one value in most variants, that value is left out.

    Returns:
        label -> brief name, unique like the label; and the values left out, as text (empty: none).
    """
    names = short_names(population.axes)
    usual: dict[str, Level] = {}
    for axis in population.axes:
        read = [v.axes[axis] for v in population.variants if v.axes[axis] is not None]
        common = max(set(read), key=read.count) if read else None
        if read.count(common) > len(read) / 2:
            usual[axis] = common
    brief = {}
    for v in population.variants:
        told = [(a, x) for a, x in v.axes.items() if x is not None and (a not in usual or x != usual[a])]
        brief[v.label] = ", ".join([v.kind, *(_told(names[a], x) for a, x in told)])
    if len(set(brief.values())) < len(brief):
        brief, usual = {v.label: v.label for v in population.variants}, {}
    return brief, ", ".join(f"{names[a]}={show(x)}" for a, x in usual.items() if show(x))


def _told(name: str, value: Level) -> str:
    text = level_text(name, value)
    return text if text.startswith(f"{name} of ") else f"{name}={text}" if text else f"no {name}"


def level_text(name: str, value: Level) -> str:
    """A level of an axis in a row's name: its value, or how many a list holds (`pool of 4`)."""
    text = show(value)
    return f"{name} of {text.count(', ') + 1}" if ", " in text else text


def show(value: Level) -> str:
    """A value of a setting as text; of a path only its last part."""
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text.rpartition("/")[2] if "/" in text and " " not in text else text


def same(a: Level, b: Level) -> bool:
    """Whether two settings are the same, given one of them as text."""
    if isinstance(a, int | float) and not isinstance(a, bool) and not isinstance(b, bool):
        try:
            return b is not None and float(a) == float(b)
        except (TypeError, ValueError):
            return False
    return a == b or str(a).lower() == str(b).lower()


def _order(value: Level) -> tuple[int, float, str]:
    if value is None:
        return (0, 0.0, "")
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def _seed_groups(found: Sequence[Sequence[Row]]) -> list[int]:
    """A number for every variant; equal where the variants share, seed by seed, an artefact that was drawn from the
    seed.
    """
    group_of: dict[tuple[str, tuple[str | None, ...]], int] = {}
    out = []
    for i, rows in enumerate(found):
        keys = []
        for stage in STAGES[:-1]:
            column = [r.get(f"key_{stage}") for r in rows]
            if len(rows) > 1 and None not in column and len(set(column)) == len(column):
                keys.append((stage, tuple(column)))
        known = [group_of[k] for k in keys if k in group_of]
        group = min(known) if known else i
        for k in keys:
            group_of[k] = group
        out.append(group)
        for j, g in enumerate(out):  # two groups that turn out to be one
            if g in known:
                out[j] = group
        for k, g in group_of.items():
            if g in known:
                group_of[k] = group
    return out


# ---- baselines -------------------------------------------------------------------------------------------------------


def conditions(text: str, population: Population) -> dict[str, Level]:
    """`coarse`, `one_pass`, `steps=1`, `resnet50`, `one_pass, guidance_width=32`, or a whole label -> what a baseline
    must be.

    Raises:
        BadRequest: no variant is like that.
    """
    exact = [v for v in population.variants if v.label == text]
    if exact:
        return {"kind": exact[0].kind, **{a: v for a, v in exact[0].axes.items() if v is not None}}
    out: dict[str, Level] = {}
    for word in (w.strip() for w in text.split(",") if w.strip()):
        name, equals, value = word.partition("=")
        if equals:
            out[resolve(name.strip(), [*population.axes])] = value.strip()
        elif word in KINDS.values():
            out["kind"] = word
        else:
            axes = [a for a in population.axes if any(v.axes[a] is not None and same(v.axes[a], word) for v in population.variants)]
            if len(axes) != 1:
                _no_baseline(text, population, f"{word!r} is the level of {len(axes)} axes")
            out[axes[0]] = word
    if not any(v.matches(out) for v in population.variants):
        _no_baseline(text, population, "no variant is like that")
    return out


def _no_baseline(text: str, population: Population, why: str) -> None:
    levels = [
        f"{a}={show(v)}"
        for a in population.axes
        for v in sorted({x.axes[a] for x in population.variants if x.axes[a] is not None}, key=_order)
    ]
    kinds = sorted({v.kind for v in population.variants})
    known = [*kinds, *levels, *(v.label for v in population.variants)]
    raise BadRequest(
        f"the baseline is not in the study: {why}", value=text, allowed="; ".join([*kinds, *levels]), hint=nearest(text, known) or None
    )


def baseline_of(
    variant: Variant, wanted: Mapping[str, Level], population: Population, candidates: Sequence[Variant] | None = None
) -> Variant | None:
    """The baseline of one variant: what is `wanted`, and like the variant in everything else; None where there is
    none or no single one.

    Args:
        candidates: the variants that match `wanted`, where the caller asks for many variants.
    """
    if variant.matches(wanted):
        return None
    alike = [
        v
        for v in (population.variants if candidates is None else candidates)
        if v.matches(wanted)
        and ("kind" in wanted or v.kind == variant.kind)
        and all(v.axes[a] is None or variant.axes[a] is None or v.axes[a] == variant.axes[a] for a in population.axes if a not in wanted)
    ]
    return alike[0] if len(alike) == 1 else None
