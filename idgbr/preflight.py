"""What can be known before anything trains: networks that cannot be built, files of another model, GPUs that are too
small.

Networks are built on torch's meta device, which holds no memory; of weights files the headers are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from idgbr.config import Experiment, Runtime, TrainingConfig
from idgbr.machine import allowed_cores

if TYPE_CHECKING:
    from idgbr.training.distributed import World


def check_backbone(experiment: Experiment, n_bands: int, n_classes: int) -> None:
    """Raises: BadRequest: encoder, decoder and sizes that do not go together. Missing, Disagreement: a weights file
    that is not there, or another's.
    """
    from idgbr.coarse.encoders import check

    for side in dict.fromkeys((experiment.backbone.crop_px, experiment.coarse.tile_px)):
        check(experiment.backbone, side, n_bands, n_classes)


def check_refiner(experiment: Experiment, n_bands: int, n_classes: int) -> None:
    """The network, the folders it is built from, and the teacher of its alignment.

    Raises:
        BadRequest: settings that contradict each other. Missing, Disagreement: files that are not there, or another
            model's.
    """
    import torch

    from idgbr.datasets.index import BandStats
    from idgbr.labels import ClassTable, LabelClass
    from idgbr.refiner.loss import RefinerTraining
    from idgbr.refiner.refiner import Refiner

    table = ClassTable(tuple(LabelClass(f"class{i}", (i,), (i, i, i)) for i in range(n_classes)))
    ones = (1.0,) * n_bands
    with torch.device("meta"):
        RefinerTraining(Refiner.build(experiment.refiner, n_bands, table, BandStats(ones, ones, ones, ones)))


def check_training(
    experiment: Experiment, stages: Iterable[str], n_classes: int, runtime: Runtime, *, workers: int = 1, sharding: str = ""
) -> None:
    """All of it, for the training stages among `stages`; memory is checked where this process sees a GPU.

    Args:
        sharding: ddp or fsdp; empty: what each stage's settings say.

    Raises:
        BadRequest, Missing, Disagreement: see the other functions, and `costs.plan_memory`.
    """
    from idgbr.costs import plan_memory
    from idgbr.training.distributed import device_of

    n_bands = len(experiment.data.bands)
    device = device_of(runtime)
    for stage, check in (("backbone", check_backbone), ("refiner", check_refiner)):
        if stage in stages:
            check(experiment, n_bands, n_classes)
            if device.type == "cuda":
                chosen = gpu_runtime(getattr(experiment, stage), runtime, cores=1)
                shards = sharding or getattr(experiment, stage).sharding
                plan_memory(experiment, stage, n_classes, gpu_gb(runtime), workers=workers, sharding=shards, precision=chosen.precision)


def gpu_gb(runtime: Runtime) -> float:
    """Memory of this process's GPU, or of its share of one, in GB (1e9 bytes)."""
    import torch

    return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory) / 1e9 * runtime.gpu_share


def gpu_runtime(settings: TrainingConfig, runtime: Runtime, cores: int) -> Runtime:
    """What a stage's settings choose for GPUs, added to what was asked for.

    Args:
        cores: that this process may use, itself included: the others can load.
    """
    return dataclasses.replace(
        runtime,
        precision="bf16" if settings.bf16 else runtime.precision,
        compile=runtime.compile or settings.compile,
        loader_workers=runtime.loader_workers or min(settings.loader_workers, max(0, cores - 1)),
    )


def training_runtime(experiment: Experiment, stage: str, n_classes: int, runtime: Runtime, world: World) -> Runtime:
    """The runtime of one training: on a GPU with what its settings choose, and as many images a forward pass as its
    memory holds.

    Raises:
        BadRequest: it does not fit the GPU.
    """
    import torch

    settings = getattr(experiment, stage)
    fixed = getattr(settings, "micro_images", 0)
    device = world.device(runtime)
    if device.type != "cuda":
        return dataclasses.replace(runtime, micro_images=runtime.micro_images or fixed)
    from idgbr.costs import plan_memory

    cores = runtime.threads or allowed_cores() // torch.cuda.device_count()
    runtime = gpu_runtime(settings, runtime, cores)
    if getattr(settings, "crop_pool", 0):  # frozen codes are computed on the GPU and kept: in this process
        runtime = dataclasses.replace(runtime, loader_workers=0)
    smallest = float(world.min(torch.tensor(gpu_gb(runtime), device=device)))  # all ranks cut a step alike
    images = plan_memory(experiment, stage, n_classes, smallest, workers=world.size, sharding=world.sharding, precision=runtime.precision)
    return dataclasses.replace(runtime, micro_images=runtime.micro_images or images)
