"""Scenes of another split table (`data.elsewhere`) are refined and scored with networks that are not trained again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from idgbr import stages
from idgbr.config import DataConfig, Experiment, apply
from idgbr.errors import BadRequest, Disagreement, Missing
from idgbr.scores.read import read_counts
from idgbr.store import Store
from sweeps.run import plan
from sweeps.study import Axis, Study

SETTINGS = {
    "data.source": "folder",
    "backbone.encoder": "test_efficientnet",
    "backbone.crop_px": 64,
    "backbone.train_images": 4,
    "backbone.batch_images": 4,
    "coarse.source": "simulated",
    "coarse.tile_px": 64,
    "coarse.overlap_px": 16,
    "refiner.kind": "one_pass",
    "refiner.channels": (16, 32),
    "refiner.condition_channels": (16, 32),
    "refiner.guidance_width": 16,
    "refiner.crop_px": 32,
    "refiner.batch_images": 4,
    "refiner.train_images": 4,
    "sampler.tile_px": 64,
    "sampler.overlap_px": 16,
    "score.tile_px": 64,
}


@pytest.fixture
def root(own_folder: Callable[..., DataConfig]) -> Path:
    """Four scenes; splits.csv trains on the first two, elsewhere.csv holds the fourth alone, leak.csv the first too."""
    folder = Path(own_folder(("train", "train", "val", "test"), side=64).root)
    head, first, second, third, fourth = (folder / "splits.csv").read_text().splitlines()
    (folder / "splits.csv").write_text("\n".join([head, first, second, third]))
    (folder / "elsewhere.csv").write_text("\n".join([head, fourth]))
    (folder / "leak.csv").write_text("\n".join([head, fourth, first.replace(",train,", ",test,")]))
    return folder


def experiment(root: Path, **more: object) -> Experiment:
    return apply(Experiment(), {**SETTINGS, "data.root": str(root), **{name.replace("__", "."): value for name, value in more.items()}})


@pytest.mark.parametrize("source", ["simulated", "out_of_fold", "in_fold", "mixed"])
@pytest.mark.parametrize("kind", ["one_pass", "diffusion", "none"])
def test_nothing_is_trained_for_scenes_elsewhere(root: Path, source: str, kind: str) -> None:
    at_home = stages.jobs(experiment(root, coarse__source=source, refiner__kind=kind))
    away = stages.jobs(experiment(root, coarse__source=source, refiner__kind=kind, data__elsewhere="elsewhere.csv", sampler__split="test"))
    assert {j.key for j in away if j.trains} == {j.key for j in at_home if j.trains}
    assert {j.key for j in away if j.stage in ("refined", "counts")}.isdisjoint(j.key for j in at_home)
    known: set[str] = set()
    for job in away:  # parents first
        assert set(job.parents.values()) <= known, job
        known.add(job.key)


def test_scenes_elsewhere_are_refined_and_scored(root: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    e = experiment(root, data__elsewhere="elsewhere.csv", sampler__split="test")
    for job in stages.jobs(e):
        stages.run(job, store, e)
    counts = read_counts(store.path("counts", stages.jobs(e)[-1].key) / "counts.parquet")
    assert set(counts["scene"]) == {"place3"}
    again = Store(store.base)
    for job in stages.jobs(experiment(root)):  # the data set's own scenes: both trainings are there already
        found = stages.run(job, again, experiment(root))
        if job.trains:
            assert found == store.manifest(job.stage, job.key)


def test_a_training_image_elsewhere_is_refused(root: Path) -> None:
    with pytest.raises(Disagreement, match=r"training images stand in data\.elsewhere.*images_scene_0 = images_scene_0"):
        stages.jobs(experiment(root, data__elsewhere="leak.csv", sampler__split="test"))


def test_synthetic_scenes_have_no_table_elsewhere() -> None:
    with pytest.raises(BadRequest, match="no split tables"):
        stages.jobs(apply(Experiment(), {"data.elsewhere": "elsewhere.csv"}))


def test_a_study_whose_split_has_no_scenes_is_refused_before_anything_is_trained(root: Path, tmp_path: Path) -> None:
    axes = (Axis("sampler.steps", (1, 2)),)
    study = Study("elsewhere", "synthetic", axes=axes, overrides={**SETTINGS, "data.root": str(root), "data.elsewhere": "elsewhere.csv"})
    with pytest.raises(Missing, match=r"no labelled scenes in the split 'val'.*Allowed: sampler\.split=test"):
        plan.make(study, Store(tmp_path / "store"))
    there = dataclasses.replace(study, overrides={**study.overrides, "sampler.split": "test"})
    assert plan.make(there, Store(tmp_path / "store")).trials
