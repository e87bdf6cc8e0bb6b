"""Refiners of simulated training maps tune their decision on maps of their backbone: those that they will refine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_coarse_pool import TINY

from idgbr import datasets, stages
from idgbr.coarse import backbone
from idgbr.config import Experiment, SamplerConfig, apply
from idgbr.rasters.coarse_map import read_coarse
from idgbr.refiner import Refiner, loss
from idgbr.store import Store

SMALL = {
    **TINY, "backbone.decoder": "fpn", "refiner.channels": (16, 32), "refiner.condition_channels": (16, 32), "refiner.guidance_width": 16,
    "refiner.crop_px": 32, "refiner.batch_images": 2, "refiner.train_images": 2, "refiner.held_out": 0.25,
}  # fmt: skip


def jobs(source: str, **more: object) -> dict[str, stages.Job]:
    return {job.name: job for job in stages.jobs(apply(Experiment(), {**SMALL, "coarse.source": source, **more}))}


def test_only_simulated_training_maps_need_others_to_tune_on() -> None:
    for source in ("out_of_fold", "in_fold"):
        assert "tuning" not in jobs(source)
        assert "tuning" not in jobs(source)["refiner"].parents
    for source in ("simulated", "mixed", "thirds"):
        found = jobs(source)
        assert found["refiner"].parents["tuning"] == found["tuning"].key
        assert "tuning" not in jobs(source, **{"refiner.held_out": 0.0})
        assert "tuning" not in jobs(source, **{"refiner.kind": "none"})
    assert jobs("simulated")["tuning"].key == jobs("in_fold")["coarse"].key
    assert jobs("mixed")["tuning"].key == jobs("out_of_fold")["coarse"].key
    assert set(jobs("mixed")["tuning"].parents) == {"data", "full", "fold0", "fold1"}


def test_the_decision_is_tuned_on_maps_of_the_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    tuned_decision = loss.tuned_decision

    def watched(refiner: Refiner, dataset: datasets.Dataset, coarse_dir: Path, share: float) -> SamplerConfig:
        seen.append(coarse_dir)
        return tuned_decision(refiner, dataset, coarse_dir, share)

    monkeypatch.setattr(loss, "tuned_decision", watched)
    e, store = apply(Experiment(), {**SMALL, "coarse.source": "simulated"}), Store(tmp_path)
    made = {job.name: job for job in stages.jobs(e)}
    for job in made.values():
        stages.run(job, store, e)
    [folder] = seen
    dataset = datasets.load(store.path("data", made["data"].key), e.data)
    raster = dataset.of("train")[0]
    mapped = read_coarse(folder, raster.id, (0, 0, raster.height, raster.width))
    network = backbone.load(store.path("backbone", made["full"].key))
    rows = backbone.predict(network, raster.reader(dataset.bands), e.coarse.tile_px, e.coarse.overlap_px, temperature=e.coarse.temperature)
    np.testing.assert_allclose(mapped, np.concatenate([p for _, p in rows], axis=1), atol=1 / 255)
