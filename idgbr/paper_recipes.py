"""Recipes for published data sets at full size, on GPUs: the five of the paper (arXiv 2507.01573) and six more.

Every set has two recipes: NAME with the `small` refiner, which starts from random weights, and NAME_sd15 with a refiner built from a local
Stable Diffusion 1.5 folder. What each costs on one H100 and on eight: docs/paper-costs.md. Data, encoder weights, teacher and Stable
Diffusion lie below the folder IDGBR_DATA (docs/first-study.md says which), or set `data.root`, `backbone.weights`,
`refiner.condition_weights`, `refiner.base` and `refiner.teacher_weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from idgbr.config import BackboneConfig, CoarseConfig, DataConfig, Experiment, RefinerConfig, SamplerConfig, ScoreConfig
from idgbr.files import data_path

CROP_PX = 512
WIDTH_PX = 3  # boundary IoU and tolerance of boundary F, in pixels of the publisher's images; in metres where the pixel size is published


@dataclass(frozen=True)
class PaperSet:
    """A published data set as its recipes use it.

    Attributes:
        source: name of `data.source`, of the recipe, and of the folder below IDGBR_DATA.
        title: for people.
        pixel_m: published ground size of a pixel; None where it is not published or differs between images.
        test_split: split of the study's tables: "test", or "val" where the publisher keeps the test labels.
        train_images: 512 px crops that a network of stage I sees.
        data: further settings of the data stage.
        in_paper: whether arXiv 2507.01573 reports it.
        timestep_law: that the authors' configuration of the set trains with; they publish those of Potsdam (cubic) and CHN6-CUG (uniform).
    """

    source: str
    title: str
    pixel_m: float | None
    test_split: str = "test"
    train_images: int = 160_000
    data: tuple[tuple[str, Any], ...] = ()
    in_paper: bool = False
    timestep_law: str = "cubic"


SETS: dict[str, PaperSet] = {
    each.source: each
    for each in (
        PaperSet("chn6_cug", "CHN6-CUG, roads of six cities", 0.5, in_paper=True, timestep_law="uniform"),
        PaperSet("fgfd", "FGFD, farmland", None, in_paper=True),
        PaperSet("whu_building", "WHU-Building, aerial", 0.3, in_paper=True),
        PaperSet("potsdam", "ISPRS Potsdam, 6 classes", 0.05, data=(("variant", "IRRG"),), in_paper=True),
        PaperSet("vaihingen", "ISPRS Vaihingen, 6 classes", 0.09, in_paper=True),
        PaperSet("loveda", "LoveDA, 7 classes", 0.3, test_split="val", train_images=320_000),
        PaperSet("inria", "INRIA aerial images, buildings", 0.3, test_split="val", train_images=320_000),
        PaperSet("massachusetts_roads", "Massachusetts roads", 1.0),
        PaperSet("massachusetts_buildings", "Massachusetts buildings", 1.0),
        PaperSet("landcover_ai", "LandCover.ai, 5 classes", None),
    )
}


@dataclass(frozen=True)
class PaperBackbone:
    """A network of stage I: timm (or MiT) encoder, and decoder."""

    encoder: str
    decoder: str

    def settings(self) -> dict[str, Any]:
        """As overrides, with the encoder's weights below IDGBR_DATA."""
        return {
            "backbone.encoder": self.encoder,
            "backbone.decoder": self.decoder,
            "backbone.weights": weights_path(self.encoder),
        }


def weights_path(model: str) -> str:
    """Where the weights of a timm model (or MiT encoder) are looked for: IDGBR_DATA/weights/MODEL.safetensors."""
    return data_path(f"weights/{model}.safetensors")


# The first one is the recipes' own; a smaller budget drops them from the end (`python -m sweeps plan STUDY --budget-gpu-hours N`).
BACKBONES: dict[str, PaperBackbone] = {
    "segformer": PaperBackbone("mit_b2", "segformer"),
    "deeplabv3plus": PaperBackbone("resnet50", "deeplabv3plus"),
    "upernet": PaperBackbone("convnext_tiny", "upernet"),
    "unet": PaperBackbone("resnet50", "unet"),
}

TEACHER = "vit_base_patch14_dinov2"
SIZES = ("small", "sd15")


# How a GPU is used. Compilation gained 10 % in training on an H100 (docs/performance.md); no CUDA graphs, whose steps take one micro-batch.
_GPU: dict[str, Any] = {"bf16": True, "compile": "default", "loader_workers": 6}


def _small() -> RefinerConfig:
    """About 90 million parameters at a quarter of the image's resolution; trained from random weights, beside a frozen ImageNet encoder."""
    return RefinerConfig(
        channels=(96, 192, 384, 384),
        layers=2,
        condition_channels=(96, 192, 384, 384),
        condition_encoder="resnet50",
        condition_weights=weights_path("resnet50"),
        guidance_width=128,
        lr=3e-4,
        **_SCHEDULE,
    )


def _sd15() -> RefinerConfig:
    """Stable Diffusion 1.5's U-Net and VAE as the paper uses them, with velocity prediction in place of noise prediction: only so can a
    schedule end in pure noise (Lin et al., arXiv 2305.08891)."""
    return RefinerConfig(
        base=data_path("stable-diffusion-v1-5"),
        codec="vae",
        guidance_width=512,
        guidance_heads=8,
        guidance_window=0,
        schedule="scaled_linear",
        parameterisation="v",
        alignment=0.5,
        alignment_images=80_000,
        teacher=TEACHER,
        teacher_weights=weights_path(TEACHER),
        lr=3e-5,
        **_SCHEDULE,
    )


# As many images as the paper's released configuration sees (80,000 steps of 4), in steps that 8 GPUs can share
_SCHEDULE: dict[str, Any] = {
    "crop_px": CROP_PX,
    "batch_images": 32,
    "train_images": 320_000,
    "warmup_images": 16_000,
    "ema_images": 20_000.0,
    "checkpoint_images": 16_000,
    **_GPU,
}


def papers_own(name: str) -> dict[str, Any]:
    """The authors' configuration, as overrides of `NAME_sd15` (arXiv 2507.01573 and its code; docs/method.md): noise prediction,
    scaled-linear schedule without zero terminal SNR, the set's law of timesteps, plain crops, no weight average, 80,000 steps of 4 images,
    alignment in the first 200 steps, 25 DDIM steps with leading spacing and guidance scale 3.

    Guidance enters the decoder alone and labels are VAE codes in every `_sd15` recipe. Without dropped conditions a guidance scale has
    no second branch to be trained: the authors drop none, here it is a tenth.
    """
    return {
        "refiner.parameterisation": "epsilon",
        "refiner.schedule": "scaled_linear",
        "refiner.zero_terminal_snr": False,
        "refiner.timestep_law": SETS[name].timestep_law,
        "refiner.condition_dropout": 0.1,
        "refiner.boundary_share": 0.0,
        "refiner.alignment_images": 800,
        "refiner.batch_images": 4,
        "refiner.lr": 1e-5,
        "refiner.warmup_images": 2000,
        "refiner.ema_images": 0.0,
        "sampler.sampler": "ddim",
        "sampler.steps": 25,
        "sampler.spacing": "leading",
        "sampler.guidance_scale": 3.0,
    }


def paper_experiment(name: str, size: str = "small") -> Experiment:
    """The experiment of a set of `SETS` with the refiner `size` ("small" or "sd15")."""
    published = SETS[name]
    first = BACKBONES["segformer"]
    width_m = WIDTH_PX * published.pixel_m if published.pixel_m else 0.0
    return Experiment(
        data=DataConfig(source=name, root=data_path(name), **dict(published.data)),
        backbone=BackboneConfig(
            encoder=first.encoder,
            decoder=first.decoder,
            weights=weights_path(first.encoder),
            lr=1e-4,
            crop_px=CROP_PX,
            batch_images=16,
            train_images=published.train_images,
            warmup_images=8000,
            ema_images=8000.0,
            checkpoint_images=16_000,
            **_GPU,
        ),
        coarse=CoarseConfig(folds=3, tile_px=CROP_PX, overlap_px=128),
        refiner=_small() if size == "small" else _sd15(),
        sampler=SamplerConfig(tile_px=CROP_PX, overlap_px=64, batch_tiles=16),
        score=ScoreConfig(tile_px=CROP_PX, boundary_px=float(WIDTH_PX), boundary_m=width_m, tolerance_m=width_m),
    )


def _recipe(name: str, size: str) -> Callable[[], Experiment]:
    def make() -> Experiment:
        return paper_experiment(name, size)

    published = SETS[name]
    study = f"paper_{name}" if size == "small" else f"paper_{name}_sd15"
    refiner = "a refiner from random weights" if size == "small" else "a refiner from a local Stable Diffusion 1.5 folder"
    make.__name__ = name if size == "small" else f"{name}_sd15"
    make.__doc__ = f"{published.title}, full size, 512 px crops, {refiner}: `python -m sweeps run {study} data.root=FOLDER`, GPUs."
    return make


RECIPES: dict[str, Callable[[], Experiment]] = {make.__name__: make for size in SIZES for name in SETS for make in (_recipe(name, size),)}
