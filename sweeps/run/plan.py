"""From trials to unique stage jobs: what is stored, what is to do, what it will cost, and which models cannot be built.

A job is shared by all trials whose settings up to its stage agree, so a step count never trains anything. Resume is
this set difference.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from idgbr.config import Experiment
from idgbr.datasets.extent import require_split
from idgbr.errors import IdgbrError
from idgbr.stages import STAGES, Job
from idgbr.store import Store
from sweeps import tables
from sweeps.definition import definition
from sweeps.study import Study, Trial, expand

PAST = 60  # run records read for each stage to estimate from


@dataclass(frozen=True)
class StudyPlan:
    """What a study needs and what of it is there.

    Attributes:
        trials: all of the study. status: of those that have a row.
        jobs: every distinct job by key, with an experiment that needs it, parents before children.
        stored: keys that are in the store.
        open: trials still to finish, in order.
        to_do: keys to compute for them, parents before children.
        naive: trainings of a sweep that shares nothing, by stage.
    """

    study: Study
    trials: tuple[Trial, ...]
    status: dict[str, str]
    jobs: dict[str, tuple[Job, Experiment]]
    stored: frozenset[str]
    open: tuple[Trial, ...]
    to_do: tuple[str, ...]
    naive: dict[str, int]

    def count(self, status: str) -> int:
        """Number of trials with this status."""
        return sum(self.status.get(t.id) == status for t in self.trials)

    def stages(self) -> dict[str, dict[str, int]]:
        """Per stage: unique jobs, stored, to do, and what a naive sweep would run."""
        out = {stage: {"unique": 0, "stored": 0, "to_do": 0, "naive": self.naive.get(stage, 0)} for stage in STAGES}
        wanted = set(self.to_do)
        for key, (job, _) in self.jobs.items():
            out[job.stage]["unique"] += 1
            out[job.stage]["stored"] += key in self.stored
            out[job.stage]["to_do"] += key in wanted
        return out

    @property
    def trainings(self) -> int:
        """Trainings of the whole study when nothing is stored."""
        return sum(job.trains for job, _ in self.jobs.values())

    @property
    def naive_trainings(self) -> int:
        """Number of trainings of a sweep in which trials share nothing."""
        return self.naive.get("backbone", 0) + self.naive.get("refiner", 0)


def make(study: Study, store: Store, *, retry_failed: bool = False, trials: Iterable[Trial] | None = None) -> StudyPlan:
    """Expand the study and compare it with the store.

    Raises:
        BadRequest: the study is wrong. Missing: a file it names is not there, or a split has no scenes.
    """
    listed = tuple(trials) if trials is not None else tuple(expand(study))
    for trial in listed:  # what is trained for hours can be scored
        require_split(trial.experiment.data.shown, trial.experiment.sampler.split)
    status = tables.statuses(store, study.name)
    jobs: dict[str, tuple[Job, Experiment]] = {}
    naive: dict[str, int] = defaultdict(int)
    for trial in listed:
        for job in trial.jobs:
            jobs.setdefault(job.key, (job, trial.experiment))
            naive[job.stage] += 1
    stored = present(store, [job for job, _ in jobs.values()])
    finished = {"done", "pruned"} if retry_failed else {"done", "pruned", "failed"}
    unfinished = tuple(t for t in listed if status.get(t.id) not in finished)
    return StudyPlan(study, listed, status, jobs, stored, unfinished, needed(unfinished, jobs, stored), dict(naive))


def needed(trials: Iterable[Trial], jobs: dict[str, tuple[Job, Experiment]], stored: frozenset[str]) -> tuple[str, ...]:
    """Keys to compute for these trials: what is missing, and the missing parents of what is missing."""
    wanted: set[str] = set()
    for trial in trials:
        waiting = [trial.jobs[-1].key]
        while waiting:
            key = waiting.pop()
            if key not in stored and key not in wanted:
                wanted.add(key)
                waiting += jobs[key][0].parents.values()
    return tuple(key for key in jobs if key in wanted)


def present(store: Store, jobs: Iterable[Job]) -> frozenset[str]:
    """Keys of the jobs whose manifest is in the store."""
    by_stage: dict[str, list[str]] = defaultdict(list)
    for job in jobs:
        by_stage[job.stage].append(job.key)
    found: set[str] = set()
    for stage, keys in by_stage.items():
        if store.is_local or len(keys) < 50:
            there = store.are_files([f"{store.folder(stage, key)}/manifest.json" for key in keys])
            found |= {key for key, is_there in zip(keys, there, strict=True) if is_there}
        else:  # one listing is cheaper than thousands of questions to an object store
            found |= set(keys) & set(store.keys(stage))
    return frozenset(found)


# ---- the definition --------------------------------------------------------------------------------------------------


def record_definition(plan: StudyPlan, store: Store, *, redefine: bool = False, complete: bool = False) -> bool:
    """Write `studies/<name>.json`, unless the name is taken by another definition that this one does not merely add to.

    `complete`: of a search, that nothing more will be proposed. Returns whether an older definition was replaced, and
    its rows dropped.

    Raises:
        Disagreement: same name, other trials.
    """
    import json

    from idgbr.errors import Disagreement

    name = f"studies/{plan.study.name}.json"
    new = definition(plan.study, plan.trials) | ({"complete": complete} if plan.study.search else {})
    before = store.read_bytes(name)
    old = json.loads(before) if before is not None else None
    changed = False
    if old is not None:
        lost = [] if plan.study.search else [t for t in old["trials"] if t not in new["trials"]]
        changed = bool(lost) or (plan.study.search is not None and old["fingerprint"] != new["fingerprint"])
        if changed and not redefine:
            some = lost and f"{len(lost)} of {len(old['trials'])} trials are no longer in it, such as '{old['trials'][lost[0]]['label']}'"
            raise Disagreement(
                f"the study {plan.study.name} was defined otherwise in this store",
                value=some or f"fingerprint {old['fingerprint']} before, {new['fingerprint']} now",
                allowed="the same trials, or more",
                hint="another name, or --redefine to drop the rows of the old definition (artefacts stay)",
            )
        if plan.study.search and not changed:  # what was proposed before belongs to it too
            new["trials"] = old["trials"] | new["trials"]
    if changed:
        for trial in tables.statuses(store, plan.study.name):
            if trial not in new["trials"]:
                drop_rows(store, plan.study.name, trial)
    if old != new:
        store.write_bytes(name, json.dumps(new, indent=1).encode())
    return changed


def drop_rows(store: Store, study: str, trial: str) -> None:
    """Delete all parts of a trial from the tables."""
    for status in tables.STATUSES:
        store.delete(tables.part_name("trials", study, trial, status))
    for table in ("counts", "bands", "curves"):
        store.delete(tables.part_name(table, study, trial))


# ---- cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Estimates from past runs in this store; `unknown` names the stages without any."""

    seconds: float
    naive_seconds: float
    size_bytes: int
    unknown: tuple[str, ...]


def work_of(job: Job, experiment: Experiment) -> float:
    """What the time of a job grows with, in units of its own stage: images trained on, or samples times steps."""
    if job.stage == "backbone":
        return float(experiment.backbone.train_images)
    if job.stage == "refiner":
        return float(experiment.refiner.train_images)
    if job.stage == "refined" and experiment.refiner.kind == "diffusion":
        s = experiment.sampler
        return 1.0 + s.steps * s.samples * (2.0 if s.guidance_scale > 1 else 1.0)
    return 1.0


def cost(plan: StudyPlan, store: Store) -> Cost:
    """Seconds of one worker and bytes for what is to do, from the median of past runs of each stage."""
    import json

    from idgbr.config import from_dict

    rate: dict[str, float] = {}
    size: dict[str, float] = {}
    for stage in STAGES:
        rates, sizes = [], []
        for name in store.names(f"runs/{stage}", suffix=".json")[-PAST:]:
            record = json.loads(store.read_bytes(name) or b"{}")
            try:
                experiment = from_dict(record["experiment"])
            except (KeyError, IdgbrError):  # written by another version: no help for an estimate
                continue
            job = Job(stage, record["key"], record["name"], {}, {}, None)
            rates.append(record["seconds"] / work_of(job, experiment))
            sizes.append(record["bytes"])
        if rates:
            rate[stage], size[stage] = statistics.median(rates), statistics.median(sizes)
    wanted = set(plan.to_do)
    seconds = sum(rate.get(job.stage, 0.0) * work_of(job, e) for key, (job, e) in plan.jobs.items() if key in wanted)
    naive = sum(rate.get(job.stage, 0.0) * work_of(job, t.experiment) for t in plan.open for job in t.jobs)
    size_bytes = int(sum(size.get(plan.jobs[key][0].stage, 0.0) for key in wanted))
    unknown = {plan.jobs[key][0].stage for key in wanted} - set(rate)
    return Cost(seconds, naive, size_bytes, tuple(s for s in STAGES if s in unknown))


# ---- for people ------------------------------------------------------------------------------------------------------


class Impossible(TypedDict):
    """Models that cannot be built for one reason, and the trials that need them; `exit_code` is the reason's."""

    model: str
    reason: str
    exit_code: int
    trials: list[str]


class Summary(TypedDict):
    """A plan in numbers. Hours and gigabytes: of what is to do, by past timings of this store."""

    study: str
    trials: int
    done: int
    failed: int
    to_run: int
    stages: dict[str, dict[str, int]]
    trainings: int
    naive_trainings: int
    worker_hours: float
    naive_worker_hours: float
    gigabytes: float
    without_past_timings: list[str]
    concurrency: NotRequired[int | None]
    impossible: NotRequired[list[Impossible]]
    forecast: NotRequired[dict[str, object]]


def summary(made: StudyPlan, store: Store) -> Summary:
    """The plan as JSON can hold it."""
    spent = cost(made, store)
    return {
        "study": made.study.name,
        "trials": len(made.trials),
        "done": made.count("done"),
        "failed": made.count("failed"),
        "to_run": len(made.open),
        "stages": made.stages(),
        "trainings": made.trainings,
        "naive_trainings": made.naive_trainings,
        "worker_hours": round(spent.seconds / 3600, 7),
        "naive_worker_hours": round(spent.naive_seconds / 3600, 7),
        "gigabytes": round(spent.size_bytes / 1e9, 9),
        "without_past_timings": list(spent.unknown),
    }


def text_of(found: Summary) -> list[str]:
    """The summary for people."""
    lines = [f"study {found['study']}: {found['trials']} trials, {found['done']} done, {found['failed']} failed, {found['to_run']} to run"]
    lines.append(f"{'stage':<10}{'unique':>8}{'stored':>8}{'to do':>8}{'nothing shared':>16}")
    lines += [f"{s:<10}{c['unique']:>8}{c['stored']:>8}{c['to_do']:>8}{c['naive']:>16}" for s, c in found["stages"].items() if c["unique"]]
    to_train = sum(found["stages"][s]["to_do"] for s in ("backbone", "refiner"))
    lines.append(f"trainings: {to_train} to do of {found['trainings']}; a sweep that shares nothing would train {found['naive_trainings']}")
    if found["to_run"]:
        known = f"{_hours(found['worker_hours'])} of one worker ({_hours(found['naive_worker_hours'])} with nothing shared)"
        known += f", {found['gigabytes']:.3g} GB"
        unknown = found["without_past_timings"]
        if unknown and len(unknown) == sum(c["to_do"] > 0 for c in found["stages"].values()):
            known = "no past timings in this store yet"
        elif unknown:
            known += f"; without past timings: {', '.join(unknown)}"
        lines.append(f"cost: {known}")
    if found.get("concurrency"):
        lines.append(f"at once: {found['concurrency']}")
    for i in found.get("impossible") or []:
        lines.append(f"cannot be built: {i['model']} ({len(i['trials'])} trials): {i['reason']}")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
