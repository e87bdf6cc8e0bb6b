"""From trials to unique stage jobs: what is stored, what is to do, what it will cost, and which models cannot be built.

A job is shared by all trials whose settings up to its stage agree, so a step count never trains anything. Resume is this set difference.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from idgbr.config import Experiment
from idgbr.errors import BadRequest, IdgbrError
from idgbr.stages import STAGES, Job
from idgbr.store import Store
from sweeps import tables
from sweeps.study import Study, Trial, definition, expand

PAST = 60  # run records read for each stage to estimate from


@dataclass(frozen=True)
class Plan:
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
        return self.naive.get("backbone", 0) + self.naive.get("refiner", 0)


def make(study: Study, store: Store, *, retry_failed: bool = False, trials: Iterable[Trial] | None = None) -> Plan:
    """Expand the study and compare it with the store.

    Raises:
        BadRequest: the study is wrong. Missing: a file it names is not there.
    """
    listed = tuple(trials) if trials is not None else tuple(expand(study))
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
    return Plan(study, listed, status, jobs, stored, unfinished, needed(unfinished, jobs, stored), dict(naive))


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
            names = [f"{store.base}/{store.folder(stage, key)}/manifest.json" for key in keys]
            found |= {key for key, info in zip(keys, store.fs.get_file_info(names), strict=True) if info.type == fs.FileType.File}
        else:  # one listing is cheaper than thousands of questions to an object store
            found |= set(keys) & set(store.keys(stage))
    return frozenset(found)


# ---- the definition ---------------------------------------------------------------------------------------------------------


def record_definition(plan: Plan, store: Store, *, redefine: bool = False, complete: bool = False) -> bool:
    """Write `studies/<name>.json`, unless the name is taken by another definition that this one does not merely add to.

    `complete`: of a search, that nothing more will be proposed. Returns whether an older definition was replaced, and its rows dropped.

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
    for status in tables.STATUSES:
        store.delete(tables.part_name("trials", study, trial, status))
    for table in ("counts", "bands", "curves"):
        store.delete(tables.part_name(table, study, trial))


# ---- cost -------------------------------------------------------------------------------------------------------------------


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


def cost(plan: Plan, store: Store) -> Cost:
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


# ---- preflight --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Impossible:
    """A model that cannot be built, why, and how many trials need it."""

    model: str
    reason: str
    trials: tuple[str, ...]


def preflight(plan: Plan, store: Store | None = None) -> list[Impossible]:
    """Build every distinct model that is still to train, on torch's meta device: no memory, no time, no data.

    The number of classes does not decide whether a network can be built, so data that are not synthetic count as 2 classes.
    """
    from idgbr.coarse import backbone

    wanted = set(plan.to_do)
    checked: dict[Any, str | None] = {}
    users: dict[Any, list[str]] = defaultdict(list)
    names: dict[Any, str] = {}
    for trial in plan.open:
        e = trial.experiment
        n_bands, n_classes = len(e.data.bands), e.data.n_classes if e.data.source == "synthetic" else 2
        for job in trial.jobs:
            if job.key not in wanted or not job.trains or (job.stage == "backbone" and job.name != "full"):
                continue
            key: Any = (e.backbone, e.coarse.tile_px, n_bands) if job.stage == "backbone" else (_shape_of(e.refiner), n_bands)
            users[key].append(trial.id)
            if key in checked:
                continue
            if job.stage == "backbone":
                names[key] = f"backbone.encoder={e.backbone.encoder} backbone.decoder={e.backbone.decoder}"
                checked[key] = _error_of(lambda e=e, b=n_bands, k=n_classes: backbone.check(e.backbone, e.coarse.tile_px, b, k))
            else:
                names[key] = "refiner of '" + trial.label + "'"
                checked[key] = _error_of(lambda e=e, b=n_bands, k=n_classes: _build_refiner(e, b, k))
    return [Impossible(names[key], reason, tuple(users[key])) for key, reason in checked.items() if reason]


def refuse_impossible(plan: Plan, found: list[Impossible]) -> None:
    """Raises:
    BadRequest: names every model that cannot be built; nothing was launched.
    """
    if found:
        trials = len({t for i in found for t in i.trials})
        listed = " ".join(f"[{n + 1}] {i.model} ({len(i.trials)} trials): {i.reason}" for n, i in enumerate(found))
        raise BadRequest(
            f"study {plan.study.name}: {trials} of {len(plan.open)} trials cannot be built. {listed} Nothing was launched",
            hint="drop these values from the axes, or add a constraint that leaves them out",
        )


def _shape_of(config: Any) -> Any:
    """The refiner's settings that its network depends on: learning rates and schedules build the same one."""
    same = {"lr": 1e-3, "weight_decay": 0.0, "warmup_images": 0, "train_images": 1, "ema_images": 0.0, "boundary_share": 0.0}
    return dataclasses.replace(config, **same)


def _build_refiner(e: Experiment, n_bands: int, n_classes: int) -> None:
    import torch

    from idgbr.datasets.index import BandStats
    from idgbr.labels import ClassTable, LabelClass
    from idgbr.refiner.refiner import Refiner

    table = ClassTable(tuple(LabelClass(f"class{i}", (i,), (i, i, i)) for i in range(n_classes)))
    ones = (1.0,) * n_bands
    with torch.device("meta"):
        Refiner.build(e.refiner, n_bands, table, BandStats(ones, ones, ones, ones))


def _error_of(build: Any) -> str | None:
    try:
        build()
    except Exception as error:  # whatever a library raises while building is the reason
        return " ".join(str(error).split()) or type(error).__name__
    return None
