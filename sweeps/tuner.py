"""The only Ray Tune file: one Tune run over unique units of work, parents first.

Waves need no barrier: Tune's searcher hands out a unit as soon as what it needs is stored, so a slow training holds up nothing but its
own children. A unit is a plain function trial on a reused actor, whose process keeps torch and the last weights; only trainings over
several workers go through Ray Train. Tune's own folder is scratch: it is made for the run and deleted after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from idgbr.errors import Disagreement, Missing
from idgbr.store import Store
from sweeps.placement import Placement
from sweeps.progress import Progress
from sweeps.schedule import Schedule
from sweeps.work import Desk, Outcome, Unit, do

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the user's settings stay what they are
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_worker_register_timeout_seconds": "300",  # processes start slowly on a machine that is busy with other things
    "RAY_agent_register_timeout_ms": "300000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the first Ctrl-C is ours
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # nobody restores from Tune's state
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "100000",  # the watchdog says it better
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
OBJECT_STORE_BYTES = 100 * 2**20  # nothing large goes through it: artefacts lie in the store
START_TRIES = 2
STOP_POLL_S = 1.0
REPORT_S = 2.0


# ---- the cluster -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(placement: Placement, cores: int | None = None) -> Iterator[list[dict[str, float]]]:
    """Resources of each node of the cluster of `placement.address`, or of one started on this machine for the time of the block.

    Raises:
        Missing: no cluster answers at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = placement.address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        # Auth by token would leave ~/.ray/auth_token behind and change how a later cluster starts; this one listens on loopback only.
        os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "disabled")
    import ray

    _silence()
    if ray.is_initialized():  # a program that embeds a sweep
        yield node_resources()
        return
    _start(address, placement, cores)
    try:
        _silence()
        yield node_resources()
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            ray.shutdown()


def _start(address: str, placement: Placement, cores: int | None) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": "CRITICAL", "log_to_driver": False}
    temporary = os.environ.get("RAY_TMPDIR", "/tmp/ray")
    own = {
        "address": "local",  # never by chance the cluster that somebody else has started on this host
        "num_cpus": cores or os.cpu_count(),
        "include_dashboard": placement.workers > 1,  # Train's placement groups are freed through it after a stop (ray#54305)
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": temporary if len(temporary) <= 36 else "/tmp/ray",  # socket paths end at 107 bytes
    }
    for attempt in range(START_TRIES):
        try:
            ray.init(**quiet, **({"address": address} if address else own))
            return
        except Exception as error:  # Ray raises bare ones too
            ray.shutdown()
            if "timed out during startup" in str(error) and attempt < START_TRIES - 1:
                continue  # Ray gives a node 30 s to come up, too few where other work takes the machine
            where = f"at {address}" if address else "on this machine"
            raise Missing(
                f"no Ray cluster {where}: {_first_line(error)}",
                hint="python -m cluster doctor, or leave out --address to use this machine alone (--local: without Ray)",
            ) from error


def node_resources() -> list[dict[str, float]]:
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def check_nodes(store: Store, versions: str) -> None:
    """On a cluster of several nodes: the same packages everywhere, and a store that every node reads and writes.

    Raises:
        Disagreement: other versions on a node. Missing: a node that does not see the store.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [n for n in ray.nodes() if n["Alive"]]
    if len(nodes) < 2:
        return
    nonce = f"_probe-{os.getpid()}-{time.monotonic_ns()}"
    store.write_bytes(nonce, b"driver")

    @ray.remote(num_cpus=0)
    def probe(name: str) -> tuple[str, bool]:
        from sweeps import tables

        seen = store.read_bytes(nonce) == b"driver"
        store.write_bytes(name, b"node")
        return tables.versions(), seen

    try:
        for node in nodes:
            where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            name = f"{nonce}-{node['NodeID']}"
            pinned = probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            try:
                found, seen = ray.get(pinned.remote(name), timeout=120)
            except ray.exceptions.RayError as error:
                raise Missing(f"the node {where} cannot run this package or write the store: {_first_line(error)}") from error
            if found != versions:
                here, there = json.loads(versions), json.loads(found)
                other = ", ".join(f"{p} {there.get(p)} there, {v} here" for p, v in here.items() if there.get(p) != v)
                raise Disagreement(
                    f"other versions on the node {where}", value=other, hint="the same environment on every node: constraints.txt"
                )
            if not seen or store.read_bytes(name) != b"node":
                raise Missing(
                    f"the node {where} does not see the store {store.root}",
                    hint="--store on a shared file system or an object store (s3://, gs://)",
                )
            store.delete(name)
    finally:
        store.delete(nonce)


def _silence() -> None:
    for name in ("ray", "ray.tune", "ray.train", "ray.air", "ray._private", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


# ---- the trainable -----------------------------------------------------------------------------------------------------------


def trainable(desk: Desk, stop_name: str, placement: Placement) -> Callable[[dict[str, Any]], None]:
    """The function Tune runs: one packed unit. Outcomes are reported when their rows are on the store."""

    def unit_of_work(config: dict[str, Any]) -> None:
        from ray import tune

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


def sharded_fit(placement: Placement) -> Callable[..., None]:
    """Trainings over several workers through Ray Train."""
    import functools

    from cluster.train import fit_sharded

    return functools.partial(fit_sharded, workers=placement.workers, cpus=placement.cpus, gpus=placement.gpus, sharding=placement.sharding)


def execute(schedule: Schedule, progress: Progress, desk: Desk, placement: Placement) -> bool:
    """Run the schedule to its end inside a started cluster. False: it was stopped before.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C.
    """
    from ray import tune

    scratch = Path(tempfile.mkdtemp(prefix="idgbr-tune-"))
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(1, schedule.slots))
    function = trainable(desk, schedule.claims.stop_name, placement)
    try:
        with _signals(schedule, progress):
            tuner = tune.Tuner(
                tune.with_resources(function, lambda config: _bundles(config, placement)),
                tune_config=tune.TuneConfig(
                    search_alg=_searcher(schedule),
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
            with _discarded_stdout():
                tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return not schedule.stopping


def _bundles(config: dict[str, Any], placement: Placement) -> Any:
    from ray import tune

    if config.get("workers", 1) > 1:  # the workers have their own; this sliver keeps the driver of the training on the head node
        return tune.PlacementGroupFactory([{"CPU": 0, "node:__internal_head__": 0.001}])
    return tune.PlacementGroupFactory([placement.shape])


class _Unpickled:
    """Tune pickles its parts to a file that nobody reads; these hold the live schedule and go as empty shells."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _searcher(schedule: Schedule) -> Any:
    from ray.tune.search import Searcher

    class Ready(_Unpickled, Searcher):
        """Hands out units that may start. None: ask again later."""

        def __init__(self, schedule: Schedule) -> None:
            super().__init__()
            self.schedule = schedule
            self.unit_of: dict[str, str] = {}

        def suggest(self, trial_id: str) -> Any:
            unit = self.schedule.take()
            if unit is None:
                return Searcher.FINISHED if self.schedule.is_finished else None
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
    for trial in ended:
        for observer in progress.observers:
            observer.trial(trial, outcome.score, progress.goal)
    progress.finish(outcome.status, outcome.seconds, ended[0].label if ended else "", outcome.score)


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
        schedule.claims.ask_to_stop()
        progress.say("stopping: what runs writes its checkpoint or its rows; once more to stop at once")

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
