"""Context of a sweep run: claims on the store, the cluster (or this process), the workers' context, the progress
display.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.session import check_nodes
from idgbr.config import Runtime
from idgbr.errors import Interrupted
from idgbr.store import Store
from sweeps import tables
from sweeps.run import nodes
from sweeps.run import plan as planning
from sweeps.run.capacity import Capacity
from sweeps.run.claims import Claims, drivers
from sweeps.run.gc import Budget
from sweeps.run.head_memory import check_head
from sweeps.run.limits import RunLimits
from sweeps.run.live import LiveRecord
from sweeps.run.options import RunOptions
from sweeps.run.placement import Placement
from sweeps.run.plan import StudyPlan
from sweeps.run.progress import SweepProgress
from sweeps.run.proposer import Proposer
from sweeps.run.schedule import Schedule
from sweeps.run.units import Unit, end_of, units_of
from sweeps.run.worker import WorkerContext, write_end
from sweeps.study import Study

JOBS_A_TRIAL = 3  # of a search: refiner, refined, counts


@dataclass(frozen=True)
class Display:
    """What the progress display counts and names.

    Args:
        total: jobs (`noun`: or trials) to do. seconds: estimate of the whole by past timings, 0 if unknown.
        stages: how many of the jobs are of which stage. goal: the score shown. higher: whether larger is better.
    """

    total: int
    noun: str = "jobs"
    seconds: float = 0.0
    stages: Mapping[str, int] | None = None
    goal: str = "boundary_iou"
    higher: bool = True


@dataclass(frozen=True)
class RunContext:
    """Made by `run_context`; alive inside its block. `capacity` is None where the work is done in this process."""

    study: Study
    worker: WorkerContext
    placement: Placement
    options: RunOptions
    claims: Claims
    slots: int
    capacity: Capacity | None = None
    budget: Budget | None = None

    def schedule(self, plan: StudyPlan, waiting: list[Unit], proposer: Proposer | None = None) -> Schedule:
        """A schedule of these units under the limits of the run."""
        o = self.options
        limits = RunLimits(o.max_failures, o.max_failed, o.budget_gpu_hours)
        return Schedule(
            plan, waiting, self.worker.store, self.claims, self.slots, self.worker.commit, limits=limits, proposer=proposer,
            gpus=self.placement.gpus, least=self.placement.min_workers,
        )  # fmt: skip

    def execute(self, schedule: Schedule, shown: Display) -> bool:
        """Draw from `schedule` until it is finished. False: the user stopped it.

        Raises:
            Missing: the head has too little memory, before anything starts.
            IdgbrError: what ended the study as a whole: a full store, a spent budget, too many failures, no nodes.
            KeyboardInterrupt: at the second Ctrl-C.
        """
        from sweeps.run.callbacks import started
        from sweeps.run.execution import execute_here

        if self.capacity is not None:
            jobs = shown.total * (1 if shown.noun == "jobs" else JOBS_A_TRIAL)
            wide = self.slots // self.placement.workers if self.placement.workers > 1 else 0
            check_head(jobs, min(wide, jobs), say, is_head=nodes.is_on_head())
        why_idle = functools.partial(nodes.why_idle, self.placement) if self.capacity else None
        progress = SweepProgress(
            self.study.name, shown.total, total_seconds=shown.seconds, workers=self.slots, why=schedule.why_waiting, goal=shown.goal,
            higher_is_better=shown.higher, why_idle=why_idle, noun=shown.noun, stages=shown.stages,
        )  # fmt: skip
        progress.budget = self.budget
        progress.observers += started(self.options.callbacks, self.study.name, self.worker.store)
        say(f"{shown.total} {shown.noun} on up to {self.slots} workers; logs: {self.worker.logs}")
        worker = dataclasses.replace(self.worker, goal=shown.goal)
        with progress, LiveRecord(worker.store, self.claims.who, schedule, progress) as live:

            def on_lost(unit: Unit, error: str) -> None:
                live.lost.append(f"{unit.title}: {error}")
                progress.say(f"tried again: {unit.title}: {error}")

            schedule.on_failed = lambda label, error: progress.say(f"failed: {label}: {error}")
            schedule.on_lost = on_lost
            if self.capacity is None:
                is_finished = execute_here(schedule, progress, worker)
            else:
                from sweeps.run.tuner import execute

                is_finished = execute(schedule, progress, worker, self.placement, self.capacity)
        if schedule.fatal:
            raise schedule.fatal
        return is_finished

    def compute(self, made: StudyPlan) -> bool:
        """Everything a plan lists as to do, and the rows of its open trials. False: stopped."""
        if not made.to_do:
            write_rows(made, self.worker)
            return True
        # a lone worker would lose its warm process to each of them: Tune keeps a process while others of its shape are in use
        apart = self.capacity is not None and self.capacity.beside > 0 and (self.slots > 1 or self.capacity.wait_s > 0)
        waiting = units_of(made, self.slots, self.placement.workers, apart=apart)
        cost = planning.cost(made, self.worker.store)
        stages = Counter(task.job.stage for unit in waiting for task in unit.tasks)
        shown = Display(stages.total(), seconds=0.0 if cost.unknown else cost.seconds, stages=stages)
        return self.execute(self.schedule(made, waiting), shown)


def worker_context(store: Store, placement: Placement) -> WorkerContext:
    """What workers need: store, device and precision, commit, folder of the logs."""
    share = placement.gpus if 0 < placement.gpus < 1 else 1.0
    runtime = Runtime(device=placement.device, precision=placement.precision, threads=placement.threads, gpu_share=share)
    logs = Path(store.base if store.is_local else store.cache) / "logs"
    return WorkerContext(store, runtime, commit=tables.git_commit(), logs=logs)


def write_rows(made: StudyPlan, context: WorkerContext) -> None:
    """Rows of trials whose artefacts are all there, of another study or a killed run: no cluster needed."""
    for trial in made.open:
        write_end(end_of(trial, made.study.name), context)


@contextlib.contextmanager
def run_context(study: Study, store: Store, placement: Placement, options: RunOptions) -> Iterator[RunContext]:
    """Claims and a cluster for the time of the block.

    Raises:
        Missing: no cluster, no node that can hold a job, a node that does not see the store. Disagreement: other
            versions on a node.
    """
    worker = dataclasses.replace(worker_context(store, placement), silent_s=options.silent_after, is_own_process=not options.local)
    with contextlib.ExitStack() as stack:
        claims = stack.enter_context(Claims(store, study.name))
        for other in drivers(store):
            if other["driver"] != claims.id:
                say(f"{other['host']} process {other['pid']} also works on this store (study {other['study']}); the work is shared")
        places, capacity = 1, None
        if not options.local:
            is_joined = bool(placement.address or os.environ.get("RAY_ADDRESS"))
            stack.enter_context(nodes.cluster(placement))
            capacity = Capacity(placement, wait_s=options.wait_s if is_joined else 0.0, max_workers=options.max_workers)
            places = capacity.wait(say)
            lost = nodes.free_orphans()
            if lost:
                say(f"freed {lost} placement groups that dead drivers had left on the cluster")
            check_nodes(store)
        budget = Budget(store, options.budget_gb) if options.budget_gb else None
        yield RunContext(study, worker, placement, options, claims, places, capacity, budget)


def say(text: str) -> None:
    """Messages go to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def stopped(what: str, study: Study) -> Interrupted:
    """The user asked to stop; what is done is done."""
    return Interrupted(what, hint=resume_line(study))


def resume_line(study: Study) -> str:
    """The command that was given, as far as it is known: it resumes."""
    words = [w for w in sys.argv[1:] if w != "--retry-failed"]
    return shlex.join(["python", "-m", "sweeps", *words]) if words[:1] == ["run"] else f"python -m sweeps run {shlex.quote(study.name)}"
