"""Units of work for one worker, and their outcomes. Plain data, no Ray.

A unit is one job, or the sampling and scoring jobs of one refiner, which share one process and so the loaded weights.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import pickle
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from idgbr.config import Experiment
from idgbr.stages import SIMULATED, Job
from sweeps.run.plan import StudyPlan
from sweeps.run.pruning import Watch
from sweeps.study import Trial

MOST_A_UNIT = 24  # sampling jobs; with more, a stop or a lost worker would cost more
ONE_WORKER_STAGES = ("refined", "counts")

Status = Literal["done", "failed", "pruned", "interrupted", "no_space", "outage", "returned"]
BLOCKING: tuple[Status, ...] = ("failed", "pruned", "interrupted", "no_space")  # tasks that need the artefact end alike


@dataclass(frozen=True)
class End:
    """A trial whose last job this is: what its rows need.

    The jobs carry no settings, only what the row records of them.
    """

    study: str
    trial: str
    role: str
    label: str
    experiment: Experiment
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Task:
    """One job, and the trials that are finished with it."""

    job: Job
    experiment: Experiment
    ends: tuple[End, ...] = ()


@dataclass(frozen=True)
class Unit:
    """Tasks done one after the other by one worker, or one training by `workers` of them through Ray Train.

    Args:
        on_cpu: needs no GPU and is placed without one, where others take one.
        group: of a unit that only counts: what its maps were refined with.
        watch: of a search that stops early.
        losses: how often in a row its worker was lost, or its device failed, without the unit having advanced.
        reached: the furthest that a lost attempt came, in images or steps of the task it was at.
        avoid: devices on which it was lost. returned: how often a worker on one of them gave it back.
    """

    tasks: tuple[Task, ...]
    workers: int = 1
    watch: Watch | None = None
    on_cpu: bool = False
    group: str = ""
    losses: int = 0
    reached: float = 0.0
    avoid: tuple[str, ...] = ()
    returned: int = 0

    @property
    def id(self) -> str:
        """Key of the first job."""
        return self.tasks[0].job.key

    @property
    def title(self) -> str:
        """Stage and key of the first job and the number of others, for people."""
        first = self.tasks[0].job
        more = f" and {len(self.tasks) - 1} more" if len(self.tasks) > 1 else ""
        name = f" {first.name}" if first.stage == "backbone" else ""
        return f"{first.stage}{name} {first.key[:8]}{more}"

    @property
    def claim(self) -> str:
        """Name of its claim: trainings are claimed by their key; all sampling of one refiner by the refiner's, and so is
        the counting.
        """
        job = self.tasks[0].job
        if self.group:
            return f"counts-{self.group}"
        if job.stage in ONE_WORKER_STAGES:
            return f"sampling-{job.parents.get('refiner') or job.parents['coarse']}"
        return job.key

    def pack(self) -> str:
        """Text for a Tune config: small, and no library looks into it."""
        return base64.b64encode(zlib.compress(pickle.dumps(self), 1)).decode()

    @staticmethod
    def unpack(text: str) -> Unit:
        """Inverse of `pack`."""
        unit: Unit = pickle.loads(zlib.decompress(base64.b64decode(text)))
        return unit


@dataclass(frozen=True)
class Outcome:
    """Result of one task.

    Args:
        status: done; failed: by an error of the work itself; pruned; interrupted: asked to stop; no_space: the store
            is full;
            outage: device, node, network or store failed; returned: the unit avoids this worker's device.
        device: that the worker used. blames_device: the device or node is the likely cause of the outage.
    """

    key: str
    stage: str
    status: Status
    seconds: float
    error: str | None = None
    trials: tuple[str, ...] = ()
    score: float | None = None
    device: str = ""
    blames_device: bool = False


def end_of(trial: Trial, study: str) -> End:
    """What the rows of a trial need; without the jobs' settings, which the row's writer does not use."""
    jobs = tuple(dataclasses.replace(job, config={}, parents={}) for job in trial.jobs)
    return End(study, trial.id, trial.role, trial.label, trial.experiment, jobs)


def units_of(plan: StudyPlan, slots: int, workers: int = 1, *, apart: bool = False) -> list[Unit]:
    """The jobs to do as units: one for each training or preparation; sampling and scoring grouped by refiner.

    A group is split only as far as all `slots` have something to do, so that weights are loaded about once for each
    worker.

    Args:
        apart: what needs no GPU (data, simulated coarse maps, counts) becomes units of its own that say so.
    """
    ends: dict[str, list[End]] = defaultdict(list)
    for trial in plan.open:
        ends[trial.jobs[-1].key].append(end_of(trial, plan.study.name))
    out: list[Unit] = []
    groups: dict[str, list[list[Task]]] = defaultdict(list)
    wanted = set(plan.to_do)
    for key in plan.to_do:
        job, experiment = plan.jobs[key]
        if job.stage not in ONE_WORKER_STAGES:
            on_cpu = apart and (job.stage == "data" or job.name == SIMULATED)
            out.append(Unit((Task(job, experiment),), workers=workers if job.trains else 1, on_cpu=on_cpu))
    for key, found in ends.items():
        job, experiment = plan.jobs[key]
        refined, refined_experiment = plan.jobs[job.parents["refined"]]
        pair = [Task(refined, refined_experiment)] if refined.key in wanted else []
        groups[refined.parents.get("refiner", refined.parents["coarse"])].append([*pair, Task(job, experiment, tuple(found))])
    total = sum(len(pairs) for pairs in groups.values())
    size = max(1, min(MOST_A_UNIT, math.ceil(total / max(1, 2 * slots))))
    seen: set[str] = set()
    for group, pairs in groups.items():
        pieces = math.ceil(len(pairs) / size)
        each = math.ceil(len(pairs) / pieces)
        for i in range(0, len(pairs), each):
            tasks = tuple(_once(pairs[i : i + each], seen))
            if not apart:
                out.append(Unit(tasks))
                continue
            sampling = tuple(t for t in tasks if t.job.stage == "refined")
            counting = tuple(t for t in tasks if t.job.stage == "counts")
            out += [Unit(sampling)] if sampling else []
            out += [Unit(counting, on_cpu=True, group=group)] if counting else []
    return out


def _once(pairs: list[list[Task]], seen: set[str]) -> Iterator[Task]:
    """Tasks of the pairs; a refined map scored in two ways is made once, and the other unit waits for it."""
    for pair in pairs:
        for task in pair:
            if task.job.key not in seen:
                seen.add(task.job.key)
                yield task
