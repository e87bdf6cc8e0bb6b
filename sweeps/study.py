"""Studies: axes over settings, times replicate seeds, to trials.

An axis is any `stage.field` with values (a grid, a list, one factor at a time) or a range (a search). The seed is a
replicate, never an axis. A trial is one whole `Experiment`; its id is a digest of its settings and of the key of its
counts, so that the same trial has the same id on every machine, and other data under the same path is another trial.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from idgbr import stages
from idgbr.config import SECTIONS, Experiment, apply, is_read, split_name
from idgbr.errors import BadRequest, nearest
from idgbr.recipes import recipe
from idgbr.refiner.settings import RefinerConfig, SamplerConfig
from idgbr.settings import Section, digest, identity, settings

DESIGNS = ("grid", "one_at_a_time")
YARDSTICKS = ("coarse", "one_pass", "cascade")
OWNERS = ("arms", "baseline")
Setting = bool | int | float | str | None | tuple["Setting", ...]  # what a setting of an experiment may be
Overrides = Mapping[str, Setting]  # stage.field -> value
_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Axis:
    """One setting and what it takes: `values`, or a range `low` to `high` to search in (`log`: on a logarithmic scale).

    Raises:
        BadRequest: unknown setting (names the nearest), `seed`, no value, a value twice, or a range the wrong way
            round.
    """

    name: str
    values: tuple[Setting, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if self.name in ("seed", "reseed"):
            raise BadRequest(
                f"{self.name} is not an axis: seeds are replicates, and nothing may be optimised over them",
                hint="Study(replicates=3), or another setting to vary",
            )
        split_name(self.name)
        object.__setattr__(self, "values", tuple(tuple(v) if isinstance(v, list) else v for v in self.values))
        if not self.values and not self.is_range:
            raise BadRequest(f"the axis {self.name} is empty", allowed="values=(...), or low= and high=")
        if len({repr(v) for v in self.values}) != len(self.values):
            raise BadRequest(f"the axis {self.name} holds a value twice", value=self.values)
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise BadRequest(f"the axis {self.name} has low >= high", value=f"low={self.low}, high={self.high}")
        if self.log and self.low is not None and self.low <= 0:
            raise BadRequest(f"the axis {self.name} is logarithmic and must be above 0", value=f"low={self.low}")

    @property
    def is_range(self) -> bool:
        """Whether a search draws values between `low` and `high`."""
        return self.low is not None and self.high is not None

    @property
    def stage(self) -> str:
        """Section of the setting, e.g. "refiner"."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Search:
    """An adaptive study: Optuna proposes settings of one stage; everything upstream of it is prepared first.

    Args:
        goals: names of scores to maximise; with a `-` before the name, to minimise (`-seconds`). Two goals make a
            front.
        trials: proposals in all, over all runs of the study.
        sampler: tpe, nsga2, or random.
        seed: of the sampler.
        start: points tried first, as overrides.
        rungs: images at which trainings are compared and the worse are stopped (asynchronous halving, ASHA); empty:
            none.
        reduction: share kept at a rung is 1 / reduction.
        rung_goal: what the training curve is compared by; a `-` means smaller is better.
        wilcoxon: stop sampling when a trial is surely worse than the best on the rasters done so far, at this level;
            0: never.
    """

    goals: tuple[str, ...] = ("boundary_iou",)
    trials: int = 20
    sampler: str = "tpe"
    seed: int = 0
    start: tuple[Overrides, ...] = ()
    rungs: tuple[int, ...] = ()
    reduction: int = 2
    rung_goal: str = "-loss"
    wilcoxon: float = 0.0

    def __post_init__(self) -> None:
        if self.sampler not in ("tpe", "nsga2", "random"):
            raise BadRequest(
                "unknown search sampler",
                value=self.sampler,
                allowed="tpe, nsga2, random",
                hint=nearest(self.sampler, ("tpe", "nsga2", "random")),
            )
        if not self.goals or len(self.goals) > 2 or len(set(self.goals)) != len(self.goals):
            raise BadRequest("a search has one or two different goals", value=self.goals)
        if self.trials < 1:
            raise BadRequest("a search needs at least one trial", value=self.trials)
        if len(self.goals) > 1 and (self.rungs or self.wilcoxon):
            raise BadRequest(
                "stopping early compares trials by one goal, this search has two", value=self.goals, hint="rungs=() and wilcoxon=0"
            )
        if list(self.rungs) != sorted(set(self.rungs)) or any(r < 1 for r in self.rungs):
            raise BadRequest("rungs are growing numbers of images", value=self.rungs)
        if self.reduction < 2:
            raise BadRequest("reduction is at least 2", value=self.reduction)
        if not 0 <= self.wilcoxon < 0.5:
            raise BadRequest("wilcoxon is a level", value=self.wilcoxon, allowed="0 (never) to below 0.5")


@dataclass(frozen=True)
class Trial:
    """One experiment of a study. `role` is trial, or the yardstick it is: coarse, one_pass, cascade."""

    overrides: Overrides
    experiment: Experiment
    role: str = "trial"

    @functools.cached_property
    def jobs(self) -> tuple[stages.Job, ...]:
        """Jobs of the trial, parents first."""
        return stages.jobs(self.experiment)

    @functools.cached_property
    def id(self) -> str:
        """16 hexadecimal digits of all settings and seeds."""
        e = self.experiment
        settings = [_section_digest(getattr(e, name)) for name in SECTIONS]
        return digest({"settings": settings, "seed": e.seed, "reseed": e.reseed, "counts": self.jobs[-1].key})[:16]

    @property
    def label(self) -> str:
        """What was varied, for people: `refiner.schedule=linear seed=1`."""
        if self.role != "trial":
            return f"{self.role} seed={self.experiment.seed}"
        return " ".join([*(f"{k}={_short(v)}" for k, v in self.overrides.items()), f"seed={self.experiment.seed}"])


@functools.lru_cache(maxsize=100_000)
def _section_digest(section: Section) -> str:
    return digest(identity(section, paths=False))


Constraint = Callable[[Experiment], bool]


@dataclass(frozen=True)
class Study:
    """Many trials around one recipe.

    Args:
        name: names the rows in the tables; letters, digits, `_ . -`.
        recipe: built-in recipe or `path.py:function`.
        axes: what is varied. Enumerated: `design` says how; with `search`, ranges and values are the space.
        design: grid (every combination) or one_at_a_time (the baseline, and every other value alone).
        points: further trials as overrides (a list).
        overrides: settings that hold for every trial.
        replicates: number of seeds 0, 1, ..., or the seeds themselves. Each is a retraining from the stage that
            `reseed` names on.
        constraints: predicates over the experiment; trials for which one is false are left out.
        baseline: the trial that others are compared with; by default the first value of every axis.
        yardsticks: trials added for each distinct coarse map: "coarse" (the map itself); "one_pass" and "cascade":
            refiners of that kind with the network, loss, crops, images and tiles of the trials that they stand
            beside; each is trained once, however many trials share it.
        yardsticks_of: "arms": one_pass and cascade for every network and training among the trials; "baseline": for
            that of the baseline alone, which costs less.
        parts: other studies whose trials belong to this one too (a union).
        search: makes the study adaptive.
        sized_for: "cpu" or "gpu"; a run of a study sized for GPUs takes one a job unless told otherwise.

    Raises:
        BadRequest: see `Axis`; also a setting twice, an unknown design or yardstick.
    """

    name: str
    recipe: str
    axes: tuple[Axis, ...] = ()
    design: str = "grid"
    points: tuple[Overrides, ...] = ()
    overrides: Overrides = field(default_factory=dict)
    replicates: int | tuple[int, ...] = 1
    constraints: tuple[Constraint, ...] = ()
    baseline: Overrides = field(default_factory=dict)
    yardsticks: tuple[str, ...] = ("coarse",)
    yardsticks_of: str = "arms"
    parts: tuple[Study, ...] = ()
    search: Search | None = None
    sized_for: str = "cpu"

    def __post_init__(self) -> None:
        if not _STUDY_NAME.fullmatch(self.name):
            raise BadRequest("a study's name is part of file names", value=repr(self.name), allowed="letters, digits, _ . -")
        if self.design not in DESIGNS:
            raise BadRequest("unknown design", value=self.design, allowed=", ".join(DESIGNS), hint=nearest(self.design, DESIGNS) or None)
        for yardstick in self.yardsticks:
            if yardstick not in YARDSTICKS:
                raise BadRequest(
                    "unknown yardstick", value=yardstick, allowed=", ".join(YARDSTICKS), hint=nearest(yardstick, YARDSTICKS) or None
                )
        if self.yardsticks_of not in OWNERS:
            raise BadRequest(
                "unknown owner of yardsticks",
                value=self.yardsticks_of,
                allowed=", ".join(OWNERS),
                hint=nearest(self.yardsticks_of, OWNERS) or None,
            )
        names = [a.name for a in self.axes]
        for name in names:
            if names.count(name) > 1 or name in self.overrides:
                raise BadRequest(f"{name} is set twice in the study {self.name}", hint="one axis or one override for each setting")
        for name in self.overrides:
            if name == "seed":
                raise BadRequest("the seed is a replicate", hint=f"Study(replicates=({self.overrides[name]},))")
        ranges = [a.name for a in self.axes if a.is_range and not a.values]
        if ranges and self.search is None:
            raise BadRequest(
                f"the axis {ranges[0]} is a range; only a search can use one", hint="values=(...), or Study(search=Search(...))"
            )
        if not self.seeds:
            raise BadRequest("replicates must be at least 1", value=self.replicates)
        if self.search:
            touched = sorted({a.stage for a in self.axes})
            if len(touched) != 1:
                raise BadRequest("a search varies the settings of one stage", value=", ".join(touched) or "no axis",
                                 hint="fix the others with overrides, or run an enumerated study")  # fmt: skip
            if self.parts or self.points or self.design != "grid":
                raise BadRequest("a search takes no points, parts or design", hint="Search(start=(...)) holds the points to start from")
            for point in self.search.start:
                if set(point) - set(names):
                    raise BadRequest(
                        "a starting point sets what is not an axis", value=sorted(set(point) - set(names)), allowed=", ".join(names)
                    )

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the replicates."""
        return tuple(range(self.replicates)) if isinstance(self.replicates, int) else tuple(self.replicates)

    def base(self) -> Experiment:
        """The recipe with the overrides of all trials. All ground trains, unless refiner.held_out is set: trials are
        sampled as `sampler.*` says, and no decision that held-out ground tunes is used."""
        return apply(recipe(self.recipe), {"refiner.held_out": 0.0, **self.overrides})

    def baseline_overrides(self) -> dict[str, Setting]:
        """The overrides of the baseline: the first value of every axis, then what `baseline` says."""
        for name in self.baseline:
            split_name(name)
        return {a.name: a.values[0] for a in self.axes if a.values} | dict(self.baseline)

    def __or__(self, other: Study) -> Study:
        """The union, under this study's name."""
        return dataclasses.replace(self, parts=(*self.parts, other))


def expand(study: Study) -> list[Trial]:
    """Every trial of an enumerated study, yardsticks included, each once, in a stable order.

    Raises:
        BadRequest: a value out of range, or nothing left under the constraints.
    """
    base = study.base()
    setter = Setter(base)
    trials: list[Trial] = []
    combinations = list(_combinations(study))
    left_out = 0
    for overrides in combinations:
        experiment = setter(overrides)
        if not all(constraint(experiment) for constraint in study.constraints):
            left_out += 1
            continue
        trials += [Trial(overrides, dataclasses.replace(experiment, seed=seed)) for seed in study.seeds]
    if left_out == len(combinations) and not study.parts:
        raise BadRequest(f"the constraints of the study {study.name} leave no trial", value=f"{left_out} combinations, all refused",
                         hint="constraints that do not contradict each other or the axes")  # fmt: skip
    trials = yardsticks(study, trials, setter(study.baseline_overrides())) + trials
    for part in study.parts:
        trials += expand(part)
    return list({t.id: t for t in reversed(trials)}.values())[::-1]


def yardsticks(study: Study, trials: Iterable[Trial], baseline: Experiment) -> list[Trial]:
    """The trials to measure against: one for each distinct coarse map (and split, score, and seed where it matters),
    and of one_pass and cascade one for each network and training (see `Study.yardsticks_of`).

    A yardstick that is among the trials already is left out.
    """
    base = study.base()
    given = list(trials)
    alike = functools.cache(functools.partial(_of_kind, baseline=baseline))
    found: dict[tuple[object, ...], Trial] = {}
    for trial in given:
        e = trial.experiment
        upstream = (e.data, e.backbone, e.coarse, e.score, e.sampler.split, e.reseed)
        seed = e.seed if e.reseed == "backbone" else 0  # nothing in a coarse map depends on the refiner's seed
        if "coarse" in study.yardsticks and ("coarse", seed, upstream) not in found:
            refiner, sampler = dataclasses.replace(base.refiner, kind="none"), dataclasses.replace(base.sampler, split=e.sampler.split)
            of_coarse = dataclasses.replace(e, refiner=refiner, sampler=sampler, seed=seed)
            found["coarse", seed, upstream] = Trial({"refiner.kind": "none"}, of_coarse, "coarse")
        if e.refiner.kind == "none":
            continue
        arm = e if study.yardsticks_of == "arms" else dataclasses.replace(e, refiner=baseline.refiner, sampler=baseline.sampler)
        for kind in (k for k in study.yardsticks if k != "coarse"):
            refiner, sampler = alike(kind, arm.refiner, arm.sampler)
            sampler = dataclasses.replace(sampler, split=e.sampler.split)
            key = (kind, e.seed, upstream, refiner, sampler)
            if key not in found:
                found[key] = Trial({"refiner.kind": kind}, dataclasses.replace(e, refiner=refiner, sampler=sampler), kind)
    rows = [trial for _, trial in sorted(found.items(), key=lambda item: YARDSTICKS.index(str(item[0][0])))]
    kinds = {row.role for row in rows}
    there = {t.jobs[-1].key: t.id for t in given if t.experiment.refiner.kind in kinds}
    return [row for row in rows if there.get(row.jobs[-1].key, row.id) == row.id]


def _of_kind(kind: str, refiner: RefinerConfig, sampler: SamplerConfig, baseline: Experiment) -> tuple[RefinerConfig, SamplerConfig]:
    """Settings of a refiner of another kind, alike in all that it reads; what it does not read is as in the
    baseline, so that arms that differ in nothing else share it."""
    e = dataclasses.replace(baseline, refiner=dataclasses.replace(refiner, kind=kind), sampler=sampler)
    for name, section in (("refiner", e.refiner), ("sampler", e.sampler)):
        for field_name, about in settings(section):
            given = {f"{name}.{field_name}": getattr(getattr(baseline, name), field_name)}
            if about.read_when is not None and not is_read(e, about.read_when) and not is_read(apply(e, given), about.read_when):
                e = apply(e, given)
    return e.refiner, e.sampler


def _combinations(study: Study) -> Iterable[dict[str, Setting]]:
    axes = [a for a in study.axes if a.values]
    start = study.baseline_overrides()
    if study.design == "grid":
        if axes or not study.points:
            for values in itertools.product(*(a.values for a in axes)):
                yield dict(zip((a.name for a in axes), values, strict=True))
    else:
        yield start
        for axis in axes:
            yield from (start | {axis.name: value} for value in axis.values if value != start[axis.name])
    for point in study.points:
        yield dict(point)


class Setter:
    """`apply` for thousands of trials: each distinct section is checked once."""

    def __init__(self, base: Experiment):
        self.base = base
        self.sections: dict[tuple[str, tuple[tuple[str, str], ...]], Section] = {}

    def __call__(self, overrides: Overrides) -> Experiment:
        by_section: dict[str, dict[str, Setting]] = {}
        for name, value in overrides.items():
            if name in ("seed", "reseed"):
                raise BadRequest(f"{name} cannot be varied by a study", hint="Study(replicates=...)")
            by_section.setdefault(name.partition(".")[0], {})[name] = value
        changed: dict[str, Any] = {}
        for section, values in by_section.items():
            key = (section, tuple(sorted((k, repr(v)) for k, v in values.items())))
            if key not in self.sections:
                self.sections[key] = dataclasses.replace(
                    getattr(self.base, section), **{split_name(name)[1]: value for name, value in values.items()}
                )
            changed[section] = self.sections[key]
        return dataclasses.replace(self.base, **changed)


def _short(value: Setting) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
