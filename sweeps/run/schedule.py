"""Which unit of work may start now: parents before children, several-worker trainings only where they fit, claims of other drivers
respected, failures passed on. No Ray; `tuner.py` and the loop in this process both draw from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from idgbr.errors import IdgbrError, Missing
from idgbr.store import Store
from sweeps import tables
from sweeps.run.claims import Claims
from sweeps.run.plan import Plan, present
from sweeps.run.worker import End, Outcome, Task, Unit, strip, write_failed
from sweeps.study import Trial

MOST_A_UNIT = 24  # sampling jobs; more would only make a stop or a lost worker dearer
IDLE_S = 5.0  # without anything of its own to do, a driver lets go of its place on the cluster
RECHECK_S = 2.0  # how often units that another driver has claimed are looked at again


def end_of(trial: Trial, study: str) -> End:
    return End(study, trial.id, trial.role, trial.label, trial.experiment, tuple(strip(j) for j in trial.jobs))


def units(plan: Plan, slots: int, workers: int = 1) -> list[Unit]:
    """What is to do, cut into units: one training or preparation each; sampling and scoring grouped by refiner.

    A group is split only as far as all `slots` have something to do, so that weights are loaded about once for each worker.
    """
    ends: dict[str, list[End]] = defaultdict(list)
    for trial in plan.open:
        ends[trial.jobs[-1].key].append(end_of(trial, plan.study.name))
    out: list[Unit] = []
    groups: dict[str, list[list[Task]]] = defaultdict(list)
    wanted = set(plan.to_do)
    for key in plan.to_do:
        job, experiment = plan.jobs[key]
        if job.stage not in ("refined", "counts"):
            out.append(Unit((Task(job, experiment),), workers=workers if job.trains else 1))
    for key, found in ends.items():
        job, experiment = plan.jobs[key]
        refined, refined_experiment = plan.jobs[job.parents["refined"]]
        pair = [Task(refined, refined_experiment)] if refined.key in wanted else []
        groups[refined.parents.get("refiner", refined.parents["coarse"])].append([*pair, Task(job, experiment, tuple(found))])
    total = sum(len(pairs) for pairs in groups.values())
    size = max(1, min(MOST_A_UNIT, math.ceil(total / max(1, 2 * slots))))
    seen: set[str] = set()
    for pairs in groups.values():
        pieces = math.ceil(len(pairs) / size)
        each = math.ceil(len(pairs) / pieces)
        out += [Unit(tuple(_once(pairs[i : i + each], seen))) for i in range(0, len(pairs), each)]
    return out


def _once(pairs: list[list[Task]], seen: set[str]) -> Iterator[Task]:
    """Tasks of the pairs; a refined map scored in two ways is made once, and the other unit waits for it."""
    for pair in pairs:
        for task in pair:
            if task.job.key not in seen:
                seen.add(task.job.key)
                yield task


def claim_of(unit: Unit) -> str:
    """Trainings are claimed by their key; all sampling of one refiner by the refiner's."""
    job = unit.tasks[0].job
    if job.stage in ("refined", "counts"):
        return f"sampling-{job.parents.get('refiner') or job.parents['coarse']}"
    return job.key


class Schedule:
    """The state of a run: what waits, runs, is done or failed. `slots` counts workers that may be busy at once."""

    def __init__(self, plan: Plan, waiting: Iterable[Unit], store: Store, claims: Claims, slots: int, commit: str):
        self.plan, self.store, self.claims, self.slots, self.commit = plan, store, claims, slots, commit
        self.waiting: dict[str, Unit] = {u.id: u for u in waiting}
        self.running: dict[str, Unit] = {}
        self.outcomes: dict[str, Outcome] = {}  # by key
        self.made: set[str] = set(plan.stored)
        self.foreign: dict[str, dict[str, Any]] = {}  # unit -> who claims it
        self.failed_trials: dict[str, str] = {}
        self.done_trials: set[str] = set()
        self.stopping = False
        self.fatal: str | None = None  # what ends the study as a whole: a full disk
        self.on_failed: Callable[[str, str], None] | None = None
        self._checked = 0.0
        self._ran = time.monotonic()
        self._claimed: dict[str, int] = defaultdict(int)
        self._trials = {t.id: t for t in plan.open}
        self._users: dict[str, list[Trial]] = defaultdict(list)
        for trial in plan.open:
            for job in trial.jobs:
                self._users[job.key].append(trial)

    @property
    def is_finished(self) -> bool:
        return not self.running and (self.stopping or not self.waiting)

    @property
    def is_idle(self) -> bool:
        """For some seconds everything that is left has lain with other drivers, or waits for what they make."""
        return not self.running and not self.is_finished and time.monotonic() - self._ran > IDLE_S

    @property
    def busy(self) -> int:
        return sum(u.workers for u in self.running.values())

    def take(self) -> Unit | None:
        """The next unit that may start, or None: nothing now, ask again. It counts as running until `complete`."""
        if self.stopping:
            return None
        self._recheck()
        for unit in list(self.waiting.values()):
            if unit.id in self.foreign or not self._is_ready(unit):
                continue
            if self.busy + unit.workers > self.slots:
                return None  # a wide training waits for room; letting small ones pass would starve it
            claim = claim_of(unit)
            holder = self.claims.take(claim)
            if holder is not None:
                self.foreign[unit.id] = holder
                continue
            left = self._left(unit)
            del self.waiting[unit.id]
            if left is None:  # another driver has done it between our plan and now
                self._release(claim)
                continue
            self._claimed[claim] += 1
            self.running[left.id] = left
            self._ran = time.monotonic()
            return left
        return None

    def _left(self, unit: Unit) -> Unit | None:
        """What of a unit is still to do, by the store as it is now."""
        self.made |= present(self.store, [t.job for t in unit.tasks])
        status = tables.statuses(self.store, self.plan.study.name) if any(t.ends for t in unit.tasks) else {}
        tasks = []
        for task in unit.tasks:
            open_ends = [e for e in task.ends if status.get(e.trial) != "done"]
            self.done_trials |= {e.trial for e in task.ends} - {e.trial for e in open_ends}
            if task.job.key not in self.made or open_ends:
                tasks.append(task)
        return dataclasses.replace(unit, tasks=tuple(tasks)) if tasks else None

    def _is_ready(self, unit: Unit) -> bool:
        own = {t.job.key for t in unit.tasks}
        return all(p in self.made or p in own for t in unit.tasks for p in t.job.parents.values())

    def _recheck(self) -> None:
        """Units of other drivers: done meanwhile, or free again."""
        if not self.foreign or time.monotonic() - self._checked < RECHECK_S:
            return
        self._checked = time.monotonic()
        claimed = [self.waiting[i] for i in self.foreign if i in self.waiting]
        self.foreign.clear()
        for unit in claimed:
            holder = self.claims.take(claim_of(unit))
            if holder is not None:
                self.foreign[unit.id] = holder
                self.made |= present(self.store, [t.job for t in unit.tasks])
            elif self._left(unit) is None:
                del self.waiting[unit.id]
                self._release(claim_of(unit))

    def finish_task(self, outcome: Outcome) -> None:
        """One task has come to its end; rows of trials that can no longer finish are written."""
        if outcome.key in self.outcomes and self.outcomes[outcome.key].status == "done":
            return
        self.outcomes[outcome.key] = outcome
        if outcome.status == "done":
            self.made.add(outcome.key)
            self.done_trials |= set(outcome.trials)
        elif outcome.status == "failed":
            self._fail(outcome)
        elif outcome.status == "no_space":
            self.fatal, self.stopping = outcome.error, True

    def _fail(self, outcome: Outcome) -> None:
        error = outcome.error or "failed"
        for trial in self._users[outcome.key]:
            if trial.id not in self.failed_trials and trial.id not in self.done_trials:
                self.failed_trials[trial.id] = error
                try:
                    write_failed(end_of(trial, self.plan.study.name), error, self.store, self.commit)
                except Missing as problem:  # no room even for the row: the trial stays open, and the study ends
                    self.fatal, self.stopping = str(problem), True
                    return
                if self.on_failed:
                    self.on_failed(trial.label, error)
        for unit in list(self.waiting.values()):  # what needs the artefact will never be ready
            kept, lost = [], {outcome.key}
            for task in unit.tasks:
                if lost & {task.job.key, *task.job.parents.values()}:
                    lost.add(task.job.key)
                else:
                    kept.append(task)
            if len(kept) == len(unit.tasks):
                continue
            del self.waiting[unit.id]
            self.foreign.pop(unit.id, None)
            if kept:
                self.waiting[kept[0].job.key] = Unit(tuple(kept), unit.workers)
            for key in lost - {outcome.key}:
                self.finish_task(Outcome(key, self.plan.jobs[key][0].stage, "failed", 0.0, error))

    def complete(self, unit_id: str, error: str | None = None) -> None:
        """A unit has left its worker. `error`: the worker was lost, and so are the tasks that it had not finished."""
        unit = self.running.pop(unit_id, None)
        if unit is None:
            return
        if error is not None:
            for task in unit.tasks:
                if task.job.key not in self.outcomes:
                    self.finish_task(Outcome(task.job.key, task.job.stage, "failed", 0.0, f"{task.job.stage} {task.job.key[:8]}: {error}"))
        self._ran = time.monotonic()
        claim = claim_of(unit)
        self._claimed[claim] -= 1
        self._release(claim)

    def _release(self, claim: str) -> None:
        """Give a claim back when nothing of it runs or waits here."""
        if not self._claimed[claim] and not any(claim_of(u) == claim for u in self.waiting.values()):
            with contextlib.suppress(IdgbrError, OSError):  # the claim dies with this driver anyway
                self.claims.release(claim)

    def needed(self) -> set[str]:
        """Keys that what waits and runs will read or write."""
        tasks = [t for unit in (*self.waiting.values(), *self.running.values()) for t in unit.tasks]
        return {key for t in tasks for key in (t.job.key, *t.job.parents.values())}

    def trials_of(self, ids: Iterable[str]) -> list[Trial]:
        return [self._trials[i] for i in ids if i in self._trials]

    def why_waiting(self) -> str:
        """One sentence for the watchdog and the display."""
        if self.stopping:
            return f"stopping: {len(self.running)} running jobs write their checkpoints"
        if self.foreign:
            holder = next(iter(self.foreign.values()))
            return f"{len(self.foreign)} units are in the hands of another driver ({holder['host']} process {holder['pid']})"
        if self.waiting and not any(self._is_ready(u) for u in self.waiting.values()):
            return f"{len(self.waiting)} units wait for what is running"
        return ""
