"""One unit of work, wherever it runs: make sure some artefacts are there, and write the rows of the trials that end with them. No Ray.

A unit is one job, or the sampling and scoring jobs of one refiner, which share the process and so the loaded weights.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import pickle
import sys
import time
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idgbr import stages
from idgbr.config import Experiment, Runtime
from idgbr.errors import IdgbrError
from idgbr.interfaces import Report, Stop
from idgbr.stages import Job
from idgbr.store import Store
from sweeps import tables
from sweeps.run.pruning import Halving, Pruned, TileTest, Watch, WatchedStore

NO_SPACE = "no space left"  # of `store.unwritable`


@dataclass(frozen=True)
class End:
    """A trial whose last job this is: what its rows need. The jobs carry no settings, only what the row tells of them."""

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
    """Tasks done one after the other by one worker (or by `workers` of them together, through Ray Train)."""

    tasks: tuple[Task, ...]
    workers: int = 1
    watch: Watch | None = None  # of a search that stops early
    name: str = ""

    @property
    def id(self) -> str:
        return self.name or self.tasks[0].job.key

    @property
    def title(self) -> str:
        first = self.tasks[0].job
        more = f" and {len(self.tasks) - 1} more" if len(self.tasks) > 1 else ""
        name = f" {first.name}" if first.stage == "backbone" else ""
        return f"{first.stage}{name} {first.key[:8]}{more}"

    def pack(self) -> str:
        """Text for a Tune config: small, and no library looks into it."""
        return base64.b64encode(zlib.compress(pickle.dumps(self), 1)).decode()

    @staticmethod
    def unpack(text: str) -> Unit:
        unit: Unit = pickle.loads(zlib.decompress(base64.b64decode(text)))
        return unit


@dataclass(frozen=True)
class Outcome:
    """What became of one task. `status`: done, failed, interrupted, pruned, no_space."""

    key: str
    stage: str
    status: str
    seconds: float
    error: str | None = None
    trials: tuple[str, ...] = ()
    score: float | None = None


@dataclass
class Desk:
    """Where and how a unit is done.

    Args:
        commit: of the driver's code; workers may have no repository.
        stop: asked between steps and between tasks.
        fit: takes over trainings of several workers.
    """

    store: Store
    runtime: Runtime
    commit: str = ""
    report: Report | None = None
    stop: Stop | None = None
    fit: stages.Trainer | None = None
    logs: Path | None = None
    goal: str = "boundary_iou"


def do(unit: Unit, desk: Desk) -> Iterator[Outcome]:
    """Do the tasks in order. An error ends its own task only; tasks that need its artefact fail in turn.

    Rows of a trial are in the store before its outcome is yielded.
    """
    failed: dict[str, Outcome] = {}
    for task in unit.tasks:
        if desk.stop and desk.stop():
            yield Outcome(task.job.key, task.job.stage, "interrupted", 0.0)
            continue
        blocked = next((failed[k] for k in task.job.parents.values() if k in failed), None)
        if blocked is not None:
            outcome = Outcome(task.job.key, task.job.stage, blocked.status, 0.0, blocked.error)
        else:
            outcome = do_task(task, desk, unit.watch)
        if outcome.status in ("failed", "pruned", "interrupted", "no_space"):
            failed[task.job.key] = outcome
        yield outcome


def do_task(task: Task, desk: Desk, watch: Watch | None = None) -> Outcome:
    """One job through `stages.run`, then the rows of its trials; whatever goes wrong is the outcome."""
    job, started = task.job, time.monotonic()
    store, report, stop, halving = desk.store, desk.report, desk.stop, None

    def outcome(status: str, error: str | None = None, **more: Any) -> Outcome:
        return Outcome(job.key, job.stage, status, time.monotonic() - started, error, **more)

    def troubled(error: Exception) -> Outcome:
        if NO_SPACE in str(error).lower():  # every other job would meet the same: the study stops, and no trial is to blame
            return outcome("no_space", f"{NO_SPACE} in {desk.store.root} ({job.stage} {job.key[:8]})")
        print(traceback.format_exc(), file=log)
        kind = "" if isinstance(error, IdgbrError) else f"{type(error).__name__}: "
        return outcome("failed", f"{job.stage} {job.key[:8]}: {kind}{error}")

    with logged(desk.logs, job) as log:
        try:
            if watch is not None and watch.rungs and job.trains and job.name in ("refiner", "full"):
                halving = Halving(watch, store, report, stop)
                report, stop = halving.report, halving.stop
            if watch is not None and watch.wilcoxon and watch.rival and job.stage == "refined":
                store = WatchedStore(store.root, store.cache)
                report = TileTest(watch, store, job, task.experiment, report).report
            fit = desk.fit if job.trains else None
            stages.run(job, store, task.experiment, desk.runtime, report=report, stop=stop, fit=fit)
            for end in task.ends:
                write_end(end, desk)
            return outcome("done", trials=tuple(e.trial for e in task.ends), score=score(task, desk))
        except Pruned as error:
            return outcome("pruned", str(error))
        except IdgbrError as error:
            if error.exit_code == 130:
                return outcome("pruned", halving.reason) if halving and halving.is_pruned else outcome("interrupted", str(error))
            return troubled(error)
        except Exception as error:  # a failing trial never sinks the study: it becomes a row
            return troubled(error)


def write_end(end: End, desk: Desk) -> None:
    """The parts of a finished trial."""
    manifests = {job.key: desk.store.manifest(job.stage, job.key) for job in end.jobs}
    row = tables.trial_row(
        end.experiment, end.jobs, manifests, trial=end.trial, role=end.role, label=end.label, status="done", commit=desk.commit
    )
    tables.write_parts(desk.store, end.study, row, end.jobs)


def write_failed(end: End, error: str, store: Store, commit: str, status: str = "failed") -> None:
    """The row of a trial that did not finish, with what of it is stored."""
    manifests = {job.key: store.manifest(job.stage, job.key) for job in end.jobs}
    row = tables.trial_row(
        end.experiment, end.jobs, manifests, trial=end.trial, role=end.role, label=end.label, status=status, error=error, commit=commit
    )
    tables.write_trial(store, end.study, row)


def score(task: Task, desk: Desk) -> float | None:
    """The goal's value of a counts job on its first label set; None where the goal is not a score of counts."""
    if task.job.stage != "counts" or not desk.goal:
        return None
    from idgbr.scores import METRICS, evaluate, read_counts

    if desk.goal not in METRICS:
        return None
    frame = read_counts(desk.store.path("counts", task.job.key) / "counts.parquet")
    value = evaluate(frame.filter(frame["label_set"] == frame["label_set"][0]), desk.goal).score
    return value if value == value else None


def strip(job: Job) -> Job:
    """A job without its settings, which the row's writer does not need."""
    return dataclasses.replace(job, config={}, parents={})


@contextlib.contextmanager
def logged(folder: Path | None, job: Job) -> Iterator[Any]:
    """What the job prints goes to `<folder>/<stage>-<key>.log`; without a folder, where it always goes."""
    if folder is None:
        yield sys.stderr
        return
    log = _Log(folder / f"{job.stage}-{job.key}.log")
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {job.stage} {job.name} {job.key}", file=log)
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield log


class _Log(io.TextIOBase):
    """Text appended to a file, opened for every piece. A full disk ends the log, not the job: the job says by itself what it lacks."""

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
