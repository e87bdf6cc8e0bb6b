"""The only Ray Tune file: one Tune run over unique units of work, parents first.

Tune serves as a pool of reused actors on placement groups. Its searcher hands out a unit as soon as its inputs are
stored, so a slow training delays only its own children. A unit is a function trial on a reused actor, whose process
keeps torch and the last weights. Only trainings over several workers use Ray Train. The schedule decides about
retries, so Tune itself retries nothing. Tune's own folder is temporary: made for the run and deleted after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from idgbr.errors import Outage
from idgbr.files import unwritable
from idgbr.stages import Trainer
from sweeps.run.capacity import Capacity
from sweeps.run.control import ControlReader, ControlWriter, Directives, device_name, start_control
from sweeps.run.execution import interruptible, record
from sweeps.run.placement import Placement
from sweeps.run.placement_groups import patient_groups
from sweeps.run.progress import SweepProgress
from sweeps.run.reports import furthest
from sweeps.run.schedule import RETURNS, Schedule
from sweeps.run.units import Outcome, Unit
from sweeps.run.worker import WorkerContext, log_of, why_too_small, work

if TYPE_CHECKING:
    from ray import tune
    from ray.actor import ActorHandle
    from ray.tune.experiment import Trial as TuneTrial
    from ray.tune.search import Searcher

POLL_S = 0.5
REPORT_S = 2.0
PLACE_S = 900.0  # how long the workers of one training wait for their places; after six times the training has failed
HOLD_S = 20.0  # how long a worker keeps its device busy after it has returned a unit that avoids the device
HOLD_POLL_S = 1.0
MOST_PENDING = 10_000  # Tune's own limit is not used: the schedule decides how many units wait for a place
LOST = "its worker was lost (out of memory, or the node died)"


class UnitConfig(TypedDict):
    """Tune's config of a unit: the unit packed, its id, how many workers share it, and whether it needs no GPU."""

    unit: str
    id: str
    workers: int
    on_cpu: bool


# ---- in the workers --------------------------------------------------------------------------------------------------


def trainable(context: WorkerContext, control: ActorHandle, placement: Placement) -> Callable[[UnitConfig], None]:
    """The function Tune runs: one packed unit. An outcome is reported once its rows are in the store."""
    folder = os.getcwd()

    def unit_of_work(config: UnitConfig) -> None:
        from ray import tune

        if os.path.isdir(folder):  # relative paths in settings are the driver's; a cluster's workers start where `ray start` was given
            os.chdir(folder)
        unit, reader, last_report = Unit.unpack(config["unit"]), ControlReader(control), 0.0
        device = "" if unit.workers > 1 else device_name()
        tune.report({"unit": unit.id, "device": device})
        is_elsewhere = unit.returned < RETURNS and (device in unit.avoid or bool(why_too_small(unit, context.runtime)))
        if device in reader.directives(now=True).left_out or is_elsewhere:
            _return(unit, device, reader)
            return

        def report(values: Mapping[str, object] | None = None, **more: object) -> None:
            nonlocal last_report
            now = time.monotonic()
            if now - last_report >= REPORT_S:
                last_report = now
                tune.report({"unit": unit.id, "progress": json.dumps({**(values or {}), **more}, default=str)})

        def stop() -> bool:
            return reader.directives().stop

        fit = sharded_fit(placement, context) if unit.workers > 1 else None
        runtime = dataclasses.replace(context.runtime, device="cpu") if unit.on_cpu else context.runtime
        here = dataclasses.replace(context, runtime=runtime, report=report, stop=stop, fit=fit, device=device)
        for outcome in work(unit, here):
            tune.report({"unit": unit.id, "outcome": json.dumps(dataclasses.asdict(outcome))})
            if outcome.status == "outage":
                raise Outage(outcome.error or "outage")  # ends this process: a process whose device has failed is not used again

    return unit_of_work


def _return(unit: Unit, device: str, reader: ControlReader) -> None:
    """Return a unit, and keep the device occupied so that Ray places the unit elsewhere."""
    from ray import tune

    job = unit.tasks[0].job
    returned = Outcome(job.key, job.stage, "returned", 0.0, device=device)
    tune.report({"unit": unit.id, "outcome": json.dumps(dataclasses.asdict(returned))})
    hold(device, reader)


def hold(device: str, reader: ControlReader) -> None:
    """Wait `HOLD_S`; less where such workers occupy every place; where the device is left out, to the end of the run."""
    until = time.monotonic() + HOLD_S
    while not (reader.directives().over or reader.last.stop):
        if device not in reader.last.left_out and (reader.last.crowded or time.monotonic() >= until):
            return
        time.sleep(HOLD_POLL_S)


def sharded_fit(placement: Placement, context: WorkerContext) -> Trainer:
    """Trainings over several workers through Ray Train."""
    from cluster.train import RayTraining

    p = placement
    return RayTraining(
        p.workers, p.min_workers, p.sharding, p.cpus, p.gpus, start_timeout_s=PLACE_S, silent_s=context.silent_s, logs=context.logs,
        one_node=p.one_node,
    )  # fmt: skip


# ---- the driver ------------------------------------------------------------------------------------------------------


def execute(schedule: Schedule, progress: SweepProgress, context: WorkerContext, placement: Placement, capacity: Capacity) -> bool:
    """Run the schedule to its end inside a started cluster. False: it was stopped before.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C.
    """
    unit = None
    control = start_control()
    function = trainable(context, control, placement)
    with interruptible(schedule, progress):
        while True:
            _tune(Run(schedule, progress, capacity, ControlWriter(control), context, unit), function, placement)
            unit = next_unit(schedule, progress, capacity)
            if unit is None:
                return not schedule.stopping


def next_unit(schedule: Schedule, progress: SweepProgress, capacity: Capacity) -> Unit | None:
    """Wait for a unit that another driver releases; None: the schedule is finished."""
    while not schedule.is_finished:
        follow(schedule, progress, capacity)
        unit = schedule.take()
        if unit is not None:
            return unit
        time.sleep(POLL_S)
    return None


def follow(schedule: Schedule, progress: SweepProgress, capacity: Capacity, idling: int = 0) -> None:
    """Set how many units may run at once to what the cluster holds now, without the `idling` workers that only occupy a device."""
    schedule.slots = max(0, capacity.now(schedule, progress) - idling)
    schedule.whole = capacity.whole
    schedule.cpu_slots = max(1, capacity.beside)  # nodes with room besides may be lost: what waits must start all the same


class Run:
    """One Tune run's view of the schedule: the unit of each Tune trial, and the trials that only occupy a left-out
    device.
    """

    def __init__(
        self,
        schedule: Schedule,
        progress: SweepProgress,
        capacity: Capacity,
        control: ControlWriter,
        context: WorkerContext,
        first: Unit | None = None,
    ):
        self.schedule, self.progress, self.capacity, self.control, self.first = schedule, progress, capacity, control, first
        self.context = context
        self.units: dict[str, str] = {}  # Tune trial -> unit
        self.devices: dict[str, str] = {}  # Tune trial -> device of its worker
        self.heard: dict[str, float] = {}  # Tune trial -> when it has reported last
        self.outages: dict[str, Outcome] = {}  # Tune trial -> the outage that it has reported
        self.named: frozenset[str] = frozenset()  # left-out devices that were reported to the user

    def next(self) -> Unit | str | None:
        """The next unit; None: ask again; "finished": nothing more."""
        health = self.schedule.health
        held = [device for trial, device in self.devices.items() if trial not in self.units]
        follow(self.schedule, self.progress, self.capacity, len(held))
        is_crowded = 0 < self.capacity.count <= len(held)
        if is_crowded and health.left_out.issuperset(held):
            self.progress.say(f"used again, for nothing else is left: {', '.join(sorted(set(held)))}")
            health.readmit(set(held))
        left_out = health.left_out
        for device in left_out - self.named:
            self.progress.say(f"no more work for {device}: two units failed there in a row; the last: {health.reasons[device]}")
        self.named = left_out
        unit, self.first = self.first or self.schedule.take(), None
        is_over = unit is None and (self.schedule.is_finished or self.schedule.is_idle)
        self.control.send(Directives(self.schedule.stopping, is_over, left_out, is_crowded))
        return "finished" if is_over else unit

    def started(self, trial: str, device: str) -> None:
        self.devices[trial] = device
        if trial in self.units:
            self.schedule.started(self.units[trial], device)

    def outcome(self, trial: str, outcome: Outcome) -> None:
        """A worker has reported the outcome of one task."""
        unit = self.units.get(trial)
        if unit is None:
            return
        if outcome.status == "outage":
            self.outages[trial] = outcome
        elif outcome.status == "returned":
            del self.units[trial]
            self.progress.leave(unit)
            self.schedule.give_back(unit)
        record(outcome, unit, self.schedule, self.progress)

    def left(self, trial: str, is_lost: bool) -> None:
        """A Tune trial has ended; `is_lost`: with an error."""
        unit, device, outage = self.units.pop(trial, None), self.devices.pop(trial, ""), self.outages.pop(trial, None)
        now = time.monotonic()
        silent_s = now - self.heard.pop(trial, now)
        if unit is None:  # it had given its unit back
            return
        self.progress.leave(unit)
        if outage is not None:
            self.schedule.complete(unit, outage.error, device, outage.blames_device)
        else:
            self.schedule.complete(unit, self._why_lost(unit, silent_s) if is_lost else None, device)

    def _why_lost(self, unit_id: str, silent_s: float) -> str:
        """Why a worker has ended without an outcome, as far as the driver can tell."""
        unit, limit = self.schedule.running.get(unit_id), self.context.silent_s
        if unit is None or not limit or silent_s < limit:
            return LOST
        job = next((t.job for t in unit.tasks if t.job.key not in self.schedule.outcomes), unit.tasks[0].job)
        return (
            f"its worker ended after {silent_s:.0f} s without a report (--silent-after {limit:g}); stacks: {log_of(self.context.logs, job)}"
        )


def _tune(run: Run, function: Callable[[UnitConfig], None], placement: Placement) -> None:
    """One Tune run: to the end of the schedule, or until other drivers have claimed all that is left.

    Tune keeps an idle actor for the next trial, and with it resources that the other driver may need for the artefact
    this one waits for. So a run with nothing to do ends, and a new run begins with the next unit.
    """
    from ray import tune

    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(MOST_PENDING)
    scratch = Path(tempfile.gettempdir())
    try:
        scratch = Path(tempfile.mkdtemp(prefix="idgbr-tune-"))
        tuner = tune.Tuner(
            tune.with_resources(function, functools.partial(_bundles, placement)),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(run),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="run",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[_callback(run)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        with discarded_stdout(), patient_groups():
            tuner.fit()
    except OSError as error:
        raise unwritable(str(scratch), error) from error
    finally:
        run.control.send(Directives(run.schedule.stopping, True, run.named))
        shutil.rmtree(scratch, ignore_errors=True)


def _bundles(placement: Placement, config: UnitConfig) -> tune.PlacementGroupFactory:
    from ray import tune

    if config.get("workers", 1) > 1:  # the workers have their own; this sliver keeps the driver of the training on the head node
        return tune.PlacementGroupFactory([{"CPU": 0, "node:__internal_head__": 0.001}])
    return tune.PlacementGroupFactory([placement.cpu_shape if config.get("on_cpu") else placement.shape])


class _Unpickled:
    """Tune pickles its parts to a file that is never read. These hold the live schedule, so they are pickled empty."""

    def __getstate__(self) -> dict[str, object]:
        return {}


def _searcher(run: Run) -> Searcher:
    from ray.tune.search import Searcher

    class Ready(_Unpickled, Searcher):
        """Suggests units that may start. None: ask again later."""

        def __init__(self, run: Run) -> None:
            super().__init__()
            self.run = run

        def suggest(self, trial_id: str) -> UnitConfig | str | None:
            unit = self.run.next()
            if not isinstance(unit, Unit):
                return Searcher.FINISHED if unit == "finished" else None
            self.run.units[trial_id] = unit.id
            return {"unit": unit.pack(), "id": unit.id, "workers": unit.workers, "on_cpu": unit.on_cpu}

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            self.run.left(trial_id, error)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: what is done lies in the store."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: a study resumes from the store."""

    return Ready(run)


def _callback(run: Run) -> tune.Callback:
    from ray import tune

    class Events(_Unpickled, tune.Callback):
        """What trials report, to the schedule and to the display."""

        def __init__(self, run: Run) -> None:
            self.run = run

        def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
            unit = self.run.schedule.running.get(self.run.units.get(trial.trial_id, ""))
            if unit is not None:
                self.run.progress.start(unit.id, unit.title)

        def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict, **info: object) -> None:
            self.run.heard[trial.trial_id] = time.monotonic()
            if "device" in result:
                self.run.started(trial.trial_id, result["device"])
            if result.get("progress"):
                values = json.loads(result["progress"])
                self.run.schedule.advanced(result["unit"], furthest(values))
                self.run.progress.report(result["unit"], values)
            if result.get("outcome"):
                self.run.outcome(trial.trial_id, Outcome(**json.loads(result["outcome"])))

    return Events(run)


@contextlib.contextmanager
def discarded_stdout() -> Iterator[None]:
    """Tune prints to stdout at every verbosity; stdout is for the results of a sweep."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
    sys.stdout.flush()
