"""Recipes: functions that return a whole `Experiment`. A user's own works the same: `path/to/file.py:function`.

Each begins with its command, the time it takes, and the score to expect.
"""

from __future__ import annotations

import dataclasses
import inspect
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from idgbr.config import BackboneConfig, CoarseConfig, DataConfig, Experiment, RefinerConfig, SamplerConfig, ScoreConfig, apply
from idgbr.errors import BadRequest, Missing, nearest
from idgbr.files import data_path
from idgbr.paper_recipes import RECIPES as PAPER_RECIPES

T = TypeVar("T")

# Share of the training ground that tunes the decision saved with the refiner, so that `refine` without settings does
# not lose mIoU there. Studies, which never use that decision, train on all ground (`sweeps.study.Study.base`).
HELD_OUT = 0.1


def synthetic() -> Experiment:
    """Synthetic roofs, 2 classes: `idgbr demo`, about 4 minutes on one core. The `quickstart` study is built on it."""
    return Experiment(
        data=DataConfig(source="synthetic", train_scenes=24, val_scenes=8, test_scenes=8, scene_px=256),
        backbone=BackboneConfig(
            encoder="test_efficientnet", decoder="fpn", crop_px=128, train_images=1600, lr=3e-3, warmup_images=80, ema_images=200
        ),
        coarse=CoarseConfig(folds=2),
        refiner=RefinerConfig(
            channels=(32, 64), condition_channels=(32, 64), guidance_width=32, crop_px=64, train_images=3200, warmup_images=320
        ),
        sampler=SamplerConfig(tile_px=128, overlap_px=32),
        score=ScoreConfig(tile_px=128),
    )


# In place of the defaults, which lose area with every step: docs/log.md, 2026-11-26.
_SECOND_DESIGN: dict[str, Any] = {
    "class_channels": True,
    "pixel_channels": 16,
    "timestep_law": "grid",
    "grid_steps": 8,
    "last_share": 0.25,
    "recycle": 1.0,
    "warm_start": 0.5,
    "first_input": "zero",
}


def naip_fields() -> Experiment:
    """Farm fields in aerial images of 34 places, installed with idgbr: no download, no weights file.

    `idgbr train-refiner naip_fields`: a few minutes on two cores. The encoder starts from random weights. For a
    pretrained one set `backbone.encoder` and `backbone.weights`, or take the recipe `naip_fields_pretrained`.
    Expected on the validation places: docs/log.md.
    """
    return Experiment(
        data=DataConfig(source="naip_fields"),
        backbone=BackboneConfig(
            encoder="test_efficientnet", decoder="pan", crop_px=160, train_images=2400, lr=3e-3, warmup_images=80, ema_images=200
        ),
        # PAN pools over its whole input: it is run on windows of about the size that it was trained on. Simulated
        # coarse maps train the refiner: the backbone's own maps of its training places are so good that the refiner
        # would learn to copy them (docs/log.md).
        coarse=CoarseConfig(source="simulated", tile_px=192, overlap_px=32),
        refiner=RefinerConfig(
            channels=(24, 48),
            condition_channels=(24, 48),
            guidance_width=32,
            **_SECOND_DESIGN,
            crop_px=64,
            batch_images=8,
            train_images=6000,
            warmup_images=200,
            ema_images=480,
            held_out=HELD_OUT,
        ),
        sampler=SamplerConfig(sampler="renoise", steps=4),
        score=ScoreConfig(tile_px=256),
    )


def demo() -> Experiment:
    """`naip_fields`, refined and scored on the middle 512 x 512 px of every validation place, trained on all training
    ground: `idgbr demo` and `make demo`."""
    whole = naip_fields()
    refiner = dataclasses.replace(whole.refiner, held_out=0.0)
    return dataclasses.replace(whole, data=DataConfig(source="naip_fields", split_table="demo.csv"), refiner=refiner)


def naip_fields_pretrained() -> Experiment:
    """`naip_fields` with an encoder pretrained on ImageNet: its weights file lies below IDGBR_DATA, or set
    `backbone.weights` and `refiner.condition_weights`.

    `idgbr train-refiner naip_fields_pretrained`, sized for two cores. Expected on the validation places, three seeds:
    boundary IoU 19.8 of the coarse map, 23.8 refined (docs/log.md, 2026-11-26).
    """
    return Experiment(
        data=DataConfig(source="naip_fields"),
        backbone=_pretrained_backbone(train_images=2400),
        coarse=CoarseConfig(source="simulated"),
        refiner=dataclasses.replace(_refiner_with_encoder(train_images=12_800), **_SECOND_DESIGN, amplitude=0.2, crop_px=128),
        sampler=SamplerConfig(sampler="renoise", steps=4, tile_px=128, overlap_px=32),
        score=ScoreConfig(tile_px=256),
    )


def oam_buildings() -> Experiment:
    """Buildings from drones, zoom 20 (about 0.14 m), sized for two cores: `python -m sweeps run oam`, about 70
    minutes.

    Data and ImageNet weights lie in the folder IDGBR_DATA, or set `data.root`, `backbone.weights` and
    `refiner.condition_weights`. Expected on the validation scene: docs/log.md.
    """
    return Experiment(
        data=DataConfig(source="oam_buildings", root=data_path("oam-buildings"), where="zoom == 20"),
        backbone=_pretrained_backbone(train_images=1600),
        coarse=CoarseConfig(folds=3),
        refiner=_refiner_with_encoder(train_images=12_800, ema_images=1600),
        sampler=SamplerConfig(steps=4),
        score=ScoreConfig(tile_px=256),
    )


def dubai_landcover() -> Experiment:
    """Five classes of land cover from space, sized for two cores: `idgbr train-refiner dubai_landcover`, about 25
    minutes.

    Folders as for `oam_buildings`. Folds are by ground block: by scene, four fifths of the training area would be in
    one fold. Expected on the validation tile: docs/log.md.
    """
    return Experiment(
        data=DataConfig(source="dubai_landcover", root=data_path("dubai-landcover")),
        backbone=_pretrained_backbone(train_images=2400),
        coarse=CoarseConfig(folds=4),
        refiner=_refiner_with_encoder(train_images=4800),
        sampler=SamplerConfig(steps=4),
        score=ScoreConfig(tile_px=256),
    )


def buildings_world() -> Experiment:
    """Buildings of 20 places, for measuring on places never trained on; chips whose masks fit the image within 2 px
    (grades A and B).

    Folders as for `oam_buildings`. Few chips a place: intervals resample places.
    """
    return Experiment(
        data=DataConfig(source="buildings_world", root=data_path("buildings-world"), where="grade <> 'C'"),
        backbone=_pretrained_backbone(train_images=1600),
        coarse=CoarseConfig(folds=3),
        refiner=_refiner_with_encoder(train_images=4800),
        sampler=SamplerConfig(steps=4),
        score=ScoreConfig(tile_px=256),
    )


def general() -> Experiment:
    """The general refiner: one class against the rest, on tiles that `python benchmarks/general.py tiles` writes to
    IDGBR_DATA/general from several data sets.

    `idgbr train-refiner general`: minutes on one GPU, a night on two cores; Ctrl-C and the same command again go on. What
    comes out, and how it scores on places never seen: docs/models.md.
    """
    return Experiment(
        data=DataConfig(source="folder", root=data_path("general")),
        coarse=CoarseConfig(source="external", root=data_path("general/coarse")),
        refiner=RefinerConfig(
            kind="one_pass",
            channels=(32, 64, 96),
            condition_channels=(48, 96, 144),
            condition_encoder="tf_efficientnet_lite0",
            condition_weights=data_path(_LITE0),
            class_channels=True,
            pixel_channels=16,
            fresh_coarse=1.0,
            temperature_spread=0.5,
            crop_px=128,
            batch_images=32,
            train_images=64_000,
            warmup_images=2000,
            ema_images=3200,
        ),
        sampler=SamplerConfig(tile_px=256, overlap_px=32),
        score=ScoreConfig(tile_px=256),
    )


def buildings_elsewhere() -> Experiment:
    """`oam_buildings` with the 18 places of `buildings_world` whose masks fit (grades A and B) as test places: nothing is
    trained or chosen on them.

    IDGBR_DATA holds both folders, oam-buildings and buildings-world.
    """
    return dataclasses.replace(oam_buildings(), data=DataConfig(source="buildings_elsewhere", root=data_path(""), where="zoom == 20"))


_LITE0 = "weights/tf_efficientnet_lite0_in1k.safetensors"


def _pretrained_backbone(train_images: int) -> BackboneConfig:
    return BackboneConfig(encoder="tf_efficientnet_lite0", decoder="fpn", weights=data_path(_LITE0), crop_px=192, train_images=train_images)


def _refiner_with_encoder(train_images: int, ema_images: float = 800.0) -> RefinerConfig:
    return RefinerConfig(
        condition_encoder="tf_efficientnet_lite0",
        condition_weights=data_path(_LITE0),
        train_images=train_images,
        ema_images=ema_images,
        held_out=HELD_OUT,
    )


BUILT_IN: dict[str, Callable[[], Experiment]] = {
    f.__name__: f
    for f in (
        synthetic,
        naip_fields,
        demo,
        naip_fields_pretrained,
        oam_buildings,
        dubai_landcover,
        buildings_world,
        buildings_elsewhere,
        general,
    )
} | PAPER_RECIPES


def recipe(name: str) -> Experiment:
    """The experiment of a built-in recipe, or of `path.py:function`.

    Raises:
        BadRequest: no such recipe (names the nearest), or the function is not one.
        Missing: no such file.
    """
    if ".py:" not in name:
        if name not in BUILT_IN:
            raise BadRequest(
                "no such recipe",
                value=name,
                allowed=", ".join(sorted(BUILT_IN)) + ", or path.py:function",
                hint=nearest(name, BUILT_IN) or None,
            )
        return BUILT_IN[name]()
    return load_function(name, Experiment)()


def load_function(name: str, returns: type[T]) -> Callable[[], T]:
    """`path.py:function` -> the function, checked to take no required argument."""
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise Missing("no such file", value=path, hint="path/to/file.py:function")
    scope = runpy.run_path(path)
    if not callable(scope.get(function)):
        functions = [n for n, v in scope.items() if inspect.isfunction(v) and v.__module__ == "<run_path>"]
        raise BadRequest(
            f"{path} has no function {function}", allowed=", ".join(functions) or "none there", hint=nearest(function, functions) or None
        )

    def call() -> T:
        value = scope[function]()
        if not isinstance(value, returns):
            raise BadRequest(
                f"{name} must return {'an' if returns.__name__[0] in 'AEIOU' else 'a'} {returns.__name__}", value=type(value).__name__
            )
        return value

    return call


def experiment(name: str, overrides: tuple[str, ...] = ()) -> Experiment:
    """The recipe of this name with `stage.field=value` overrides applied.

    Raises:
        BadRequest: no such recipe, or an override that does not fit.
    """
    return apply(recipe(name), overrides)
