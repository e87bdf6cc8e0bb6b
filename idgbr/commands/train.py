"""One training over several processes of this machine, without Ray: `idgbr train-refiner RECIPE --workers 2`.

They use gloo on CPUs and NCCL on GPUs (one each), over loopback. The global batch is the stage's, whatever their
number, so the loss curve is that of one process; checkpoints are those of one process too, so any number goes on from
them. Each writes a log of its own, `rank-N.log` beside the checkpoints. Several machines: `python -m cluster train`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from idgbr.config import Experiment, Runtime, from_dict, to_dict
from idgbr.errors import BadRequest, IdgbrError, SomeFailed
from idgbr.interfaces import Report, Stop
from idgbr.machine import allowed_cores
from idgbr.stages import Job, scratch_name
from idgbr.store import Store

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

GRACE_S = 10.0  # for the others to end once one has; a lost peer wakes them
LEAVE_S = 120.0  # to reach the next report and write a checkpoint after Ctrl-C


def fit_processes(
    job: Job,
    store: Store,
    experiment: Experiment,
    out: Path,
    *,
    runtime: Runtime | None = None,
    report: Report | None = None,
    stop: Stop | None = None,
    workers: int = 2,
    sharding: str = "",
) -> None:
    """Train one stage over `workers` processes of this machine.

    Args:
        job, store, experiment, out, runtime, report: as `train_stage`. threads 0: the cores are shared out among the
        processes.
        stop: asked once a second; true ends the run with `Interrupted`, its checkpoint kept. Ctrl-C does the same.
        workers: processes; with CUDA one GPU each. sharding: "ddp" or "fsdp"; empty: what the stage's settings say.

    Raises:
        BadRequest: more workers than images of a batch or than GPUs; unknown sharding. Interrupted: `stop` returned true.
        SomeFailed: a process died; the same call goes on from the last checkpoint.
        IdgbrError: what the training itself found wrong.
    """
    from idgbr.training.distributed import device_of

    runtime = runtime or Runtime()
    kind = device_of(runtime).type
    check_workers(workers, sharding, kind)
    sharding = sharding or getattr(experiment, job.stage).sharding
    check_batch(workers, getattr(experiment, job.stage).batch_images)
    if kind == "cpu" and not runtime.threads:
        runtime = dataclasses.replace(runtime, threads=max(1, allowed_cores() // workers))
    logs = Path(store.base if store.is_local else store.cache) / scratch_name(job)
    logs.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")  # CUDA and rasterio do not survive a fork
    leave = context.Event()
    with tempfile.TemporaryDirectory(prefix="idgbr-") as folder:
        what = dataclasses.asdict(job), store.root, to_dict(experiment), dataclasses.asdict(runtime)
        settings = (*what, sharding, kind, str(out), str(logs))
        ends, processes = [], []
        for rank in range(workers):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(rank, workers, f"{folder}/meeting", settings, there, leave))
            process.start()
            there.close()
            ends.append(here)
            processes.append(process)
        try:
            try:
                error = _attend(processes, ends, leave, report, stop)
            except KeyboardInterrupt:
                leave.set()
                for process in processes:
                    process.join(LEAVE_S)
                raise
        finally:
            _end(processes)
    if error is not None:
        raise error
    dead = [(rank, process.exitcode) for rank, process in enumerate(processes) if process.exitcode != 0]
    if dead:
        # the one that a signal took, if any: the others fail because of it; -SIGTERM is our own doing
        rank, code = next(((r, c) for r, c in dead if c is not None and c < 0 and c != -signal.SIGTERM), dead[0])
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        raise SomeFailed(
            f"process {rank} of the {workers} that train {job.stage} {job.key} ended {how}",
            value=f"log {logs / f'rank-{rank}.log'}",
            hint="the same command goes on from the last checkpoint, also with another number of workers"
            + ("; SIGKILL often means that memory ran out" if code == -signal.SIGKILL else ""),
        )


@dataclass(frozen=True)
class LocalProcesses:
    """`fit_processes` as a `Trainer`."""

    workers: int
    sharding: str = ""

    @property
    def processes(self) -> int:
        """Number of processes that train together."""
        return self.workers

    def __call__(
        self,
        job: Job,
        store: Store,
        experiment: Experiment,
        out: Path,
        *,
        runtime: Runtime | None = None,
        report: Report | None = None,
        stop: Stop | None = None,
    ) -> None:
        fit_processes(job, store, experiment, out, runtime=runtime, report=report, stop=stop, workers=self.workers, sharding=self.sharding)


def check_workers(workers: int, sharding: str, kind: str) -> None:
    """Raises:
    BadRequest: no workers, more than GPUs, or an unknown sharding.
    """
    if workers < 1:
        raise BadRequest("a training needs at least one worker", value=f"workers={workers}")
    if sharding not in ("", "ddp", "fsdp"):
        raise BadRequest("unknown sharding", value=sharding, allowed="ddp, fsdp")
    if kind == "cuda":
        import torch

        if workers > torch.cuda.device_count():
            raise BadRequest(
                "more workers than GPUs: each needs one of its own",
                value=f"workers={workers}, GPUs={torch.cuda.device_count()}",
                hint=f"--workers {torch.cuda.device_count()}, or --device cpu",
            )


def check_batch(workers: int, batch_images: int) -> None:
    """Before any process starts: each would find it out for itself, late.

    Raises:
        BadRequest: some worker would see no image.
    """
    if batch_images < workers:
        raise BadRequest(
            "batch_images is smaller than the number of workers",
            value=f"batch_images={batch_images}, workers={workers}",
            hint=f"batch_images={workers} or fewer workers",
        )


# ---- in the parent ----------------------------------------------------------------------------------------------------------


def _attend(
    processes: Sequence[BaseProcess], ends: Sequence[Connection], leave: Event, report: Report | None, stop: Stop | None
) -> IdgbrError | None:
    """Pass on progress and stop requests until all have ended, or `GRACE_S` after one has failed. Returns a rank's
    error."""
    error: IdgbrError | None = None
    ends = list(ends)
    deadline = float("inf")
    while time.monotonic() < deadline and (ends or any(p.is_alive() for p in processes)):
        ready = wait(ends, timeout=1.0)
        for end in ready:
            assert isinstance(end, Connection)
            try:
                kind, value = end.recv()
            except EOFError:
                ends.remove(end)
                continue
            if kind == "error":
                error = error or value
            elif report:
                report(**value)
        for process in processes if not ends else ():
            process.join(0.2)
        if stop and stop():
            leave.set()
        if deadline == float("inf") and any(p.exitcode for p in processes):
            deadline = time.monotonic() + GRACE_S
    return error


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(GRACE_S)
        if process.is_alive():
            process.kill()
            process.join()


# ---- in each process --------------------------------------------------------------------------------------------------------


def _rank(rank: int, size: int, meeting: str, settings: tuple[Any, ...], pipe: Connection, leave: Event) -> None:
    """Ends with exit code 0 after success, 1 after an error, which has gone to the parent if it is one of ours."""
    job, store, experiment, runtime, sharding, kind, out, logs = settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal signals every process; the parent decides
    parent = os.getppid()
    log = os.open(f"{logs}/rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["LOCAL_RANK"] = str(rank)
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "")
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)  # gloo would else ask the host name, which may resolve to nowhere
    import torch

    from idgbr.stages import train_stage
    from idgbr.training.distributed import DistributedWorld

    if kind == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if kind == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.FileStore(meeting, size), rank=rank, world_size=size)
    print(f"rank {rank} of {size}, {sharding}, process {os.getpid()}, {kind}: {job['stage']} {job['key']}", flush=True)

    def report(**values: Any) -> None:
        print({"workers": size, **values}, flush=True)
        pipe.send(("line", {"workers": size, **values}))

    try:
        train_stage(
            Job(**job), Store(store), from_dict(experiment), Path(out), world=DistributedWorld(sharding), runtime=Runtime(**runtime),
            scratch=Path(logs), report=report, stop=lambda: leave.is_set() or os.getppid() != parent,
        )  # fmt: skip
    except IdgbrError as error:
        print(f"rank {rank}: {error}", flush=True)
        with contextlib.suppress(OSError):  # the parent has ended
            pipe.send(("error", error))
        sys.exit(1)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at once: the others wait for us, and a broken group may not be taken apart in peace
    torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class TrainingRequest:
    """A recipe to train, and with what."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE", help="a built-in recipe, or path.py:function")]
    overrides: Annotated[Positional[tuple[str, ...]], arg(metavar="stage.field=value", help="settings that differ from the recipe")] = ()
    store: Annotated[str, arg(help="folder or URI of the store")] = ""
    device: str = "auto"
    bf16: bool = False
    workers: Annotated[
        int, arg(help="processes of this machine that train together, with CUDA one GPU each; several machines: python -m cluster train")
    ] = 1
    sharding: Annotated[
        str,
        arg(help="ddp: whole copies of the model; fsdp: parameters, gradients and moments spread over the workers; empty: by the recipe"),
    ] = ""


def run_until(stage: str, request: TrainingRequest) -> None:
    """Run the jobs of the recipe up to and with `stage`; print the folder of the last artefact.

    Raises:
        BadRequest: the recipe has no such stage, or a request that cannot be. IdgbrError: what a stage finds wrong.
    """
    from idgbr import stages
    from idgbr.datasets.extent import n_classes
    from idgbr.preflight import check_training
    from idgbr.progress import Progress
    from idgbr.recipes import experiment as find_experiment
    from idgbr.store import default_root

    experiment = find_experiment(request.recipe, request.overrides)
    place = Store(request.store or default_root())
    place.check_writable()
    runtime = Runtime(device=request.device, precision="bf16" if request.bf16 else "fp32")
    wanted = stages.STAGES[: stages.STAGES.index(stage) + 1]
    todo = [job for job in stages.jobs(experiment) if job.stage in wanted]
    if not any(job.stage == stage for job in todo):
        raise BadRequest(
            f"this recipe has no {stage} to train",
            value=f"refiner.kind={experiment.refiner.kind}, coarse.source={experiment.coarse.source}",
        )
    fit: stages.Trainer | None = None
    if request.workers != 1 or request.sharding:
        from idgbr.training.distributed import device_of

        check_workers(request.workers, request.sharding, device_of(runtime).type)
        fit = LocalProcesses(request.workers, request.sharding)
    if open_stages := {job.stage for job in todo if job.trains and not place.has(job.stage, job.key)}:
        check_training(experiment, open_stages, n_classes(experiment.data), runtime, workers=request.workers, sharding=request.sharding)
    for job in todo:
        with Progress(f"{job.stage} {job.name if job.name != job.stage else ''} {job.key}") as progress:
            stages.run(job, place, experiment, runtime, report=progress, fit=fit)
    print(place.path(todo[-1].stage, todo[-1].key))
