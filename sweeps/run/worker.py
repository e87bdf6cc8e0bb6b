"""Execution of a unit by a worker: compute its artefacts, then write the rows of the trials that they complete. No Ray.

The type of an error decides what follows. The work itself failed: a failed trial. The store is full: the study stops.
A device, node, network or store failed (an outage): the unit is tried elsewhere, and the process ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from idgbr import stages
from idgbr.config import Runtime
from idgbr.errors import IdgbrError, Interrupted, Missing, NoSpace, Outage
from idgbr.interfaces import Report, Stop
from idgbr.retries import TRANSIENT_ERRNOS
from idgbr.silence import SignsOfLife
from idgbr.stages import Job
from idgbr.store import Store
from sweeps import tables
from sweeps.run.goals import score_of
from sweeps.run.preflight import too_large_for
from sweeps.run.pruning import Halving, Pruned, TileTest, Watch, WatchedStore
from sweeps.run.units import BLOCKING, End, Outcome, Status, Task, Unit


@dataclass(frozen=True)
class WorkerContext:
    """What a worker needs besides the unit.

    Args:
        commit: of the driver's code; workers may have no repository.
        report: called with what a running job reports. stop: asked between steps and between tasks.
        fit: takes over trainings of several workers.
        logs: folder for one log a job; None: standard error.
        goal: name of the score that an outcome carries.
        device: name of the device or node of this worker; empty where there is only one.
        silent_s: without a sign of life for so long, a job's stacks go to its log and its process ends; 0: never.
        is_own_process: False where the driver itself does the work: a silent job is then only described.
    """

    store: Store
    runtime: Runtime
    commit: str = ""
    report: Report | None = None
    stop: Stop | None = None
    fit: stages.Trainer | None = None
    logs: Path | None = None
    goal: str = "boundary_iou"
    device: str = ""
    silent_s: float = 0.0
    is_own_process: bool = True


def work(unit: Unit, context: WorkerContext) -> Iterator[Outcome]:
    """Do the tasks in order. An error ends its own task and those that need its artefact; an outage ends the unit.

    Rows of a trial are in the store before its outcome is yielded.
    """
    ended: dict[str, Outcome] = {}
    for task in unit.tasks:
        job = task.job
        if context.stop and context.stop():
            yield Outcome(job.key, job.stage, "interrupted", 0.0)
            continue
        blocked = next((ended[key] for key in job.parents.values() if key in ended), None)
        if blocked is not None:
            outcome = Outcome(job.key, job.stage, blocked.status, 0.0, blocked.error)
        else:
            outcome = do_task(task, context, unit.watch)
        if outcome.status in BLOCKING:
            ended[job.key] = outcome
        yield outcome
        if outcome.status == "outage":
            return


def why_too_small(unit: Unit, runtime: Runtime) -> str:
    """Why a training of the unit does not fit this worker's GPU; empty where all fit, or there is no GPU."""
    trainings = [task for task in unit.tasks if task.job.trains and unit.workers == 1]
    if not trainings or runtime.device == "cpu":
        return ""
    import torch

    if not torch.cuda.is_available():
        return ""
    from idgbr.preflight import gpu_gb

    return next(filter(None, (too_large_for(task.experiment, task.job.stage, gpu_gb(runtime), runtime) for task in trainings)), "")


def do_task(task: Task, context: WorkerContext, watch: Watch | None = None) -> Outcome:
    """One job through `stages.run`, then the rows of its trials. Every error becomes the outcome."""
    job, started = task.job, time.monotonic()
    store, report, stop, halving = context.store, context.report, context.stop, None
    where = f"{job.stage} {job.key[:8]}"

    def outcome(status: Status, error: str | None = None, *, blames_device: bool = False) -> Outcome:
        seconds = time.monotonic() - started
        return Outcome(job.key, job.stage, status, seconds, error, device=context.device, blames_device=blames_device)

    # of a training over several workers each worker watches itself; this process only waits for them
    life = SignsOfLife(0.0 if context.fit and job.trains else context.silent_s, log_of(context.logs, job), ends=context.is_own_process)
    with _logged(context.logs, job) as log, life.watched():
        try:
            if watch is not None and watch.rungs and job.trains and job.name in ("refiner", "full"):
                halving = Halving(watch, store, report, stop)
                report, stop = halving.report, halving.stop
            if watch is not None and watch.wilcoxon and watch.rival and job.stage == "refined":
                store = WatchedStore(store.root, store.cache)
                report = TileTest(watch, store, job, task.experiment, report).report
            fit = context.fit if job.trains else None
            report, stop = life.reporting(report), life.asking(stop)
            run = functools.partial(stages.run, job, store, task.experiment, context.runtime, report=report, stop=stop, fit=fit)
            try:
                run()
            except Missing:
                if not _await_parents(task, store):
                    raise
                run()
            for end in task.ends:
                write_end(end, context)
            trials, score = tuple(e.trial for e in task.ends), goal_value(task, context)
            return dataclasses.replace(outcome("done"), trials=trials, score=score)
        except Pruned as error:
            return outcome("pruned", str(error))
        except Interrupted as error:
            return outcome("pruned", halving.reason) if halving and halving.is_pruned else outcome("interrupted", str(error))
        except NoSpace as error:  # every other job would fail in the same way: the study stops, and no trial fails
            is_full = context.store.is_local  # else it is the node's own disk, and another node may have room
            return outcome("no_space" if is_full else "outage", f"{error} ({where})", blames_device=not is_full)
        except Exception as error:  # a failed trial becomes a row and does not end the study
            print(traceback.format_exc(), file=log)
            kind = "" if isinstance(error, IdgbrError) else f"{type(error).__name__}: "
            text = f"{where}: {kind}{error}"
            if _is_device_error(error, context.runtime):
                return outcome("outage", text, blames_device=True)
            if isinstance(error, Outage) or (isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS):
                return outcome("outage", text)
            return outcome("failed", text)


def _await_parents(task: Task, store: Store) -> bool:
    """Wait for parents that this node does not see yet: network file systems show new files late.

    False: none was missing.

    Raises:
        Outage: one does not appear.
    """
    stage_of = {name: name if name in stages.STAGES else "backbone" for name in task.job.parents}  # backbones: full, fold0, ...
    late = [(stage_of[name], key) for name, key in task.job.parents.items() if store.manifest(stage_of[name], key) is None]
    for stage, key in late:
        if store.retries.wait_for(functools.partial(store.manifest, stage, key)) is None:
            raise Outage(f"this node does not see the {stage} artefact {key} in the store {store.root}", hint="one store for all nodes")
    return bool(late)


def _is_device_error(error: BaseException, runtime: Runtime) -> bool:
    """Whether the accelerator or the link between accelerators failed. Out of memory is an error of the work itself.

    Libraries raise plain RuntimeErrors for some device failures. After one of those a small computation tests the
    device.
    """
    torch = sys.modules.get("torch")
    if torch is None or isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError | torch.distributed.DistBackendError | torch.distributed.DistNetworkError):
        return True
    if not isinstance(error, RuntimeError) or runtime.device == "cpu" or not torch.cuda.is_initialized():
        return False
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError:
        return True
    return False


def write_end(end: End, context: WorkerContext) -> None:
    """The parts of a finished trial."""
    manifests = {job.key: context.store.known_manifest(job.stage, job.key) for job in end.jobs}
    row = tables.trial_row(
        end.experiment,
        end.jobs,
        manifests,
        trial=end.trial,
        role=end.role,
        label=end.label,
        status="done",
        commit=context.commit,
        gflop_per_megapixel=_gflop(end, context.store),
    )
    tables.write_parts(context.store, end.study, row, end.jobs)


def _gflop(end: End, store: Store) -> float:
    """GFLOPs of refining a megapixel; the number of classes is that of the counts."""
    import pyarrow.parquet as pq

    from idgbr import costs

    classes = pq.read_table(store.path("counts", end.jobs[-1].key) / "counts.parquet", columns=["class"])["class"]
    return costs.refining_flop_px(end.experiment, max(classes.to_pylist()) + 1) / 1e3


def write_failed(end: End, error: str, store: Store, commit: str, status: str = "failed") -> None:
    """The row of a failed or pruned trial, with the keys of its stored artefacts."""
    manifests = {job.key: store.manifest(job.stage, job.key) for job in end.jobs}
    row = tables.trial_row(
        end.experiment, end.jobs, manifests, trial=end.trial, role=end.role, label=end.label, status=status, error=error, commit=commit
    )
    tables.write_trial(store, end.study, row)


def goal_value(task: Task, context: WorkerContext) -> float | None:
    """The goal's value of a counts job on its first label set; None where the goal is not a score of counts."""
    if task.job.stage != "counts" or not context.goal:
        return None
    from idgbr.scores import METRICS

    if context.goal not in METRICS:
        return None
    value = score_of(context.store, task.job.key, context.goal)
    return value if value == value else None


def log_of(folder: Path | None, job: Job) -> Path | None:
    """The log of a job; None where jobs print to standard error."""
    return None if folder is None else folder / f"{job.stage}-{job.key}.log"


@contextlib.contextmanager
def _logged(folder: Path | None, job: Job) -> Iterator[TextIO]:
    """Redirect what the job prints to its log; without a folder, leave it."""
    path = log_of(folder, job)
    if path is None:
        yield sys.stderr
        return
    log = cast(TextIO, _Log(path))
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {job.stage} {job.name} {job.key}", file=log)
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield log


class _Log(io.TextIOBase):
    """Text appended to a file that is opened for every write.

    A full disk ends the log only; the job reports the full disk itself.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(text)
        return len(text)

    def isatty(self) -> bool:
        return False
