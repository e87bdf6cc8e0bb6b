"""Which unit of work may start now. No Ray; `tuner.py` and the loop in this process both take units from it.

Parents come before children. A training over several workers starts only where it fits. Units that other drivers have
claimed are left to them. A failure fails the trials that depend on it; lost units are tried again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

from idgbr.errors import IdgbrError, Missing, NoSpace, SomeFailed
from idgbr.files import unwritable
from idgbr.store import Store
from sweeps import tables
from sweeps.run.claims import Claims, Driver
from sweeps.run.health import Health
from sweeps.run.limits import GpuClock, RunLimits
from sweeps.run.plan import StudyPlan, present
from sweeps.run.proposer import Proposer
from sweeps.run.units import Outcome, Task, Unit, end_of
from sweeps.run.worker import write_failed
from sweeps.study import Trial

T = TypeVar("T")

IDLE_S = 5.0  # a driver without work of its own for so long releases its place on the cluster
RECHECK_S = 2.0  # how often units that another driver has claimed are looked at again
PAUSE_S = 2.0  # before a lost unit is tried again, and twice as long each time
RETURNS = 5  # how often workers may return a unit because it has failed on their device


class Schedule:
    """The state of a run: what waits, runs, is done or failed.

    Args:
        slots: workers that may be busy at once; may change while the schedule runs, as may `cpu_slots`: units that
            need no GPU, at once beside them, and `whole`: trainings over several workers at once where each takes
            its places of one node; None: of any.
        proposer: of a search.
        gpus: of one worker, for the count of GPU-hours. least: workers that a wide training may start with where the
            cluster has no more; 0: all of them.
    """

    def __init__(
        self,
        plan: StudyPlan,
        waiting: Iterable[Unit],
        store: Store,
        claims: Claims,
        slots: int,
        commit: str,
        *,
        limits: RunLimits | None = None,
        proposer: Proposer | None = None,
        gpus: float = 0.0,
        least: int = 0,
    ):
        self.plan, self.store, self.claims, self.slots, self.commit = plan, store, claims, slots, commit
        self.limits, self.proposer, self.cpu_slots, self.least = limits or RunLimits(), proposer, 1, least
        self.health = Health()
        self.whole: int | None = None
        self.waiting: dict[str, Unit] = {}
        self.running: dict[str, Unit] = {}
        self.outcomes: dict[str, Outcome] = {}  # by key
        self.made: set[str] = set(plan.stored)
        self.foreign: dict[str, Driver] = {}  # unit -> who claims it
        self.failed_trials: dict[str, str] = {}
        self.pruned_trials: set[str] = set()
        self.done_trials: set[str] = set()
        self.stopping = False
        self.fatal: IdgbrError | None = None  # what ends the study as a whole: a full disk, a limit
        self.on_failed: Callable[[str, str], None] = lambda label, error: None
        self.on_lost: Callable[[Unit, str], None] = lambda unit, error: None
        self.gpu_time = GpuClock(gpus)
        self._not_before: dict[str, float] = {}  # waiting unit -> when it may be tried again
        self._furthest: dict[str, float] = {}  # running unit -> the furthest its present task has come
        self._advanced: set[str] = set()  # running units that have finished a task in this attempt
        self._expected: set[str] = set()  # keys that some unit makes
        self._checked, self._ran = 0.0, time.monotonic()
        self._claimed: dict[str, int] = defaultdict(int)
        self._trials: dict[str, Trial] = {}
        self._users: dict[str, list[Trial]] = defaultdict(list)
        self.add(waiting, plan.open)

    def add(self, units: Iterable[Unit], trials: Iterable[Trial]) -> None:
        """Further work, and the trials that it is for."""
        for trial in trials:
            if trial.id not in self._trials:
                self._trials[trial.id] = trial
                for job in trial.jobs:
                    self._users[job.key].append(trial)
        for unit in units:
            tasks = tuple(t for t in unit.tasks if t.ends or not (t.job.key in self.made or t.job.key in self._expected))
            if tasks:
                unit = dataclasses.replace(unit, tasks=tasks)
                self.waiting[unit.id] = unit
                self._expected |= {t.job.key for t in tasks}

    @property
    def is_finished(self) -> bool:
        """Whether nothing runs, and nothing more can be started."""
        if self.running:
            return False
        return self.stopping or (not self.waiting and (self.proposer is None or self.proposer.is_exhausted))

    @property
    def is_idle(self) -> bool:
        """For some seconds all that is left has been claimed by other drivers, or waits for their artefacts. A unit that
        waits only for a place, or for the end of its pause, is this driver's.
        """
        if self.running or self.is_finished or time.monotonic() - self._ran <= IDLE_S:
            return False
        return not any(u.id not in self.foreign and self._is_ready(u) for u in self.waiting.values())

    @property
    def busy(self) -> int:
        """Number of workers that the running units occupy, those without a GPU beside others left out."""
        return sum(u.workers for u in self.running.values() if not u.on_cpu)

    # ---- what may start ----------------------------------------------------------------------------------------------

    def take(self) -> Unit | None:
        """The next unit that may start, or None: nothing now, ask again. It counts as running until `complete`."""
        if self.stopping:
            return None
        if self.limits.gpu_hours and self.gpu_time.hours > self.limits.gpu_hours:
            hint = "the same command goes on, with as many GPU-hours more"
            self.stop_for(Missing(f"the budget of {self.limits.gpu_hours:g} GPU-hours is spent", hint=hint))
            return None
        unit = self._take_waiting()
        while unit is None and self.proposer is not None and self.busy < self.slots and not (self._is_wide_waiting() or self._is_emptying):
            proposal = self._guarded(self.proposer.propose)
            if proposal is None:
                break
            self.add(*proposal)
            unit = self._take_waiting()
        return unit

    def _is_wide_waiting(self) -> bool:
        return any(u.workers > 1 and self._is_ready(u) for u in self.waiting.values())

    @property
    def _is_emptying(self) -> bool:
        """A training waits for a node of its own: until it has reported, small units would take places that become free there."""
        wide = (u.id for u in self.running.values() if u.workers > 1)
        return self.whole is not None and any(i not in self._furthest and i not in self._advanced for i in wide)

    def _take_waiting(self) -> Unit | None:
        self._recheck()
        now, busy, wide = time.monotonic(), self.busy, [u.id for u in self.running.values() if u.workers > 1]
        is_full, is_cpu_full = False, sum(u.on_cpu for u in self.running.values()) >= self.cpu_slots
        is_emptying = self._is_emptying
        for unit in list(self.waiting.values()):
            if is_cpu_full if unit.on_cpu else is_full or (is_emptying and unit.workers == 1):
                continue
            if unit.workers > 1 and self.whole is not None and len(wide) >= self.whole:
                continue  # it would wait for a node that another one holds; small units may use what that leaves
            if unit.id in self.foreign or self._not_before.get(unit.id, 0.0) > now or not self._is_ready(unit):
                continue
            if not unit.on_cpu and busy + min(unit.workers, max(self.slots, self.least or unit.workers)) > self.slots:
                is_full = True  # a training over several workers waits for room; small units must not overtake it, or it would starve
                continue
            holder = self.claims.take(unit.claim)
            if holder is not None:
                self.foreign[unit.id] = holder
                continue
            left = self._left(unit)
            del self.waiting[unit.id]
            self._not_before.pop(unit.id, None)
            if left is None:  # another driver has done it between our plan and now
                self._release(unit.claim)
                continue
            self._claimed[unit.claim] += 1
            self.running[left.id] = left
            self._ran = now
            return left
        return None

    def _left(self, unit: Unit) -> Unit | None:
        """The tasks of a unit that are still to do, by the present state of the store; None: none."""
        self.made |= present(self.store, [t.job for t in unit.tasks])
        status = tables.statuses(self.store, self.plan.study.name) if any(t.ends for t in unit.tasks) else {}
        tasks = []
        for task in unit.tasks:
            open_ends = [e for e in task.ends if status.get(e.trial) != "done"]
            self._finish_trials({e.trial for e in task.ends} - {e.trial for e in open_ends})
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
        claimed, self.foreign = [self.waiting[i] for i in self.foreign if i in self.waiting], {}
        for unit in claimed:
            holder = self.claims.take(unit.claim)
            if holder is not None:
                self.foreign[unit.id] = holder
                self.made |= present(self.store, [t.job for t in unit.tasks])
            elif self._left(unit) is None:
                del self.waiting[unit.id]
                self._release(unit.claim)

    # ---- outcomes ----------------------------------------------------------------------------------------------------

    def started(self, unit_id: str, device: str = "") -> None:
        """A worker has started the unit and holds its GPUs from now on."""
        unit = self.running[unit_id]
        self.gpu_time.start(unit_id, 0 if unit.on_cpu else unit.workers, device)
        self.health.used(device)

    def advanced(self, unit_id: str, done: float) -> None:
        """The unit reports how far its present task is, in images or steps."""
        self._furthest[unit_id] = max(done, self._furthest.get(unit_id, 0.0))

    def finish_task(self, outcome: Outcome, unit_id: str = "") -> None:
        """One task has ended. Trials that can no longer finish get their rows."""
        if outcome.status in ("outage", "returned") or (outcome.key in self.outcomes and self.outcomes[outcome.key].status == "done"):
            return
        self.outcomes[outcome.key] = outcome
        if unit_id:
            self._advanced.add(unit_id)
            self._furthest.pop(unit_id, None)
        if outcome.status == "done":
            self.made.add(outcome.key)
            self.health.succeeded(outcome.device)
            self._finish_trials(outcome.trials)
        elif outcome.status in ("failed", "pruned"):
            self._expected.discard(outcome.key)
            self._fail(outcome)
        elif outcome.status == "no_space":
            self.stop_for(NoSpace(outcome.error or "no space left", hint="free some space (python -m sweeps gc --dry-run)"))

    def complete(self, unit_id: str, lost: str | None = None, device: str = "", blames_device: bool = True) -> None:
        """A unit has ended.

        `lost`: its worker was lost or an outage ended it; its unfinished tasks are tried again, elsewhere.
        """
        unit = self.running.pop(unit_id, None)
        if unit is None:
            return
        self.gpu_time.stop(unit.id)
        if lost is not None:
            self._requeue(unit, lost, device, blames_device)
        self._advanced.discard(unit_id)
        self._furthest.pop(unit_id, None)
        self._ran = time.monotonic()
        self._claimed[unit.claim] -= 1
        self._release(unit.claim)

    def give_back(self, unit_id: str) -> None:
        """A worker whose device the unit avoids has returned it."""
        unit = self.running.pop(unit_id, None)
        if unit is not None:
            self.gpu_time.stop(unit.id)
            self._claimed[unit.claim] -= 1
            self._wait(dataclasses.replace(unit, returned=unit.returned + 1), PAUSE_S / 2)

    def _requeue(self, unit: Unit, lost: str, device: str, blames_device: bool) -> None:
        tasks = tuple(t for t in unit.tasks if t.job.key not in self.outcomes)
        if not tasks:
            return
        if device and blames_device:
            self.health.failed(device, unit.id, lost)
        furthest = self._furthest.get(unit.id, 0.0)
        has_advanced = unit.id in self._advanced or furthest > unit.reached
        losses = 1 if has_advanced else unit.losses + 1
        if losses > self.limits.max_failures:
            self.health.withdraw(unit.id)
            for task in tasks:
                if task.job.key not in self.outcomes:
                    error = f"{task.job.stage} {task.job.key[:8]}: {lost}, {losses} times without having advanced"
                    self.finish_task(Outcome(task.job.key, task.job.stage, "failed", 0.0, error))
            return
        self.on_lost(unit, lost)
        avoid = tuple(dict.fromkeys((*unit.avoid, device))) if device else unit.avoid
        again = dataclasses.replace(unit, tasks=tasks, losses=losses, reached=max(furthest, unit.reached), avoid=avoid, returned=0)
        self._wait(again, PAUSE_S * 2 ** (losses - 1))

    def _wait(self, unit: Unit, pause_s: float) -> None:
        self.waiting[unit.id] = unit
        self._not_before[unit.id] = time.monotonic() + pause_s

    def stop_for(self, error: IdgbrError) -> None:
        """End the study: nothing more starts, what runs is asked to stop."""
        self.fatal, self.stopping = self.fatal or error, True

    def _finish_trials(self, ids: Iterable[str]) -> None:
        for trial in self.trials_of(ids):
            if trial.id not in self.done_trials:
                self.done_trials.add(trial.id)
                self._tell_proposer(trial, "done", None)

    def _fail(self, outcome: Outcome) -> None:
        error = outcome.error or outcome.status
        for trial in self._users[outcome.key]:
            if trial.id in self.failed_trials or trial.id in self.pruned_trials or trial.id in self.done_trials:
                continue
            try:
                write_failed(end_of(trial, self.plan.study.name), error, self.store, self.commit, status=outcome.status)
            except Missing as problem:  # no room even for the row: the trial stays open, and the study ends
                self.stop_for(problem)
                return
            if outcome.status == "failed":
                self.failed_trials[trial.id] = error
                self.on_failed(trial.label, error)
            else:
                self.pruned_trials.add(trial.id)
            self._tell_proposer(trial, outcome.status, error)
        self._drop_dependents(outcome, error)
        if self.limits.max_failed and len(self.failed_trials) > self.limits.max_failed:
            self.stop_for(
                SomeFailed(
                    f"{len(self.failed_trials)} trials have failed for reasons of their own",
                    value=error, allowed=f"--max-failed {self.limits.max_failed}", hint="fix the cause, then --retry-failed",
                )
            )  # fmt: skip

    def _drop_dependents(self, outcome: Outcome, error: str) -> None:
        """Drop the waiting tasks that need an artefact that will not be made."""
        for unit in list(self.waiting.values()):
            if self.waiting.get(unit.id) is not unit:  # dropped with another task meanwhile
                continue
            kept, lost = list[Task](), {outcome.key}
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
                rest = dataclasses.replace(unit, tasks=tuple(kept))
                self.waiting[rest.id] = rest
            for task in unit.tasks:
                if task.job.key in lost - {outcome.key}:
                    self.finish_task(Outcome(task.job.key, task.job.stage, outcome.status, 0.0, error))

    def _tell_proposer(self, trial: Trial, status: str, error: str | None) -> None:
        proposer = self.proposer
        if proposer is not None:
            self._guarded(lambda: proposer.ended(trial, status, error))

    def _guarded(self, work: Callable[[], T]) -> T | None:
        """`work()`.

        If the journal of a search cannot be written, the study ends; the next run resumes its open proposals.
        """
        try:
            return work() if self.fatal is None else None
        except (OSError, Missing) as error:
            self.stop_for(unwritable(f"the journal of {self.plan.study.name}", error) if isinstance(error, OSError) else error)
            return None

    def _release(self, claim: str) -> None:
        """Release a claim when no unit of it runs or waits here."""
        if not self._claimed[claim] and not any(u.claim == claim for u in self.waiting.values()):
            with contextlib.suppress(IdgbrError, OSError):  # the claim ends with this driver anyway
                self.claims.release(claim)

    # ---- queries -----------------------------------------------------------------------------------------------------

    def needed(self) -> set[str]:
        """Keys that waiting and running units will read or write."""
        tasks = [t for unit in (*self.waiting.values(), *self.running.values()) for t in unit.tasks]
        own = {key for t in tasks for key in (t.job.key, *t.job.parents.values())}
        return own | (self.proposer.needed() if self.proposer is not None else set())

    def trials_of(self, ids: Iterable[str]) -> list[Trial]:
        """Trials by id; unknown ids are left out."""
        return [self._trials[i] for i in ids if i in self._trials]

    def why_waiting(self) -> str:
        """One sentence for the watchdog and the display."""
        if self.stopping:
            return f"stopping: {len(self.running)} running jobs write their checkpoints"
        if self.foreign:
            holder = next(iter(self.foreign.values()))
            return f"{len(self.foreign)} units are claimed by another driver ({holder['host']} process {holder['pid']})"
        if self.waiting and not any(self._is_ready(u) for u in self.waiting.values()):
            return f"{len(self.waiting)} units wait for what is running"
        return ""
