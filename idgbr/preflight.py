"""What can be known before anything trains: networks that cannot be built, files of another model, GPUs that are too small.

Networks are built on torch's meta device, which holds no memory; of weights files the headers are read.
"""

from __future__ import annotations

from collections.abc import Iterable

from idgbr.config import Experiment, Runtime


def check_backbone(experiment: Experiment, n_bands: int, n_classes: int) -> None:
    """Raises:
    BadRequest: encoder, decoder and sizes that do not go together. Missing, Disagreement: a weights file that is not there, or another's.
    """
    from idgbr.coarse.encoders import check

    for side in dict.fromkeys((experiment.backbone.crop_px, experiment.coarse.tile_px)):
        check(experiment.backbone, side, n_bands, n_classes)


def check_refiner(experiment: Experiment, n_bands: int, n_classes: int) -> None:
    """The network, the folders it is built from, and the teacher of its alignment.

    Raises:
        BadRequest: settings that contradict each other. Missing, Disagreement: files that are not there, or another model's.
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
    experiment: Experiment, stages: Iterable[str], n_classes: int, runtime: Runtime, *, workers: int = 1, sharding: str = "ddp"
) -> None:
    """All of it, for the training stages among `stages`; memory is checked where this process sees a GPU.

    Raises:
        BadRequest, Missing, Disagreement: see the other functions, and `costs.check_memory`.
    """
    import torch

    from idgbr.costs import GB, check_memory
    from idgbr.training.distributed import device_of

    n_bands = len(experiment.data.bands)
    gpu_gb = torch.cuda.get_device_properties(0).total_memory / GB if device_of(runtime).type == "cuda" else 0.0
    for stage, check in (("backbone", check_backbone), ("refiner", check_refiner)):
        if stage in stages:
            check(experiment, n_bands, n_classes)
            if gpu_gb:
                check_memory(experiment, stage, n_classes, gpu_gb, workers=workers, sharding=sharding, precision=runtime.precision)
