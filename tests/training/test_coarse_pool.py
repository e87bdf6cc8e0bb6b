"""`coarse.pool`: one refiner for the coarse maps of many backbones, trained on those of a few."""

from __future__ import annotations

from pathlib import Path

import pytest

from idgbr import stages
from idgbr.config import Experiment, apply
from idgbr.errors import BadRequest
from idgbr.rasters.coarse_map import read_coarse
from idgbr.store import Store
from sweeps.tables import trial_row

POOL = ("test_resnet/unet", "test_resnet/fpn")
TINY = {
    "data.train_scenes": 4, "data.val_scenes": 1, "data.test_scenes": 0, "data.scene_px": 64, "backbone.encoder": "test_resnet",
    "backbone.crop_px": 64, "backbone.batch_images": 2, "backbone.train_images": 2, "coarse.folds": 2, "coarse.tile_px": 64,
    "coarse.overlap_px": 16,
}  # fmt: skip


def jobs(decoder: str, pool: tuple[str, ...] = (), **more: object) -> dict[str, stages.Job]:
    e = apply(Experiment(), {**TINY, "backbone.decoder": decoder, "coarse.pool": pool, **more})
    return {job.name: job for job in stages.jobs(e)}


def test_one_refiner_serves_every_backbone_and_the_pool_trains_nothing_twice() -> None:
    one, other, alone = jobs("fpn", POOL), jobs("linknet", POOL), jobs("fpn")
    assert one["refiner"].key == other["refiner"].key != alone["refiner"].key
    assert one["coarse"].key == alone["coarse"].key
    assert one["refined"].parents == {"data": one["data"].key, "coarse": one["coarse"].key, "refiner": one["refiner"].key}
    assert one["pool_fold0"].key == jobs("unet")["fold0"].key
    assert "pool_fold1" not in one, "the second network is this experiment's own, and is trained once"
    assert other["pool_fold1"].key == alone["fold1"].key
    assert jobs("fpn", POOL, **{"refiner.kind": "none"}).keys() == jobs("fpn", **{"refiner.kind": "none"}).keys()


def test_the_row_of_a_trial_names_the_maps_that_were_refined() -> None:
    e = apply(Experiment(), {**TINY, "coarse.pool": POOL})
    row = trial_row(e, stages.jobs(e), {}, trial="a", role="trial", label="", status="done")
    assert row["key_coarse"] == {job.name: job for job in stages.jobs(e)}["coarse"].key


def test_each_fold_of_the_pool_is_mapped_by_its_network(tmp_path: Path) -> None:
    e = apply(Experiment(), {**TINY, "backbone.decoder": "linknet", "coarse.pool": POOL})
    store = Store(tmp_path)
    made = {job.name: job for job in stages.jobs(e) if job.stage in ("data", "backbone", "coarse")}
    for job in made.values():
        stages.run(job, store, e)
    from idgbr import datasets
    from idgbr.coarse import backbone

    dataset = datasets.load(store.path("data", made["data"].key), e.data)
    maps = store.path("coarse", made["pool_coarse"].key)
    for n, ids in enumerate(dataset.folds(2)):
        network = backbone.load(store.path("backbone", made[f"pool_fold{n}"].key))
        assert type(network.body).__name__ == ("Unet", "FPN")[n]
        for raster in (r for r in dataset.of("train") if r.id in ids):
            (_, expected), *_ = backbone.predict(network, raster.reader(dataset.bands), 64, 16)
            assert read_coarse(maps, raster.id) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coarse.pool": ("resnet18",)}, "encoder/decoder"),
        ({"coarse.pool": ("resnet18/fpm",)}, "fpn"),
        ({"coarse.pool": POOL, "coarse.source": "in_fold"}, r"out-of-fold.*in_fold"),
    ],
)
def test_a_pool_that_cannot_be_is_one_clear_error(settings: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        apply(Experiment(), settings)
