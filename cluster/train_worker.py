"""What runs in the Ray workers of a training: one rank, or one stage that does not train."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.session import not_shared
from idgbr.config import Runtime, from_dict
from idgbr.errors import IdgbrError, Interrupted
from idgbr.interfaces import Json, Report, Stop
from idgbr.silence import SignsOfLife
from idgbr.store import Store

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from idgbr.stages import Job

STOP_EVERY_S = 1.0

log = logging.getLogger("ray.train")  # Ray keeps one file of it for each worker


@dataclass(frozen=True)
class Work:
    """What a worker is sent: plain values, and a handle of the `Mailbox` actor.

    Args:
        store: its root as it reads on every node. nonce: what the driver wrote in the job's scratch folder.
        silent_s, log: see `idgbr.silence.SignsOfLife`.
    """

    job: Job
    store: str
    experiment: Json
    runtime: Runtime
    sharding: str
    nonce: str
    mailbox: ActorHandle
    silent_s: float = 0.0
    log: Path | None = None


def train(settings: dict[str, Work]) -> dict[str, str]:
    """One rank of Ray Train. Returns {} or {"interrupted": message}."""
    import ray
    import ray.train as rt

    from idgbr.stages import scratch_name, train_stage

    work = settings["work"]
    if ray.get(work.mailbox.failure.remote()) is not None:
        return {}  # another attempt would meet the same error; the driver raises it
    context = rt.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    job, store = work.job, Store(work.store)
    try:
        if store.read_bytes(f"{scratch_name(job)}/nonce") != work.nonce.encode():
            raise not_shared(store, [f"{ray.util.get_node_ip_address()} (rank {rank})"])
        life = SignsOfLife(work.silent_s, work.log)
        world = ray_world(work.sharding, life)
        with life.watched(), tempfile.TemporaryDirectory(prefix="idgbr-") as folder:
            out = Path(folder) / "out"
            with world.latest_checkpoint(out) as found:
                if found is not None and (found / "out").is_dir():
                    return {}  # trained and reported, but the driver died before it took the result
            log.info("rank %d of %d, %s, trains %s %s", rank, size, work.sharding, job.stage, job.key)
            train_stage(
                job, store, from_dict(work.experiment), out, world=world, runtime=work.runtime,
                scratch=Path(folder) / "scratch", report=_reporter(work.mailbox, workers=size), stop=_stopper(work.mailbox),
            )  # fmt: skip
            world.report_result(out)
    except Interrupted as ended:
        return {"interrupted": str(ended)}
    except IdgbrError as error:
        log.error("rank %d: %s", rank, error)
        ray.get(work.mailbox.fail.remote(error))
        raise
    return {}


def run_stage(work: Work) -> None:
    """A stage that does not train, as a Ray task."""
    from idgbr import stages

    report, stop = _reporter(work.mailbox), _stopper(work.mailbox)
    stages.run(work.job, Store(work.store), from_dict(work.experiment), work.runtime, report=report, stop=stop)


def _reporter(mailbox: ActorHandle, **more: int) -> Report:
    def report(**values: Any) -> None:
        log.info("%s", {**more, **values})
        mailbox.report.remote({**more, **values})

    return report


def _stopper(mailbox: ActorHandle) -> Stop:
    """Whether the driver requests a stop; asks at most once a second, since a lone worker calls it at every step."""
    import ray

    last = [0.0]

    def stop() -> bool:
        if time.monotonic() - last[0] < STOP_EVERY_S:
            return False
        last[0] = time.monotonic()
        return bool(ray.get(mailbox.stopping.remote()))

    return stop


def ray_world(sharding: str, life: SignsOfLife) -> Any:
    """The `World` of this Ray Train worker, with `report_result` (a class made here, because torch and ray are
    imported late)."""
    import ray.train as rt
    import torch
    from ray.train import Checkpoint, CheckpointUploadMode
    from ray.train.torch import get_device

    from idgbr.training.distributed import DistributedWorld, Save, Sent

    class RayWorld(DistributedWorld):
        """Ranks of torch.distributed as Ray set them up; checkpoints travel through `ray.train.report`."""

        def __init__(self) -> None:
            device = get_device()
            super().__init__(sharding, device if device.type == "cuda" else torch.device("cpu"))

        def broadcast(self, value: Sent) -> Sent:  # where all ranks come by
            life.sign()
            return super().broadcast(value)

        @contextlib.contextmanager
        def latest_checkpoint(self, scratch: Path) -> Iterator[Path | None]:
            checkpoint = rt.get_checkpoint()
            if checkpoint is None:
                yield None
                return
            with checkpoint.as_directory() as folder:
                yield Path(folder)

        def keep_checkpoint(self, scratch: Path, images: int, save: Save, record: Json) -> None:
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

        def _send(self, metrics: Json, folder: Path, mode: CheckpointUploadMode) -> None:
            """On every rank, the same number of times: Ray waits for all. Only rank 0 has something to upload."""
            if self.rank == 0:
                rt.report(metrics, checkpoint=Checkpoint.from_directory(folder), checkpoint_upload_mode=mode)
            else:
                rt.report(metrics, checkpoint=None)

        def drop_checkpoints(self, scratch: Path) -> None: ...

    return RayWorld()
