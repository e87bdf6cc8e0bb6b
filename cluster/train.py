"""One stage's training over N workers of Ray Train, DDP or FSDP, that survives the loss of workers, nodes and drivers.

The training itself is `idgbr.training`, unchanged; `train_worker.py` is what runs in each worker. The run's name is
the stage's key, so the same command continues from its own last checkpoint. Checkpoints hold whole tensors by name:
any number of workers, DDP or FSDP, can continue from them. They are uploaded beside the training, every
`Runtime.checkpoint_seconds` or `checkpoint_images`.

What Ray 2.60 needs: a limit on controller failures (its default is none); absolute paths (workers change their
folder); a check that all nodes share the store (Ray would notice at the first checkpoint); frequent polls (`report`
waits for the controller's next one).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.mailbox import Mailbox, Relay
from cluster.ray_private import raised_by_training
from cluster.session import check_nodes, check_room, connected, environment, root_for_all
from cluster.train_worker import Work, run_stage
from cluster.train_worker import train as train_rank
from idgbr.commands.train import check_batch
from idgbr.config import SECTIONS, Experiment, Runtime, to_dict
from idgbr.errors import BadRequest, IdgbrError, Interrupted, Outage, SomeFailed
from idgbr.interfaces import Json, Report, Stop
from idgbr.machine import expanded
from idgbr.settings import Section, names_of_paths
from idgbr.store import Store

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.train.torch import TorchTrainer

    from idgbr.stages import Job

CONTROLLER_FAILURES = 5
START_TIMEOUT_S = 120.0  # a group that cannot be placed in this time counts as a controller failure
KEEP_CHECKPOINTS = 2
ANSWER_S = 30.0  # of the mailbox
USES_GPU = ("backbone", "coarse", "refiner", "refined")  # stages that run a network


@dataclass(frozen=True)
class RayTraining:
    """A `Trainer` for `stages.run`: one stage over several workers of Ray.

    The global batch is the stage's `batch_images`, whatever the number of workers, so the loss curve is that of one
    process.

    Args:
        workers: that train together, one process each.
        min_workers: above 0, Ray continues with fewer when nodes are lost, down to this many, and grows back when
            they return.
        sharding: "ddp": whole copies of the model; "fsdp": parameters, gradients and moments spread (`fully_shard`);
            empty: what the stage's settings say.
        cpus, gpus: of one worker. nccl with GPUs, gloo without. cpus is also the number of torch threads on a CPU.
        max_failures: how often workers or nodes may be lost; each time costs the steps since the last checkpoint.
        start_timeout_s: for all workers to be placed.
        silent_s: without a sign of life for so long, a worker writes its stacks to `logs` and ends, which counts as a
            lost worker; 0: never. logs: folder that all nodes share, or of each node; None: standard error.
        one_node: all workers on one node, whichever is free for them (STRICT_PACK); else on as few as have room now.
    """

    workers: int = 2
    min_workers: int = 0
    sharding: str = ""
    cpus: float = 1.0
    gpus: float = 0.0
    max_failures: int = 3
    start_timeout_s: float = START_TIMEOUT_S
    silent_s: float = 0.0
    logs: Path | None = None
    one_node: bool = False

    @property
    def processes(self) -> int:
        """The number asked for: with `min_workers`, parts of the training may run on fewer."""
        return self.workers

    def check(self) -> None:
        """Raises:
        BadRequest: a shape that cannot be.
        """
        if self.sharding not in ("", "ddp", "fsdp"):
            raise BadRequest("unknown sharding", value=self.sharding, allowed="ddp, fsdp")
        if self.workers < 1 or not 0 <= self.min_workers <= self.workers or self.cpus <= 0 or self.gpus < 0:
            raise BadRequest(
                "a shape of workers that cannot be",
                value=f"workers={self.workers}, min_workers={self.min_workers}, cpus={self.cpus:g}, gpus={self.gpus:g}",
                allowed="workers at least 1, min_workers from 0 to workers, cpus above 0, gpus from 0",
            )

    def runtime(self, runtime: Runtime | None) -> Runtime:
        """`runtime` as a worker of this shape needs it."""
        runtime = runtime or Runtime()
        if self.gpus:
            return runtime
        return dataclasses.replace(runtime, device="cpu", threads=runtime.threads or max(1, int(self.cpus)))

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
        """Train, and copy the result to `out`.

        Args:
            store: one place for all nodes, a shared folder or a URI. Ray keeps checkpoints in the stage's scratch
                folder there, which `stages.run` deletes once the artefact is stored.
            stop: asked once a second; true ends the run with `Interrupted` at the next report, its checkpoint kept.

        Raises:
            BadRequest: a shape that cannot be. Missing: the store is not one place.
            Interrupted: `stop` requested it. Outage: workers were lost too often, or could not be placed.
            SomeFailed, IdgbrError: what the training itself raised.
        """
        self.check()
        check_batch(self.workers, getattr(experiment, job.stage).batch_images)
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(self.start_timeout_s))
        environment()
        import ray
        from ray.train import TrainingFailedError

        from idgbr.stages import scratch_name

        with connected():
            check_room(self.min_workers or self.workers, self.cpus, self.gpus)
            check_nodes(store)
            nonce = uuid.uuid4().hex
            store.write_bytes(f"{scratch_name(job)}/nonce", nonce.encode())
            sharding = self.sharding or getattr(experiment, job.stage).sharding
            work = _work(job, store, experiment, self.runtime(runtime), _mailbox(), sharding, nonce)
            work = dataclasses.replace(work, silent_s=self.silent_s, log=self.logs and self.logs / f"{job.stage}-{job.key}.log")
            trainer = self._trainer(work, store)
            try:
                with _relay(work.mailbox, report, stop):
                    result = trainer.fit()
            except TrainingFailedError as error:
                self.raise_cause(ray.get(work.mailbox.failure.remote()), error, job)
                raise
            ending = result.return_value or {}
            if ending.get("interrupted"):
                raise Interrupted(ending["interrupted"])
            self.raise_cause(ray.get(work.mailbox.failure.remote()), None, job)
            if result.checkpoint is None:
                raise SomeFailed(f"the training {job.stage} {job.key} ended without a result", hint="run the same command again")
            with result.checkpoint.as_directory() as folder:
                shutil.copytree(Path(folder) / "out", out, dirs_exist_ok=True)

    def _trainer(self, work: Work, store: Store) -> TorchTrainer:
        from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        return TorchTrainer(
            train_rank,
            train_loop_config={"work": work},
            torch_config=TorchConfig(backend="nccl" if self.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=(self.min_workers, self.workers) if self.min_workers else self.workers,
                use_gpu=self.gpus > 0,
                resources_per_worker={"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})},
                elastic_resize_monitor_interval_s=20.0,
                placement_strategy="STRICT_PACK" if self.one_node else "PACK",
            ),
            run_config=RunConfig(
                name=work.job.key,  # the same training always, another never
                # file system and path apart: a URI with a query (s3://...?endpoint_override=) cannot be extended by a
                # path
                storage_filesystem=None if store.is_local else store.fs,
                storage_path=f"{store.base}/scratch/{work.job.stage}",
                failure_config=FailureConfig(max_failures=self.max_failures, controller_failure_limit=CONTROLLER_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=KEEP_CHECKPOINTS),
                logging_config=LoggingConfig("ERROR"),
            ),
        )

    def raise_cause(self, own: Exception | None, error: Exception | None, job: Job) -> None:
        """Raise our own error if a worker sent one, else Ray's `error` in one sentence; nothing if there is neither.

        Raises:
            IdgbrError: from a worker. SomeFailed: the training's code raised another error.
            Outage: workers were lost too often, or could not be placed; a device or the link between devices failed.
        """
        from ray.train import ControllerError
        from torch import AcceleratorError
        from torch.distributed import DistBackendError, DistNetworkError

        if isinstance(own, IdgbrError):
            raise own from error
        if error is None:
            return
        name, text = f"{job.stage} {job.key}", " ".join(str(error).split())[:600]
        if isinstance(error, ControllerError):
            raise Outage(
                f"the workers of the training {name} could not be placed: {text}",
                value=f"workers={self.workers}",
                hint="fewer workers, or min_workers; `python -m cluster doctor`; the same command continues",
            ) from error
        raised = raised_by_training(error)
        if raised and not any(isinstance(e, AcceleratorError | DistBackendError | DistNetworkError) for e in raised):
            raise SomeFailed(f"the training {name} raised {type(raised[0]).__name__}: {raised[0]}") from error
        raise Outage(
            f"the training {name} lost its workers more often than max_failures={self.max_failures}: {text}",
            hint="the same command continues from the last checkpoint",
        ) from error


def train_up_to(stage: str, recipe: str, overrides: Sequence[str], root: str, training: RayTraining, *, bf16: bool = False) -> Path:
    """Make one stage of a recipe, and what it needs, on the cluster. Returns the folder of its files.

    Trainings run over the workers of `training`; any other stage is a Ray task with the CPUs of one worker, and its
    GPUs if it runs a network: the driver's machine, which may be a head without a GPU, computes nothing.
    """
    from idgbr import stages
    from idgbr.config import apply
    from idgbr.progress import Progress
    from idgbr.recipes import recipe as find_recipe

    training.check()
    experiment = apply(find_recipe(recipe), overrides)
    store = Store(root)
    store.check_writable()
    runtime = Runtime(precision="bf16" if bf16 else "fp32")
    wanted = stages.STAGES[: stages.STAGES.index(stage) + 1]
    todo = [job for job in stages.jobs(experiment) if job.stage in wanted]
    with connected():
        check_nodes(store)
        for job in todo:
            with Progress(f"{job.stage} {job.name if job.name != job.stage else ''} {job.key}") as progress:
                if job.trains:
                    stages.run(job, store, experiment, runtime, report=progress, fit=training)
                elif not store.has(job.stage, job.key):
                    run_on_cluster(job, store, experiment, runtime, training, progress)
    return store.path(todo[-1].stage, todo[-1].key)


def run_on_cluster(
    job: Job, store: Store, experiment: Experiment, runtime: Runtime, shape: RayTraining, report: Report | None = None
) -> None:
    """A stage that does not train, as a Ray task with the CPUs and (where it runs a network) GPUs of one worker of
    `shape`.

    Raises:
        Missing: no node has room for it. IdgbrError: what the stage found wrong.
    """
    import ray

    gpus = shape.gpus if job.stage in USES_GPU else 0.0
    check_room(1, shape.cpus, gpus)
    needs = dataclasses.replace(shape, gpus=gpus)
    work = _work(job, store, experiment, needs.runtime(runtime), _mailbox())
    task = ray.remote(num_cpus=needs.cpus, num_gpus=gpus, max_retries=shape.max_failures)(run_stage)
    with _relay(work.mailbox, report, None):
        ray.get(task.remote(work))  # Ray raises an error of the task as its own class


def _work(
    job: Job, store: Store, experiment: Experiment, runtime: Runtime, mailbox: ActorHandle, sharding: str = "ddp", nonce: str = ""
) -> Work:
    return Work(job, root_for_all(store), to_dict(absolute_paths(experiment)), runtime, sharding, nonce, mailbox)


def _mailbox() -> ActorHandle:
    """The actor, on the driver's node: both are lost together."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=node)(Mailbox).remote()


def _relay(mailbox: ActorHandle, report: Report | None, stop: Stop | None) -> Relay:
    import ray

    return Relay(lambda leave: ray.get(mailbox.exchange.remote(leave), timeout=ANSWER_S), report, stop)


def absolute_paths(experiment: Experiment) -> Experiment:
    """`experiment` with absolute paths, since Ray's workers run in folders of their own. An empty path means "none"
    and stays empty."""
    changed: Json = {}
    for name in SECTIONS:
        section: Section = getattr(experiment, name)
        given = {setting: getattr(section, setting) for setting in names_of_paths(section) if getattr(section, setting)}
        if given:
            absolute = {setting: str(expanded(path).absolute()) for setting, path in given.items()}
            changed[name] = dataclasses.replace(section, **absolute)
    return dataclasses.replace(experiment, **changed)
