"""The only Ray Train file: one stage's training over N workers, DDP or FSDP, that survives workers, nodes and drivers.

The training itself is `idgbr.train`, unchanged; here is what surrounds it. The run's name is the stage's key, so the same command
goes on from the last checkpoint and never from somebody else's. Checkpoints hold whole tensors by name: any number of workers, DDP
or FSDP, goes on from them. They are uploaded beside the training, by time (`Runtime.checkpoint_seconds`) or by `checkpoint_images`.

Traps that Ray 2.60 sets, met here: no limit on controller failures (set); workers change their folder (absolute paths); a run whose
store is not shared trains happily until its first checkpoint (checked on every node before the start); token files written unasked
(`RAY_AUTH_MODE` explicit); `report` waits for the controller's next poll (asked twice a second).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.mailbox import Mailbox, Postman
from cluster.session import check_room, check_storage, connected, environment, not_shared, root_for_all
from idgbr.commands.train import check_batch
from idgbr.config import SECTIONS, Experiment, Runtime, from_dict, to_dict
from idgbr.errors import BadRequest, IdgbrError, Missing, SomeFailed
from idgbr.interfaces import Report, Stop
from idgbr.machine import expanded
from idgbr.settings import Section, names_of_paths
from idgbr.store import Store

if TYPE_CHECKING:
    from idgbr.stages import Job

CONTROLLER_FAILURES = 5  # Ray's default is to try for ever
START_TIMEOUT_S = 120  # a group that cannot be placed in this time counts as a controller failure
KEEP_CHECKPOINTS = 2

log = logging.getLogger("ray.train")  # Ray keeps one file of it for each worker


def fit_sharded(
    job: Job,
    store: Store,
    experiment: Experiment,
    out: Path,
    *,
    runtime: Runtime | None = None,
    report: Report | None = None,
    stop: Stop | None = None,
    workers: int = 2,
    min_workers: int = 0,
    sharding: str = "ddp",
    cpus: float = 1.0,
    gpus: float = 0.0,
    max_failures: int = 3,
    start_timeout_s: float = START_TIMEOUT_S,
) -> None:
    """Train one stage over several workers of Ray; `RayTraining` is the same as a `Trainer` for `stages.run`.

    The global batch is the stage's `batch_images`, whatever the number of workers, so the loss curve is that of one process.

    Args:
        job, store, experiment, out: as `train_stage`. Ray keeps checkpoints in the stage's scratch folder of the store, which
            `stages.run` deletes once the artefact is stored. The store must be one place for all nodes: a shared folder or a URI.
        stop: asked once a second; true ends the run with `Interrupted` at the next report, its checkpoint kept.
        workers: that train together, one process each. min_workers: above 0, Ray goes on with fewer when nodes are lost, down to
            this many, and grows back when they return.
        sharding: "ddp": whole copies of the model; "fsdp": parameters, gradients and moments spread (`fully_shard`).
        cpus, gpus: of one worker. nccl with GPUs, gloo without. cpus is also the number of torch threads on a CPU.
        max_failures: how often workers or nodes may be lost; each time costs the steps since the last checkpoint.
        start_timeout_s: for all workers to find a place.

    Raises:
        BadRequest: a shape that cannot be. Missing: the store is not one place; the workers found no place.
        Interrupted: `stop` said so. SomeFailed: workers were lost too often.
        IdgbrError: what the training itself found wrong.
    """
    runtime = runtime or Runtime()
    from idgbr import stages

    _check_shape(workers, min_workers, sharding, cpus, gpus)
    check_batch(workers, getattr(experiment, job.stage).batch_images)
    if gpus == 0:
        runtime = dataclasses.replace(runtime, device="cpu", threads=runtime.threads or max(1, int(cpus)))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(start_timeout_s))
    environment()
    import ray
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with connected():
        check_room(min_workers or workers, cpus, gpus)
        check_storage(store)
        name = f"{job.stage} {job.key}"
        nonce = uuid.uuid4().hex
        store.write_bytes(f"{stages.scratch_name(job)}/nonce", nonce.encode())
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lives and dies with this driver
        mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
        settings = {
            "job": dataclasses.asdict(job),
            "store": root_for_all(store),
            "experiment": to_dict(_absolute(experiment)),
            "runtime": dataclasses.asdict(runtime),
            "sharding": sharding,
            "nonce": nonce,
            "mailbox": mailbox,
        }
        trainer = TorchTrainer(
            _worker,
            train_loop_config=settings,
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=(min_workers, workers) if min_workers else workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
                elastic_resize_monitor_interval_s=20.0,
            ),
            run_config=RunConfig(
                name=job.key,  # the same training always, another never
                storage_path=f"{root_for_all(store)}/scratch/{job.stage}",
                failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=CONTROLLER_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=KEEP_CHECKPOINTS),
                logging_config=LoggingConfig("ERROR"),
            ),
        )
        try:
            with Postman(mailbox, report, stop):
                result = trainer.fit()
        except TrainingFailedError as error:
            _raise_own(ray.get(mailbox.failure.remote()), error, name, workers, max_failures)
            raise
        ending = result.return_value or {}
        if ending.get("interrupted"):
            from idgbr.errors import Interrupted

            raise Interrupted(ending["interrupted"])
        _raise_own(ray.get(mailbox.failure.remote()), None, name, workers, max_failures)
        if result.checkpoint is None:
            raise SomeFailed(f"the training {name} ended without a result", hint="run the same command again")
        with result.checkpoint.as_directory() as folder:
            shutil.copytree(Path(folder) / "out", out, dirs_exist_ok=True)


@dataclass(frozen=True)
class RayTraining:
    """`fit_sharded` as a `Trainer`; the fields are its arguments."""

    workers: int = 2
    min_workers: int = 0
    sharding: str = "ddp"
    cpus: float = 1.0
    gpus: float = 0.0
    max_failures: int = 3
    start_timeout_s: float = START_TIMEOUT_S

    @property
    def processes(self) -> int:
        """The number asked for: with `min_workers`, parts of the training may run on fewer."""
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
        fit_sharded(job, store, experiment, out, runtime=runtime, report=report, stop=stop, **dataclasses.asdict(self))


# ---- in the workers -----------------------------------------------------------------------------------------------------


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One rank. Returns {} or {"interrupted": message}."""
    import ray
    import ray.train as rt

    from idgbr.errors import Interrupted
    from idgbr.stages import Job, scratch_name, train_stage

    mailbox = settings["mailbox"]
    if ray.get(mailbox.failure.remote()) is not None:
        return {}  # an error that another attempt would meet again: end at once, the driver raises it
    context = rt.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    job, store = Job(**settings["job"]), Store(settings["store"])
    try:
        if store.read_bytes(f"{scratch_name(job)}/nonce") != settings["nonce"].encode():
            raise not_shared(store, [f"{ray.util.get_node_ip_address()} (rank {rank})"])
        world = ray_world(settings["sharding"])
        with tempfile.TemporaryDirectory(prefix="idgbr-") as folder:
            out = Path(folder) / "out"
            with world.latest_checkpoint(out) as found:
                if found is not None and (found / "out").is_dir():
                    return {}  # trained and reported, but the driver died before it took the result
            log.info("rank %d of %d trains %s %s", rank, size, job.stage, job.key)
            train_stage(
                job, store, from_dict(settings["experiment"]), out, world=world, runtime=Runtime(**settings["runtime"]),
                scratch=Path(folder) / "scratch", report=_reporter(mailbox, size), stop=_asker(mailbox),
            )  # fmt: skip
            world.report_result(out)
    except Interrupted as ended:
        return {"interrupted": str(ended)}
    except IdgbrError as error:
        log.error("rank %d: %s", rank, error)
        ray.get(mailbox.fail.remote(error))
        raise
    return {}


def _reporter(mailbox: Any, size: int) -> Report:
    def report(**values: Any) -> None:
        log.info("%s", {"workers": size, **values})
        mailbox.put.remote({"workers": size, **values})

    return report


def _asker(mailbox: Any) -> Stop:
    """Whether the driver wants to stop; asked at most once a second, for a lone worker comes by at every step."""
    import ray

    last = [0.0]

    def stop() -> bool:
        if time.monotonic() - last[0] < 1.0:
            return False
        last[0] = time.monotonic()
        return bool(ray.get(mailbox.leaving.remote()))

    return stop


def ray_world(sharding: str) -> Any:
    """The `World` of this Ray Train worker (made here because torch and ray come late)."""
    import ray.train as rt
    import torch
    from ray.train import Checkpoint, CheckpointUploadMode
    from ray.train.torch import get_device

    from idgbr.training.distributed import DistributedWorld, Save

    class RayWorld(DistributedWorld):
        """Ranks of torch.distributed as Ray set them up; checkpoints travel through `ray.train.report`."""

        def __init__(self) -> None:
            device = get_device()
            super().__init__(sharding, device if device.type == "cuda" else torch.device("cpu"))

        @contextlib.contextmanager
        def latest_checkpoint(self, scratch: Path) -> Iterator[Path | None]:
            checkpoint = rt.get_checkpoint()
            if checkpoint is None:
                yield None
                return
            with checkpoint.as_directory() as folder:
                yield Path(folder)

        def keep_checkpoint(self, scratch: Path, images: int, save: Save, record: dict[str, Any]) -> None:
            folder = Path(tempfile.mkdtemp(prefix="idgbr-checkpoint-"))
            save(folder)
            self._send({"images": images, **record}, folder, CheckpointUploadMode.ASYNC)  # Ray deletes the folder after the upload
            if self.rank:
                shutil.rmtree(folder)

        def report_result(self, out: Path) -> None:
            """The files of the finished training, as a last checkpoint: the driver may be on another machine."""
            with tempfile.TemporaryDirectory(prefix="idgbr-result-") as folder:
                if self.rank == 0:
                    shutil.copytree(out, Path(folder) / "out")
                self._send({"finished": 1}, Path(folder), CheckpointUploadMode.SYNC)

        def _send(self, metrics: dict[str, Any], folder: Path, mode: CheckpointUploadMode) -> None:
            """On every rank, the same number of times: Ray waits for all. Only rank 0 has something to upload."""
            if self.rank == 0:
                rt.report(metrics, checkpoint=Checkpoint.from_directory(folder), checkpoint_upload_mode=mode)
            else:
                rt.report(metrics, checkpoint=None)

        def drop_checkpoints(self, scratch: Path) -> None: ...

    return RayWorld()


# ---- errors ---------------------------------------------------------------------------------------------------------------


def _raise_own(own: Any, error: Exception | None, name: str, workers: int, max_failures: int) -> None:
    """Our own error if a worker sent one; else what Ray says, in one sentence."""
    if isinstance(own, IdgbrError):
        raise own from error
    if error is None:
        return
    text = " ".join(str(error).split())[:600]
    if "ControllerError" in type(error).__name__:
        raise Missing(f"the training {name} found no place for its workers: {text}", value=f"workers={workers}",
                      hint="fewer workers, or min_workers; `python -m cluster doctor`; the same command goes on") from error  # fmt: skip
    raise SomeFailed(f"the training {name} lost its workers more often than max_failures={max_failures}: {text}",
                     hint="the same command goes on from the last checkpoint") from error  # fmt: skip


# ---- before the start -----------------------------------------------------------------------------------------------------


def _check_shape(workers: int, min_workers: int, sharding: str, cpus: float, gpus: float) -> None:
    if sharding not in ("ddp", "fsdp"):
        raise BadRequest("unknown sharding", value=sharding, allowed="ddp, fsdp")
    if workers < 1 or not 0 <= min_workers <= workers or cpus <= 0 or gpus < 0:
        raise BadRequest(
            "a shape of workers that cannot be",
            value=f"workers={workers}, min_workers={min_workers}, cpus={cpus}, gpus={gpus}",
            allowed="workers at least 1, min_workers from 0 to workers, cpus above 0, gpus from 0",
        )


def _absolute(experiment: Experiment) -> Experiment:
    """Ray's workers run in folders of their own, so paths that mean something here must be absolute."""
    changed: dict[str, Any] = {}
    for name in SECTIONS:
        section: Section = getattr(experiment, name)
        given = {setting: getattr(section, setting) for setting in names_of_paths(section) if getattr(section, setting)}
        if given:
            absolute = {setting: str(expanded(path).absolute()) for setting, path in given.items()}
            changed[name] = dataclasses.replace(section, **absolute)
    return dataclasses.replace(experiment, **changed)


# ---- python -m cluster train ------------------------------------------------------------------------------------------------


def main(words: list[str]) -> int:
    """`python -m cluster train RECIPE [stage.field=value ...] [--stage refiner] [--workers N] ...`"""
    import argparse

    from idgbr import stages
    from idgbr.config import apply
    from idgbr.progress import Progress
    from idgbr.recipes import recipe

    parser = argparse.ArgumentParser(
        prog="python -m cluster train",
        description="Train a stage, and what it needs, over several workers. Run it again to resume, with any number of workers.",
    )
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="stage.field=value")
    parser.add_argument("--stage", choices=("backbone", "refiner"), default="refiner")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--min-workers", type=int, default=0, help="go on with so few when nodes are lost")
    parser.add_argument("--sharding", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--cpus", type=float, default=1.0, help="of one worker")
    parser.add_argument("--gpus", type=float, default=0.0, help="of one worker")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--max-failures", type=int, default=3)
    parser.add_argument("--store", default=os.environ.get("IDGBR_STORE", "runs"))
    given = parser.parse_args(words)
    _check_shape(given.workers, given.min_workers, given.sharding, given.cpus, given.gpus)
    experiment = apply(recipe(given.recipe), given.overrides)
    store = Store(given.store)
    store.check_writable()
    runtime = Runtime(precision="bf16" if given.bf16 else "fp32")

    fit = RayTraining(given.workers, given.min_workers, given.sharding, given.cpus, given.gpus, given.max_failures)
    wanted = stages.STAGES[: stages.STAGES.index(given.stage) + 1]
    todo = [job for job in stages.jobs(experiment) if job.stage in wanted]
    with connected():
        for job in todo:
            with Progress(f"{job.stage} {job.name if job.name != job.stage else ''} {job.key}") as progress:
                stages.run(job, store, experiment, runtime, report=progress, fit=fit)
    print(store.path(todo[-1].stage, todo[-1].key))
    return 0
