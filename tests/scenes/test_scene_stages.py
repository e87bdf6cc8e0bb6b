"""The stage "refined" over a split, and `predict` with a backbone's folder."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from rio_cogeo.cogeo import cog_validate
from scene_doubles import blobs, small_refiner

from idgbr.coarse import backbone
from idgbr.commands.predict import predict, predict_scene
from idgbr.config import BackboneConfig, CoarseConfig, Experiment, SamplerConfig
from idgbr.datasets import BandStats
from idgbr.datasets.index import Raster
from idgbr.errors import Disagreement, Missing
from idgbr.rasters.coarse_map import CoarseMap
from idgbr.rasters.read import IGNORE, Grid, Reader, read_labels, read_probabilities, write_probabilities
from idgbr.refiner.refiner import Refiner
from idgbr.scene.stage import refine_split
from idgbr.scene.strips import refine_raster
from idgbr.scene.tiles import TorchTiles


@pytest.fixture
def split(tmp_path, grid, write_image):
    """Two rasters (one in a folder of its own) with coarse probabilities, as a data set of two classes."""
    table = Refiner.load(small_refiner(tmp_path / "model")).table
    rasters = []
    for name, size in (("a", (60, 80)), ("place/b", (40, 50))):
        rng = np.random.default_rng(len(name))
        image = tmp_path / f"{name}.tif"
        image.parent.mkdir(exist_ok=True)
        write_image(image, rng.integers(0, 200, (3, *size)).astype(np.uint8), grid(*size), nodata=0)
        soft = np.eye(2, dtype=np.float32)[blobs(rng, *size, 2)].transpose(2, 0, 1) * 0.6 + 0.2
        (tmp_path / "coarse" / name).parent.mkdir(parents=True, exist_ok=True)
        write_probabilities(tmp_path / "coarse" / f"{name}.tif", soft, grid(*size))
        rasters.append(Raster(name, name, "val", image, None, None, *size, 0.5))
    return SimpleNamespace(of=lambda wanted: {"val": tuple(rasters)}[wanted], bands=(1, 2, 3), table=table), tmp_path / "coarse"


def test_without_a_refiner_the_stage_writes_the_argmax_of_the_coarse_maps(tmp_path, split):
    dataset, coarse = split
    said = []
    (out := tmp_path / "out").mkdir()
    refine_split(SamplerConfig(), None, dataset, coarse, "val", seed=0, out=out, report=lambda **v: said.append(v))
    for raster in dataset.of("val"):
        with rasterio.open(out / f"{raster.id}.tif") as file:
            assert (file.read(1) == read_probabilities(coarse / f"{raster.id}.tif").argmax(axis=0)).all()
    assert said[-1]["done"] == said[-1]["total"] == 2
    assert json.loads((out / "tiles.json").read_text())["a"]["computed"] == 0


def test_samples_and_probabilities_are_kept_where_uncertainty_is_asked_for(tmp_path, split):
    dataset, coarse = split
    maps = {}
    for name, samples, asked in (("plain", 3, False), ("three", 3, True), ("one", 1, True)):
        (out := tmp_path / name).mkdir()
        sampler = SamplerConfig(tile_px=32, overlap_px=8, steps=2, samples=samples)
        refine_split(sampler, tmp_path / "model", dataset, coarse, "val", seed=1, out=out, uncertainty=asked)
        maps[name] = {p.relative_to(out).as_posix(): rasterio.open(p).read() for p in sorted(out.rglob("*.tif"))}
    assert maps["plain"].keys() == {"a.tif", "place/b.tif"}
    assert maps["three"].keys() == {f"{folder}{name}" for folder in ("", "_probabilities/", "_samples/") for name in maps["plain"]}
    assert maps["one"].keys() == {f"{folder}{name}" for folder in ("", "_probabilities/") for name in maps["plain"]}
    for name in maps["plain"]:
        assert (maps["plain"][name] == maps["three"][name]).all()
        samples, p = maps["three"][f"_samples/{name}"], maps["three"][f"_probabilities/{name}"]
        assert samples.shape[0] == 3
        assert samples.max() <= 1
        assert (samples[0] != samples[1]).any()
        agreed = (samples == samples[0]).all(0)
        assert (p.argmax(0) == maps["three"][name][0])[agreed].mean() > 0.95


def test_the_stage_is_the_same_engine_and_hides_no_pixel_of_the_image_s_nodata(tmp_path, split):
    dataset, coarse = split
    sampler = SamplerConfig(tile_px=32, overlap_px=8, steps=1, reach_px=5)
    outs = []
    for batch in (1, 7):
        (out := tmp_path / f"out{batch}").mkdir()
        refine_split(dataclasses.replace(sampler, batch_tiles=batch), tmp_path / "model", dataset, coarse, "val", seed=3, out=out)
        outs.append([(out / f"{r.id}.tif").read_bytes() for r in dataset.of("val")])
    assert outs[0] == outs[1]
    tiles = TorchTiles(Refiner.load(tmp_path / "model"))
    reader, guess = Reader(tmp_path / "a.tif"), CoarseMap(coarse / "a.tif", dataset.table)
    refine_raster(tiles, sampler, reader, guess, tmp_path / "x.tif", raster_id="a", seed=3, table=dataset.table, mask_nodata=False)
    assert (tmp_path / "x.tif").read_bytes() == outs[0][0]
    got = read_labels(tmp_path / "x.tif", guess.table)
    assert (got != IGNORE).all()
    assert (got != guess.strip(0, 60).index).any()


@pytest.fixture(scope="module")
def backbone_dir(tmp_path_factory):
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("backbone")
    config = BackboneConfig(encoder="test_resnet", decoder="fpn")
    stats = BandStats((100.0,) * 3, (50.0,) * 3, (0.0,) * 3, (255.0,) * 3)
    torch.manual_seed(0)
    network = backbone.build(config, 3, 3, stats)
    save_file(network.state_dict(), folder / "model.safetensors")
    facts = {"format": backbone.FORMAT, "config": dataclasses.asdict(config), "n_classes": 3, "classes": ["a", "b", "c"],
             "mean": list(stats.mean), "std": list(stats.std)}  # fmt: skip
    (folder / "backbone.json").write_text(json.dumps(facts))
    return folder


def test_predict_writes_a_class_map_or_probabilities_that_refine_can_read(tmp_path, grid, write_image, table, backbone_dir):
    rng = np.random.default_rng(0)
    image = rng.integers(1, 255, (3, 150, 170)).astype(np.uint8)
    image[:, :20] = 0
    scene = write_image(tmp_path / "s.tif", image, g := grid(150, 170), nodata=0)
    experiment = Experiment(coarse=CoarseConfig(tile_px=64, overlap_px=16))
    predict_scene(backbone_dir, experiment, table, scene, tmp_path / "c.tif")
    predict_scene(backbone_dir, experiment, table, scene, tmp_path / "p.tif", probabilities=True)
    assert Grid.of(tmp_path / "c.tif") == Grid.of(tmp_path / "p.tif") == g
    assert all(cog_validate(tmp_path / name, strict=True, quiet=True)[0] for name in ("c.tif", "p.tif"))
    hard, soft = CoarseMap(tmp_path / "c.tif", table), CoarseMap(tmp_path / "p.tif", table)
    assert (hard.is_probabilities, soft.is_probabilities) == (False, True)
    a, b = hard.strip(0, 150), soft.strip(0, 150)
    for strip in (a, b):
        assert ((strip.index == IGNORE) == (image == 0).all(axis=0)).all()
    sure = np.sort(b.values, axis=0)[-1] - np.sort(b.values, axis=0)[-2] > 1 / 255  # quantisation may tie the others
    assert (a.index == b.index)[sure].all()
    strips = np.concatenate([p for _, p in backbone.predict(backbone.load(backbone_dir), Reader(scene), 64, 16)], axis=1)
    known = a.index != IGNORE
    assert (a.index == strips.argmax(axis=0))[known].all()
    renamed = dataclasses.replace(table, classes=tuple(dataclasses.replace(c, name=c.name + "s") for c in table.classes))
    with pytest.raises(Disagreement, match="other classes"):
        CoarseMap(tmp_path / "c.tif", renamed)


def test_predict_names_the_command_when_nothing_is_trained(tmp_path, grid, write_image):
    from idgbr.recipes import recipe

    scene = write_image(tmp_path / "s.tif", np.ones((3, 20, 20), np.uint8), grid(20, 20))
    with pytest.raises(Missing, match="idgbr train-backbone"):
        predict(recipe("synthetic"), scene, tmp_path / "o.tif", store=str(tmp_path / "store"))
    assert not (tmp_path / "o.tif").exists()
