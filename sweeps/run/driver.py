"""Where a run works: its claims, the cluster or this process, the desk of its workers, the progress display."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idgbr.config import Runtime
from idgbr.errors import IdgbrError, Missing
from idgbr.store import Store
from sweeps import tables
from sweeps.run import nodes
from sweeps.run import plan as planning
from sweeps.run.claims import Claims, drivers
from sweeps.run.gc import Budget
from sweeps.run.placement import Placement, slots
from sweeps.run.plan import Plan
from sweeps.run.progress import Progress
from sweeps.run.schedule import Schedule, end_of, units
from sweeps.run.worker import Desk, write_end
from sweeps.study import Study


@dataclass
class Workplace:
    """Made by `workplace`; alive inside its block."""

    study: Study
    desk: Desk
    placement: Placement
    claims: Claims
    slots: int
    local: bool
    callbacks: tuple[str, ...] = ()
    budget: Budget | None = None

    @property
    def commit(self) -> str:
        return self.desk.commit

    def execute(
        self,
        schedule: Any,
        total: int,
        *,
        noun: str = "jobs",
        total_seconds: float = 0.0,
        stages: Mapping[str, int] | None = None,
        goal: str = "boundary_iou",
        higher: bool = True,
    ) -> bool:
        """Draw from `schedule` until it is finished. False: the user stopped it.

        Raises:
            Missing: the disk is full, or the budget is spent. KeyboardInterrupt: at the second Ctrl-C.
        """
        from sweeps.run import tuner
        from sweeps.run.callbacks import started

        self.desk.goal = goal
        title = self.study.name
        progress = Progress(
            title, total, total_seconds=total_seconds, workers=self.slots, why=schedule.why_waiting, goal=goal, higher_is_better=higher,
            why_idle=None if self.local else functools.partial(nodes.why_idle, self.placement), noun=noun, stages=stages,
        )  # fmt: skip
        progress.budget = self.budget
        progress.observers += started(self.callbacks, self.study.name, self.desk.store)
        say(f"{total} {noun} on up to {self.slots} workers; logs: {self.desk.logs}")
        with progress:
            schedule.on_failed = lambda label, error: progress.say(f"failed: {label}: {error}")
            if self.local:
                is_finished = tuner.execute_here(schedule, progress, self.desk)
            else:
                is_finished = tuner.execute(schedule, progress, self.desk, self.placement)
        if schedule.fatal:
            raise Missing(f"{self.study.name} has stopped: {schedule.fatal}", hint="the same command goes on when there is room")
        return is_finished

    def compute(self, made: Plan) -> bool:
        """Everything a plan lists as to do, and the rows of its open trials. False: stopped."""
        if not made.to_do:
            write_rows(made, self.desk)
            return True
        waiting = units(made, self.slots, self.placement.workers)
        schedule = Schedule(made, waiting, self.desk.store, self.claims, self.slots, self.commit)
        cost = planning.cost(made, self.desk.store)
        seconds = 0.0 if cost.unknown else cost.seconds
        stages = Counter(task.job.stage for unit in waiting for task in unit.tasks)
        return self.execute(schedule, stages.total(), total_seconds=seconds, stages=stages)


def desk_of(store: Store, placement: Placement) -> Desk:
    runtime = Runtime(device=placement.device, precision=placement.precision, threads=placement.threads)
    logs = Path(store.base if store.is_local else store.cache) / "logs"
    return Desk(store, runtime, commit=tables.git_commit(), logs=logs)


def write_rows(made: Plan, desk: Desk) -> None:
    """Rows of trials whose artefacts are all there, of another study or a killed run: no cluster needed."""
    for trial in made.open:
        write_end(end_of(trial, made.study.name), desk)


@contextlib.contextmanager
def workplace(
    study: Study, store: Store, placement: Placement, *, local: bool = False, callbacks: Iterable[str] = (), budget_gb: float = 0.0
) -> Iterator[Workplace]:
    """Claims and a cluster for the time of the block.

    Raises:
        Missing: no cluster, no node that can hold a job, a node that does not see the store. Disagreement: other versions on a node.
    """
    desk = desk_of(store, placement)
    with contextlib.ExitStack() as stack:
        claims = stack.enter_context(Claims(store, study.name))
        for other in drivers(store):
            if other["driver"] != claims.id:
                say(f"{other['host']} process {other['pid']} also works on this store (study {other['study']}); the work is shared")
        places = 1
        if not local:
            places = slots(placement, stack.enter_context(nodes.cluster(placement)))
            lost = nodes.free_orphans()
            if lost:
                say(f"freed {lost} placement groups that dead drivers had left on the cluster")
            nodes.check_nodes(store, tables.versions())
        yield Workplace(study, desk, placement, claims, places, local, tuple(callbacks), Budget(store, budget_gb) if budget_gb else None)


def say(text: str) -> None:
    """Talk goes to stderr."""
    print(text, file=sys.stderr, flush=True)


class Stopped(IdgbrError):
    """The user asked to stop; what is done is done."""

    exit_code = 130


def resume_line(study: Study) -> str:
    """The command that was given, as far as it is known: it resumes."""
    words = [w for w in sys.argv[1:] if w != "--retry-failed"]
    return shlex.join(["python", "-m", "sweeps", *words]) if words[:1] == ["run"] else f"python -m sweeps run {shlex.quote(study.name)}"
