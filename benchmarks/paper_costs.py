"""What the recipes of published data sets cost to train on one H100 and on eight: the table of docs/paper-costs.md.

    python benchmarks/paper_costs.py > docs/paper-costs.md

Predicted, not measured: counted FLOPs of a training image (`idgbr/costs.py`), times images, over a share of the card's dense bf16 peak
(`sweeps/run/forecast.py`, which says whether the share was measured). Eight GPUs: perfect division, each network trained by all of them.
Needs no data, no weights and no GPU; a Stable Diffusion 1.5 folder is written with true headers and no contents.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from idgbr import costs
from idgbr.config import Experiment
from idgbr.datasets.sources import layout
from idgbr.paper_recipes import RECIPES
from sweeps.run.forecast import CARDS, SHARES

CARD = "H100"
HEAD = """# What the recipes of published data sets cost

`python benchmarks/paper_costs.py > docs/paper-costs.md` writes this page. **Predicted, not measured:** counted FLOPs of a training image,
times images, over {peak:.0f} TFLOP/s (dense bf16 of an H100) and a share of it: backbones {backbone}, `small` {small}, `_sd15` {large}.
On an H100 two things were measured ([performance.md](performance.md#one-h100)): the small refiner of the CPU recipes (1 %: too
little work for the card) and sampling at Stable Diffusion 1.5's size (9 %, not compiled). Training at the sizes below has not been
timed on a GPU in bf16. One experiment trains a backbone for the coarse maps of held-out images, one for each fold, and one refiner.
`python -m sweeps plan paper_NAME data.root=FOLDER --cluster 8xH100` counts a whole study on your files, sampling included.

Memory is of one GPU that trains alone, with as many images a forward pass ("at once") as the memory plan finds room for in 80 GB; the
global batch is the recipe's on any number of GPUs. On eight, each GPU has an eighth of it.

| recipe | TFLOP an image: backbone | refiner | images: backbones | refiner | hours on one H100 | on 8 | {memory} |
|---|---|---|---|---|---|---|---|---|---|---|
"""
MEMORY = "memory on one: backbone | refiner | refiner images at once: on 8 | on one"


def head() -> str:
    """The page above its rows."""
    return HEAD.format(peak=CARDS[CARD].peak / 1e12, memory=MEMORY, large=SHARES["stable_diffusion"], **SHARES)


@dataclasses.dataclass(frozen=True)
class Row:
    """Costs of one recipe. tflop: of a training image, by stage. images: in all trainings, by stage. gb, passes: by number of GPUs."""

    recipe: str
    tflop: Mapping[str, float]
    images: Mapping[str, int]
    hours: float
    backbone_gb: float
    refiner_gb: float
    pass_on_8: int
    pass_on_1: int

    def __str__(self) -> str:
        numbers = (
            f"{self.tflop['backbone']:.3f}", f"{self.tflop['refiner']:.3f}", f"{self.images['backbone']:,}", f"{self.images['refiner']:,}",
            f"{self.hours:.1f}", f"{self.hours / 8:.1f}", f"{self.backbone_gb:.0f} GB", f"{self.refiner_gb:.0f} GB",
            f"{self.pass_on_8}", f"{self.pass_on_1}",
        )  # fmt: skip
        return f"| `{self.recipe}` | " + " | ".join(numbers) + " |"


def hours_of(images: Mapping[str, int], tflop: Mapping[str, float], is_large: bool) -> float:
    """Hours of one card for all trainings of an experiment."""
    shares = {"backbone": SHARES["backbone"], "refiner": SHARES["stable_diffusion" if is_large else "small"]}
    peak = CARDS[CARD].peak / 1e12
    return sum(images[stage] * tflop[stage] / (peak * shares[stage].value) for stage in images) / 3600


def row(name: str, experiment: Experiment, n_classes: int) -> Row:
    backbone, refiner = (costs.of_stage(experiment, stage, n_classes) for stage in ("backbone", "refiner"))
    tflop = {"backbone": backbone.train_flop / 1e12, "refiner": refiner.train_flop / 1e12}
    images = {"backbone": experiment.backbone.train_images * (1 + experiment.coarse.folds), "refiner": experiment.refiner.train_images}

    def at_once(stage: str, workers: int) -> int:
        return costs.plan_memory(experiment, stage, n_classes, CARDS[CARD].memory_gb, workers=workers)

    return Row(
        name, tflop, images, hours_of(images, tflop, bool(experiment.refiner.base)),
        backbone.memory_bytes(at_once("backbone", 1)) / costs.GB, refiner.memory_bytes(at_once("refiner", 1)) / costs.GB,
        at_once("refiner", 8), at_once("refiner", 1),
    )  # fmt: skip


def classes_of(source: str) -> int:
    """Classes of a published set, by its table."""
    table = layout(source).table
    return table.n_classes if table else 2


def rows() -> Iterator[Row]:
    for name, make in RECIPES.items():
        experiment = make()
        yield row(name, experiment, classes_of(experiment.data.source))


# ---- Stable Diffusion 1.5 without its weights ---------------------------------------------------------------------------------


def write_hollow_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file with a true header and zeros that take no space on disk, where shapes are all that is read."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def write_hollow_stable_diffusion(base: Path) -> Path:
    """`unet`, `vae` and the embedding of the empty prompt, with the sizes of Stable Diffusion 1.5."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
        )  # fmt: skip
    for name, module in (("unet", unet), ("vae", vae)):
        (base / name).mkdir(parents=True)
        module.save_config(base / name)
        shapes = {tensor: tuple(value.shape) for tensor, value in module.state_dict().items()}
        write_hollow_weights(base / name / "diffusion_pytorch_model.safetensors", shapes)
    write_hollow_weights(base / "empty_prompt.safetensors", {"prompt": (1, 77, 768)})
    return base


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="idgbr-costs-") as folder:
        os.environ["IDGBR_DATA"] = folder
        write_hollow_stable_diffusion(Path(folder) / "stable-diffusion-v1-5")
        print(head(), end="")
        for found in rows():
            print(found, flush=True)


if __name__ == "__main__":
    main()
