"""Studies of what the paper claims (arXiv 2507.01573): coarse maps of diverse architectures gain, and the gain is in
the high frequencies.

    python -m sweeps run backbones                      nine networks on farm fields, three seeds
    python -m sweeps run backbones_test                 the same networks and refiners on the 12 test places: sampling alone, once
    python -m sweeps run backbones_oam_buildings        four of them on buildings, three seeds
    python -m sweeps run backbones_elsewhere            the same on 18 places never trained on: sampling alone
    python -m sweeps run backbones_dubai_landcover      four of them on land cover, three seeds
    python -m sweeps run backbones_own                  each with refiners trained on its own maps, and on a pool's
    python -m sweeps run frequency                      25, 50 and 100 % of the training images
    python -m sweeps run samples                        what samples say of their own errors

Every map is compared with those of the same network and training: `coarse`, `one_pass`, `cascade`, `diffusion`.
`python -m sweeps plan STUDY` counts what would run. Stopped, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from idgbr.files import data_path
from sweeps.study import Overrides, Setting, Study

Settings = dict[str, Setting]

SEEDS = 3
STEPS = 4

# The refiner's second design, as in the recipe `naip_fields`.
SECOND_DESIGN: Settings = {
    "refiner.class_channels": True,
    "refiner.pixel_channels": 16,
    "refiner.timestep_law": "grid",
    "refiner.grid_steps": 8,
    "refiner.last_share": 0.25,
    "refiner.recycle": 1.0,
    "refiner.warm_start": 0.5,
    "refiner.first_input": "zero",
    "sampler.sampler": "renoise",
    "sampler.steps": STEPS,
}
# A small network that two cores train in minutes, the same for every set of data.
SMALL: Settings = {
    "refiner.channels": (24, 48),
    "refiner.condition_channels": (24, 48),
    "refiner.condition_encoder": "",
    "refiner.condition_weights": "",
    "refiner.guidance_width": 32,
    "refiner.crop_px": 64,
    "refiner.batch_images": 8,
    "refiner.train_images": 6000,
    "refiner.warmup_images": 200,
    "refiner.ema_images": 480,
}
KINDS = ("one_pass", "cascade", "diffusion")

_LITE0, _LITE2 = (f"weights/tf_efficientnet_lite{n}.safetensors" for n in ("0_in1k", "2_in1k_fp16"))


def _network(encoder: str, decoder: str, weights: str = "") -> Settings:
    return {"backbone.encoder": encoder, "backbone.decoder": decoder, "backbone.weights": data_path(weights) if weights else ""}


# Of different families: convolutions and attention in the encoder, pyramid, skip, context and attention in the decoder.
# The first two start from ImageNet, the others from random weights.
NETWORKS: dict[str, Settings] = {
    "lite0_fpn": _network("tf_efficientnet_lite0", "fpn", _LITE0),
    "lite2_unet": _network("tf_efficientnet_lite2", "unet", _LITE2),
    "small_pan": _network("test_efficientnet", "pan"),
    "resnet18_deeplab": _network("resnet18", "deeplabv3plus"),
    "convnext_upernet": _network("convnext_atto", "upernet"),
    "pvt_segformer": _network("pvt_v2_b0", "segformer"),
    "vit_dpt": _network("vit_tiny_patch16_224", "dpt"),
    "mobilenet_linknet": _network("mobilenetv3_small_100", "linknet"),
    "regnet_pspnet": _network("regnety_002", "pspnet"),
}
FEWER = ("lite0_fpn", "small_pan", "resnet18_deeplab", "pvt_segformer")  # on the other sets

# Training maps of `backbones_own`: a fold by each of these networks, for the maps of all nine.
POOL = ("test_efficientnet/pan", "resnet18/deeplabv3plus", "pvt_v2_b0/segformer", "convnext_atto/upernet")
FOLDS = len(POOL)

# Some networks pool over their whole input: all are run on windows of the size that they were trained on.
WINDOWS: Settings = {"backbone.train_images": 2400, "backbone.crop_px": 128, "coarse.tile_px": 128, "coarse.overlap_px": 32}


def _kinds(common: Overrides) -> list[Settings]:
    return [{**common, "refiner.kind": kind} for kind in KINDS]


def _small(low: float, high: float = 0.0) -> Settings:
    """Settings of every study of small networks. Refiners learn on simulated maps of an IoU from `low` to `high` (0: of
    `low`), which need no network: the same three refiners serve the maps of all.
    """
    return {**SECOND_DESIGN, **SMALL, **WINDOWS, "coarse.source": "simulated", "coarse.iou": low, "coarse.iou_high": high}


# Recipe and settings of the refiners of a data set.
SETS: dict[str, tuple[str, Settings]] = {
    "naip_fields": ("demo", _small(0.8)),
    "oam_buildings": ("buildings_elsewhere", _small(0.6, 0.9)),
    "dubai_landcover": ("dubai_landcover", _small(0.4, 0.8)),
}


def _backbones(name: str, data: str, networks: Iterable[str], split: str = "val", elsewhere: str = "") -> Study:
    """The maps of every network, refined by the same refiners."""
    recipe, settings = SETS[data]
    return Study(
        name=name,
        recipe=recipe,
        points=tuple(point for network in networks for point in _kinds(NETWORKS[network])),
        overrides={**settings, "sampler.split": split, "data.elsewhere": elsewhere},
        replicates=SEEDS,
        yardsticks=("coarse",),
    )


def backbones() -> Study:
    """`python -m sweeps run backbones`: nine networks on the middle 512 x 512 px of the ten validation places of
    naip_fields, three seeds of the refiners.

    IDGBR_DATA holds the weights of the two networks that start from ImageNet.
    """
    return _backbones("backbones", "naip_fields", NETWORKS)


def backbones_test() -> Study:
    """`python -m sweeps run backbones_test`, after `backbones`: the same networks and refiners on the 12 test places of
    naip_fields. Sampling alone; once, at the end.
    """
    return _backbones("backbones_test", "naip_fields", NETWORKS, "test", "demo_test.csv")


def backbones_oam_buildings() -> Study:
    """`python -m sweeps run backbones_oam_buildings`: four networks, three seeds, on the validation scene."""
    return _backbones("backbones_oam_buildings", "oam_buildings", FEWER)


def backbones_elsewhere() -> Study:
    """`python -m sweeps run backbones_elsewhere`, after `backbones_oam_buildings`: the same networks and refiners on 18
    places of buildings_world that nothing was trained or chosen on. Sampling alone; once, at the end.
    """
    return _backbones("backbones_elsewhere", "oam_buildings", FEWER, "test")


def backbones_dubai_landcover() -> Study:
    """`python -m sweeps run backbones_dubai_landcover`: four networks on five classes of land cover, three seeds."""
    return _backbones("backbones_dubai_landcover", "dubai_landcover", FEWER)


def backbones_own() -> Study:
    """`python -m sweeps run backbones_own`: the nine networks of `backbones`, each with refiners trained on maps of its
    own, half of them simulated, and with refiners trained on the maps of `POOL`. One seed; 45 backbones, 30 refiners.
    """
    own = Study(
        name="backbones_own",
        recipe="demo",
        points=tuple(point for network in NETWORKS.values() for point in _kinds(network)),
        overrides={**SECOND_DESIGN, **SMALL, **WINDOWS, "coarse.source": "mixed", "coarse.folds": FOLDS},
        yardsticks=("coarse",),
    )
    pooled = tuple({**point, "coarse.pool": POOL} for point in own.points)
    return own | replace(own, points=pooled, yardsticks=())


def frequency() -> Study:
    """`python -m sweeps run frequency`: coarse, one_pass, cascade and diffusion after 25, 50 and 100 % of the training
    images of the recipe `demo`, three seeds: which sizes of error does each remove?

    `python -m sweeps frequency frequency` draws the figure.
    """
    images = 6000
    schedule = [{"refiner.train_images": images * percent // 100} for percent in (100, 50, 25)]
    return Study(
        name="frequency",
        recipe="demo",
        points=tuple(point for part in schedule for point in _kinds(part)),
        overrides={"sampler.steps": STEPS},
        replicates=SEEDS,
        yardsticks=("coarse",),
    )


def samples() -> Study:
    """`python -m sweeps run samples`: what samples buy. Energy score, calibration and detection of errors of one pass, and
    of diffusion with one, four and eight samples; three seeds. After `frequency` it trains nothing.

    `energy_boundary` of the samples stands beside `energy_boundary_levels`, which one pass has without samples.
    """
    return Study(
        name="samples",
        recipe="demo",
        points=({"refiner.kind": "one_pass"}, *({"sampler.samples": n} for n in (1, 4, 8))),
        overrides={"sampler.steps": STEPS, "score.uncertainty": True},
        replicates=SEEDS,
        yardsticks=("coarse",),
    )


STUDIES: dict[str, Callable[[], Study]] = {
    f.__name__: f
    for f in (
        backbones,
        backbones_test,
        backbones_oam_buildings,
        backbones_elsewhere,
        backbones_dubai_landcover,
        backbones_own,
        frequency,
        samples,
    )
}
