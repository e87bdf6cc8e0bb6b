"""Small jobs, and the curve that one process gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from idgbr import stages
from idgbr.config import Experiment, Runtime, apply
from idgbr.store import Store

SMALL = {
    "data.train_scenes": 3, "data.val_scenes": 1, "data.test_scenes": 0, "data.scene_px": 96,
    "backbone.encoder": "test_resnet", "backbone.decoder": "fpn", "backbone.crop_px": 32, "backbone.batch_images": 4,
    "backbone.train_images": 80, "backbone.warmup_images": 8, "backbone.checkpoint_images": 8, "backbone.lr": 3e-5,
    "coarse.source": "in_fold",
}  # fmt: skip


def prepared(store: Store, **overrides: Any) -> tuple[Experiment, stages.Job]:
    """An experiment whose data are in the store, and its backbone job."""
    experiment = apply(Experiment(), SMALL | overrides)
    data, backbone = stages.jobs(experiment)[:2]
    stages.run(data, store, experiment)
    return experiment, backbone


def one_process(store: Store, experiment: Experiment, job: stages.Job, out: Path) -> Path:
    stages.train_stage(job, store, experiment, out, runtime=Runtime(device="cpu", threads=1), scratch=out / "scratch")
    return out
