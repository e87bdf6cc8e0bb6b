"""Shared by both ways to run a schedule: recording of outcomes, Ctrl-C; and the loop in this process (`--local`)."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator, Mapping
from types import FrameType

from sweeps.run.progress import SweepProgress
from sweeps.run.reports import furthest
from sweeps.run.schedule import Schedule
from sweeps.run.units import Outcome
from sweeps.run.worker import WorkerContext, work


def record(outcome: Outcome, unit_id: str, schedule: Schedule, progress: SweepProgress) -> None:
    """Record the outcome of one task in the schedule and the display."""
    known = schedule.outcomes.get(outcome.key)
    if known is not None and known.status == outcome.status:
        return
    trials = tuple(outcome.trials)
    schedule.finish_task(dataclasses.replace(outcome, trials=trials), unit_id)
    if outcome.status in ("outage", "returned"):
        return
    ended = schedule.trials_of(trials) if trials else []
    if progress.budget is not None and outcome.status == "done":
        problem = progress.budget.spend(outcome.stage, outcome.key, schedule.needed())
        if problem is not None and not schedule.stopping:
            schedule.stop_for(problem)
    for trial in ended:
        for observer in progress.observers:
            observer.trial(trial, outcome.score, progress.goal)
    if progress.noun == "jobs" or outcome.stage == "counts":  # the total of a search is one of trials: what comes before is not known
        label = ended[0].label if ended else ""
        progress.finish(outcome.status, outcome.seconds, label, outcome.score, outcome.stage)


def execute_here(schedule: Schedule, progress: SweepProgress, context: WorkerContext) -> bool:
    """Run the schedule to its end in this process, one unit after the other. False: it was stopped before."""

    def stop() -> bool:
        return schedule.stopping

    with interruptible(schedule, progress):
        while not schedule.is_finished:
            unit = schedule.take()
            if unit is None:
                time.sleep(0.2)  # another driver has claimed what is left, or a lost unit pauses
                continue
            progress.start(unit.id, unit.title)
            schedule.started(unit.id)

            def report(values: Mapping[str, object] | None = None, _unit: str = unit.id, **more: object) -> None:
                reported = {**(values or {}), **more}
                schedule.advanced(_unit, furthest(reported))
                progress.report(_unit, reported)

            lost = None
            for outcome in work(unit, dataclasses.replace(context, report=report, stop=stop)):
                record(outcome, unit.id, schedule, progress)
                if outcome.status == "outage":
                    lost = outcome.error or "an outage"
            progress.leave(unit.id)
            schedule.complete(unit.id, lost)
    return not schedule.stopping


@contextlib.contextmanager
def interruptible(schedule: Schedule, progress: SweepProgress) -> Iterator[None]:
    """First Ctrl-C (or SIGTERM): start nothing more, let running trainings write a checkpoint.

    Second: KeyboardInterrupt at once.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        if schedule.stopping:
            raise KeyboardInterrupt
        schedule.stopping = True
        progress.say("stopping: what runs writes its checkpoint or its rows; once more to stop at once")

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                before[number] = signal.signal(number, on_signal)
            except ValueError:  # not the main thread: whoever embeds the sweep keeps the signals
                break
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
