"""`idgbr refine` without --model takes the refiner whose stored counts are best, and says which and why."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idgbr import datasets, stages
from idgbr.config import Experiment, apply
from idgbr.errors import BadRequest, Missing
from idgbr.rasters.read import Reader, read_labels, write_class_map, write_probabilities
from idgbr.scene.model import best_refiner, find_model
from idgbr.store import Store

BASE = apply(
    Experiment(),
    {
        "data.scene_px": 128, "data.train_scenes": 1, "data.val_scenes": 1, "data.test_scenes": 1, "score.tile_px": 64,
        "score.legacy": False, "coarse.source": "in_fold",
    },
)  # fmt: skip


def trial(store: Store, shift_px: int, *, counted: bool = True, **settings: Any) -> str:
    """The artefacts of a trial whose refined maps are the targets, shifted by some pixels. Returns the refiner's key."""
    e = apply(BASE, settings)
    jobs = {job.stage: job for job in stages.jobs(e)}
    stages.run(jobs["data"], store, e)
    dataset = datasets.load(store.path("data", jobs["data"].key), e.data)

    def maps(folder: Path, probabilities: bool) -> None:
        for raster in dataset.rasters if probabilities else dataset.of(e.sampler.split):
            index = np.roll(read_labels(raster.label, dataset.table), 9 if probabilities else shift_px, axis=1)
            grid = Reader(raster.image, dataset.bands).grid
            if probabilities:
                write_probabilities(folder / f"{raster.id}.tif", np.stack([index == c for c in range(2)]).astype(np.float32), grid)
            else:
                write_class_map(folder / f"{raster.id}.tif", index, grid, dataset.table)

    def put(stage: str, write: Any) -> None:
        if stage in jobs and not store.has(stage, jobs[stage].key):
            store.put(stage, jobs[stage].key, write, {"parents": jobs[stage].parents, "experiment": stages.to_dict(e)})

    put("coarse", lambda folder: maps(folder, True))
    put("refiner", lambda folder: (folder / "model.safetensors").write_bytes(b"weights"))
    put("refined", lambda folder: maps(folder, False))
    if counted:
        stages.run(jobs["counts"], store, e)
    return jobs["refiner"].key if "refiner" in jobs else ""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_the_best_by_boundary_iou_is_taken_and_said(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    trial(store, 9, **{"refiner.kind": "none"})
    trial(store, 0, **{"refiner.kind": "one_pass"})  # a yardstick: has to be named, however good
    trial(store, 4, **{"refiner.guidance_width": 16})
    wanted = trial(store, 1, **{"refiner.guidance_width": 32})
    trial(store, 0, counted=False, **{"refiner.guidance_width": 48})  # failed or pruned before its counts
    trial(store, 0, **{"refiner.guidance_width": 8, "sampler.split": "test"})  # never chosen by its test scores
    trial(store, 3, **{"refiner.guidance_width": 24})  # the newest
    best = best_refiner(store.base)
    assert best.key == wanted
    assert 0.3 < best.score < 1
    said = capsys.readouterr().err
    assert said == f"model: {wanted}, the best of 3 scored refiners of {store.base}: boundary_iou {best.score:.4f} on val\n"


def test_a_refiner_is_run_with_the_sampler_of_its_best_trial(store: Store) -> None:
    for steps, shift in ((1, 3), (8, 1), (4, 2)):
        key = trial(store, shift, **{"sampler.steps": steps})
    folder, experiment = find_model("", store.base)
    assert folder == store.path("refiner", key)
    assert experiment is not None
    assert experiment.sampler.steps == 8
    assert find_model(key, store.base)[1] == dataclasses.replace(experiment, sampler=dataclasses.replace(experiment.sampler, steps=1))


def test_where_none_can_be_called_the_best_the_error_says_what_to_name(store: Store) -> None:
    with pytest.raises(Missing, match="no refiner in the store"):
        best_refiner(store.base)
    key = trial(store, 0, counted=False)
    with pytest.raises(Missing, match=f"none of them can be called the best.*Allowed: {key}.*--model {key}"):
        best_refiner(store.base)
    one_pass = trial(store, 0, **{"refiner.kind": "one_pass"})
    with pytest.raises(Missing, match="none of them can be called the best") as error:
        best_refiner(store.base)
    assert one_pass in str(error.value)


def test_scores_on_different_data_are_not_compared(store: Store) -> None:
    first, second = trial(store, 2), trial(store, 1, **{"data.layout_seed": 5})
    with pytest.raises(BadRequest, match="2 data sets, whose scores cannot be compared") as error:
        best_refiner(store.base)
    assert first in str(error.value)
    assert second in str(error.value)
