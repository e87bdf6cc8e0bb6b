"""A small study with real artefacts but made-up maps: synthetic scenes, real counts, corrupted targets instead of trained networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from idgbr import datasets, stages
from idgbr.coarse.simulate import corrupt
from idgbr.rasters.read import Reader, read_labels, write_class_map, write_probabilities
from idgbr.store import Store
from sweeps import tables
from sweeps.study import Axis, Study, Trial, expand

QUALITY = {"none": 0.72, "one_pass": 0.82, "diffusion": 0.86}  # IoU of each kind of map with the target


def study(scenes: int = 7) -> Study:
    return Study(
        name="mapped",
        recipe="synthetic",
        axes=(Axis("sampler.steps", (4, 1)),),
        overrides={"data.train_scenes": 2, "data.val_scenes": scenes, "data.test_scenes": 1, "data.scene_px": 128, "score.tile_px": 64},
        replicates=2,
        yardsticks=("coarse", "one_pass"),
    )


def write_maps(job: stages.Job, trial: Trial, store: Store, out: Path) -> None:
    e = trial.experiment
    dataset = datasets.load(store.path("data", job.parents["data"]), e.data)
    kind = "none" if job.stage == "coarse" else e.refiner.kind
    for raster in dataset.of("val"):
        target = read_labels(raster.label, dataset.table)
        rng = np.random.default_rng(int(job.key[:8], 16) if kind != "none" else 0)
        made = corrupt(target, dataset.table.n_classes, QUALITY[kind], ("jitter", "resample"), rng)
        grid = Reader(raster.image, dataset.bands).grid
        if job.stage == "coarse":
            onehot = np.stack([np.where(made == c, 0.9, 0.1 / (dataset.table.n_classes - 1)) for c in range(dataset.table.n_classes)])
            write_probabilities(out / f"{raster.id}.tif", onehot, grid)
        else:
            write_class_map(out / f"{raster.id}.tif", made, grid, dataset.table)


def write_mapped_study(root: Path, scenes: int = 7, fail_last: bool = True) -> list[Trial]:
    store = Store(root, cache=root / "cache")
    trials = expand(study(scenes))
    for i, trial in enumerate(trials):
        if fail_last and i == len(trials) - 1:
            manifests = {j.key: store.manifest(j.stage, j.key) for j in trial.jobs}
            row = tables.trial_row(
                trial.experiment,
                trial.jobs,
                manifests,
                trial=trial.id,
                role=trial.role,
                label=trial.label,
                status="failed",
                error="Traceback (most recent call last):\n  ...\nRuntimeError: loss is not a number at image 960 <NaN>",
            )
            tables.write_trial(store, "mapped", row)
            continue
        for job in trial.jobs:
            if job.trains:

                def curve(out: Path) -> None:
                    lines = [{"images": n, "loss": 1.0 / (1 + n / 100), "lr": 1e-3} for n in range(0, 1000, 100)]
                    (out / "curve.jsonl").write_text("\n".join(map(json.dumps, lines)))

                if not store.has(job.stage, job.key):
                    store.put(job.stage, job.key, curve, {"parents": job.parents})
            elif job.stage in ("coarse", "refined"):
                if not store.has(job.stage, job.key):
                    store.put(
                        job.stage, job.key, lambda out, job=job, trial=trial: write_maps(job, trial, store, out), {"parents": job.parents}
                    )
            else:
                stages.run(job, store, trial.experiment)
        manifests = {j.key: store.manifest(j.stage, j.key) for j in trial.jobs}
        row = tables.trial_row(
            trial.experiment, trial.jobs, manifests, trial=trial.id, role=trial.role, label=trial.label, status="done", commit="f" * 40
        )
        tables.write_parts(store, "mapped", row, trial.jobs)
    return trials
