"""What the tests of the paper's recipes share: the data folder, and settings that make every recipe small."""

from __future__ import annotations

from pathlib import Path

import small_stable_diffusion
import timm
import torch
from miniature_layouts import LAYOUTS, Truth
from safetensors.torch import save_file

from idgbr.config import Experiment, apply
from idgbr.paper_recipes import RECIPES, SETS

PUBLISHED = dict(reversed(LAYOUTS.values()))  # of several layouts of a set the first

TINY = {
    "backbone.encoder": "test_efficientnet",
    "backbone.decoder": "fpn",
    "backbone.crop_px": 32,
    "backbone.batch_images": 4,
    "backbone.train_images": 4,
    "backbone.warmup_images": 4,
    "coarse.folds": 2,
    "coarse.tile_px": 32,
    "coarse.overlap_px": 8,
    "refiner.guidance_width": 16,
    "refiner.guidance_heads": 2,
    "refiner.crop_px": 32,
    "refiner.batch_images": 4,
    "refiner.train_images": 4,
    "refiner.warmup_images": 4,
    "sampler.tile_px": 32,
    "sampler.overlap_px": 8,
    "sampler.steps": 1,
    "score.tile_px": 32,
}
TINY_SMALL = {
    "refiner.channels": (16, 32),
    "refiner.condition_channels": (16, 32),
    "refiner.layers": 1,
    "refiner.condition_encoder": "test_efficientnet",
}
TINY_SD15 = {"refiner.teacher": "test_vit", "sampler.tile_px": 64, "score.tile_px": 64}


def write_data_folder(folder: Path) -> dict[str, Truth]:
    """Everything that the recipes look for below IDGBR_DATA, small; returns the truth of every set."""
    truths = {name: PUBLISHED[name](folder / name) for name in SETS}
    (folder / "weights").mkdir()
    torch.manual_seed(0)
    for model in ("test_efficientnet", "test_vit"):
        save_file(timm.create_model(model).state_dict(), folder / "weights" / f"{model}.safetensors")
    small_stable_diffusion.write(folder / "stable-diffusion-v1-5")
    return truths


def tiny(recipe: str, folder: Path) -> Experiment:
    """The recipe with small networks, crops and tiles and few images; all else as it is."""
    name = recipe.removesuffix("_sd15")
    settings = TINY | (TINY_SD15 if recipe != name else TINY_SMALL)
    settings |= {"backbone.weights": str(folder / "weights" / "test_efficientnet.safetensors"), "sampler.split": SETS[name].test_split}
    where, model = ("refiner.teacher_weights", "test_vit") if recipe != name else ("refiner.condition_weights", "test_efficientnet")
    return apply(RECIPES[recipe](), settings | {where: str(folder / "weights" / f"{model}.safetensors")})
