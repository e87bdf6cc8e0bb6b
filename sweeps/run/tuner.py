"""The only Ray Tune file: one Tune run over unique units of work, parents first.

Waves need no barrier: Tune's searcher hands out a unit as soon as what it needs is stored, so a slow training holds up nothing but its
own children. A unit is a plain function trial on a reused actor, whose process keeps torch and the last weights; only trainings over
several workers go through Ray Train. Tune's own folder is scratch: it is made for the run and deleted after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from idgbr.errors import IdgbrError
from idgbr.files import unwritable
from idgbr.stages import Trainer
from sweeps.run.placement import Placement
from sweeps.run.progress import Progress
from sweeps.run.schedule import Schedule
from sweeps.run.worker import Desk, Outcome, Unit, do

STOP_POLL_S = 1.0
POLL_S = 0.5
REPORT_S = 2.0
PLACE_S = 900.0  # for the workers of one training to find their places beside another study's; six times, then it is a failure


# ---- the trainable -----------------------------------------------------------------------------------------------------------


def trainable(desk: Desk, stop_name: str, placement: Placement) -> Callable[[dict[str, Any]], None]:
    """The function Tune runs: one packed unit. Outcomes are reported when their rows are on the store."""
    folder = os.getcwd()

    def unit_of_work(config: dict[str, Any]) -> None:
        from ray import tune

        if os.path.isdir(folder):  # relative paths in settings are the driver's; a cluster's workers stand where `ray start` was given
            os.chdir(folder)
        unit = Unit.unpack(config["unit"])
        last = {"report": 0.0, "stop": 0.0}
        is_stopped = False

        def report(values: dict[str, Any] | None = None, **more: Any) -> None:
            now = time.monotonic()
            if now - last["report"] >= REPORT_S:
                last["report"] = now
                tune.report({"unit": unit.id, "progress": json.dumps({**(values or {}), **more}, default=str)})

        def stop() -> bool:
            nonlocal is_stopped
            now = time.monotonic()
            if not is_stopped and now - last["stop"] >= STOP_POLL_S:
                last["stop"] = now
                is_stopped = desk.store.read_bytes(stop_name) is not None
            return is_stopped

        fit = sharded_fit(placement) if unit.workers > 1 else None
        for outcome in do(unit, dataclasses.replace(desk, report=report, stop=stop, fit=fit)):
            tune.report({"unit": unit.id, "outcome": json.dumps(dataclasses.asdict(outcome))})

    return unit_of_work


def sharded_fit(placement: Placement) -> Trainer:
    """Trainings over several workers through Ray Train."""
    from cluster.train import RayTraining

    return RayTraining(placement.workers, cpus=placement.cpus, gpus=placement.gpus, sharding=placement.sharding, start_timeout_s=PLACE_S)


def execute(schedule: Schedule, progress: Progress, desk: Desk, placement: Placement) -> bool:
    """Run the schedule to its end inside a started cluster. False: it was stopped before.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C.
    """
    unit = None
    with _signals(schedule, progress):
        while True:
            _tune(schedule, unit, progress, desk, placement)
            unit = _next(schedule)
            if unit is None:
                return not schedule.stopping


def _next(schedule: Schedule) -> Unit | None:
    """The next unit when another driver has left one; None: the schedule is at its end."""
    while not schedule.is_finished:
        unit = schedule.take()
        if unit is not None:
            return unit
        time.sleep(POLL_S)
    return None


def _tune(schedule: Schedule, first: Unit | None, progress: Progress, desk: Desk, placement: Placement) -> None:
    """One Tune run: to the end of the schedule, or until all that is left lies with other drivers.

    Tune keeps an idle actor for the next trial, and with it the place that another driver may need to make what this one waits for;
    so a run with nothing to do ends, and a new one begins with `first` when there is something again.
    """
    from ray import tune

    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(1, schedule.slots))
    function = trainable(desk, schedule.claims.stop_name, placement)
    scratch = Path(tempfile.gettempdir())
    try:
        scratch = Path(tempfile.mkdtemp(prefix="idgbr-tune-"))
        tuner = tune.Tuner(
            tune.with_resources(function, lambda config: _bundles(config, placement)),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(schedule, first),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="run",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[_callback(schedule, progress)],
                failure_config=tune.FailureConfig(max_failures=placement.max_failures),
            ),
        )
        with _discarded_stdout(), patient_groups():
            tuner.fit()
    except OSError as error:
        raise unwritable(str(scratch), error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _bundles(config: dict[str, Any], placement: Placement) -> Any:
    from ray import tune

    if config.get("workers", 1) > 1:  # the workers have their own; this sliver keeps the driver of the training on the head node
        return tune.PlacementGroupFactory([{"CPU": 0, "node:__internal_head__": 0.001}])
    return tune.PlacementGroupFactory([placement.shape])


class _Unpickled:
    """Tune pickles its parts to a file that nobody reads; these hold the live schedule and go as empty shells."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _searcher(schedule: Schedule, first: Unit | None) -> Any:
    from ray.tune.search import Searcher

    class Ready(_Unpickled, Searcher):
        """Hands out units that may start. None: ask again later."""

        def __init__(self, schedule: Schedule) -> None:
            super().__init__()
            self.schedule, self.first = schedule, first
            self.unit_of: dict[str, str] = {}

        def suggest(self, trial_id: str) -> Any:
            unit, self.first = self.first or self.schedule.take(), None
            if unit is None:
                return Searcher.FINISHED if self.schedule.is_finished or self.schedule.is_idle else None
            self.unit_of[trial_id] = unit.id
            return {"unit": unit.pack(), "id": unit.id, "workers": unit.workers}

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            lost = "its worker was lost (out of memory, or the node died)" if error else None
            self.schedule.complete(self.unit_of.pop(trial_id), lost)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: what is done lies in the store."""

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError("a study resumes from the store")

    return Ready(schedule)


def _callback(schedule: Schedule, progress: Progress) -> Any:
    from ray import tune

    class Events(_Unpickled, tune.Callback):
        """What trials report, to the schedule and to the display."""

        def __init__(self, schedule: Schedule, progress: Progress) -> None:
            self.schedule, self.progress = schedule, progress

        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            unit = self.schedule.running.get(trial.config["id"])
            if unit is not None:
                self.progress.start(unit.id, unit.title)

        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            if result.get("progress"):
                self.progress.report(result["unit"], json.loads(result["progress"]))
            if result.get("outcome"):
                told(Outcome(**json.loads(result["outcome"])), self.schedule, self.progress)

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.progress.leave(trial.config["id"])

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.progress.leave(trial.config["id"])

    return Events(schedule, progress)


def told(outcome: Outcome, schedule: Schedule, progress: Progress) -> None:
    """One task is over: note it, show it."""
    known = schedule.outcomes.get(outcome.key)
    if known is not None and known.status == outcome.status:
        return
    trials = tuple(outcome.trials)
    schedule.finish_task(dataclasses.replace(outcome, trials=trials))
    ended = schedule.trials_of(trials) if trials else []
    if progress.budget is not None and outcome.status == "done":
        problem = progress.budget.spend(outcome.stage, outcome.key, schedule.needed())
        if problem is not None and not schedule.stopping:
            schedule.fatal, schedule.stopping = problem, True
            schedule.claims.ask_to_stop()
    for trial in ended:
        for observer in progress.observers:
            observer.trial(trial, outcome.score, progress.goal)
    if progress.noun == "jobs" or outcome.stage == "counts":  # the total of a search is one of trials: what comes before is not known
        label = ended[0].label if ended else ""
        progress.finish(outcome.status, outcome.seconds, label, outcome.score, outcome.stage)


def execute_here(schedule: Schedule, progress: Progress, desk: Desk) -> bool:
    """The same without Ray: one unit after the other in this process (`--local`)."""

    def stop() -> bool:
        return schedule.stopping

    with _signals(schedule, progress):
        while not schedule.is_finished:
            unit = schedule.take()
            if unit is None:
                time.sleep(0.2)  # another driver has what is left in hand
                continue
            progress.start(unit.id, unit.title)

            def report(values: dict[str, Any] | None = None, _unit: str = unit.id, **more: Any) -> None:
                progress.report(_unit, {**(values or {}), **more})

            for outcome in do(unit, dataclasses.replace(desk, report=report, stop=stop)):
                told(outcome, schedule, progress)
            progress.leave(unit.id)
            schedule.complete(unit.id)
    return not schedule.stopping


# ---- signals -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _signals(schedule: Schedule, progress: Progress) -> Iterator[None]:
    """First Ctrl-C (or SIGTERM): start nothing more, let running trainings write a checkpoint. Second: KeyboardInterrupt at once."""

    def asked(number: int, frame: Any) -> None:
        if schedule.stopping:
            raise KeyboardInterrupt
        schedule.stopping = True
        try:
            schedule.claims.ask_to_stop()
            progress.say("stopping: what runs writes its checkpoint or its rows; once more to stop at once")
        except IdgbrError as error:
            progress.say(f"stopping, but the workers cannot be told: {error} Once more to stop at once")

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                before[number] = signal.signal(number, asked)
            except ValueError:  # not the main thread: whoever embeds the sweep keeps the signals
                break
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _discarded_stdout() -> Iterator[None]:
    """Tune prints to stdout whatever its verbosity; results of a sweep go there, its talk does not."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
    sys.stdout.flush()


LAST_WAIT_S = 1.0


@contextlib.contextmanager
def patient_groups() -> Iterator[None]:
    """A Tune run inside the block removes a placement group only once it stands.

    Tune asks for a group when a unit may start, and 2 ms later, when a process that is free takes the unit, for its removal. A group
    that is removed while its places are being reserved never gives them back: the node has a CPU or GPU less for the rest of its life
    (Ray 2.60, ray-project/ray#64693). Tune has no setting for the manager of its groups, so its name is replaced.
    """
    from ray.air.execution.resources.placement_group import PlacementGroupResourceManager
    from ray.tune.execution import tune_controller
    from ray.util import remove_placement_group

    class Patient(PlacementGroupResourceManager):
        def __init__(self, update_interval_s: float = 0.1) -> None:
            super().__init__(update_interval_s)
            self.surplus: Counter[Any] = Counter()  # groups on their way, by request, that nobody wants any more

        def request_resources(self, resource_request: Any) -> None:
            if self.surplus[resource_request]:
                self.surplus[resource_request] -= 1
            else:
                super().request_resources(resource_request)

        def cancel_resource_request(self, resource_request: Any) -> None:
            if self._request_to_staged_pgs[resource_request]:
                self.surplus[resource_request] += 1
            else:
                super().cancel_resource_request(resource_request)

        def get_resource_futures(self) -> list[Any]:  # Tune asks in every step, and wakes when one of them is there
            if self.surplus.total():
                self.update_state()
                for request in self.surplus:
                    ready = self._request_to_ready_pgs[request]
                    while self.surplus[request] and ready:
                        group = ready.pop()
                        self._pg_to_request.pop(group)
                        remove_placement_group(group)
                        self.surplus[request] -= 1
            return super().get_resource_futures()

        def clear(self) -> None:
            import ray

            staged = list(self._staging_future_to_pg)
            if staged and ray.is_initialized():  # what this run has just freed may be theirs at this moment
                ray.wait(staged, num_returns=len(staged), timeout=LAST_WAIT_S)
            super().clear()

    usual = tune_controller.PlacementGroupResourceManager
    tune_controller.PlacementGroupResourceManager = Patient
    try:
        yield
    finally:
        tune_controller.PlacementGroupResourceManager = usual
