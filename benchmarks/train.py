"""Images per second of the refiner's training with cached VAE latents against without, in one run.

    python benchmarks/train.py [--images 16] [--batch 4]

The autoencoder has Stable Diffusion's layout and random weights, narrowed to CPU size (`--width` is 128 in the original); the U-Net is
the small one. Crops repeat after `--batch` images (`refiner.crop_pool`), so after the first round every latent comes from the cache.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from idgbr.config import RefinerConfig
from idgbr.datasets import BandStats
from idgbr.labels import ClassTable, LabelClass
from idgbr.refiner.loss import Numbered, RefinerTraining, cached_encoder
from idgbr.refiner.refiner import Refiner

SIDE_PX = 128


class RandomCrops:
    """Crops that cost nothing to read, so that only the network is timed."""

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(i)
        return {
            "image": torch.rand(3, SIDE_PX, SIDE_PX, generator=g) * 255,
            "coarse": torch.rand(2, SIDE_PX, SIDE_PX, generator=g).softmax(0),
            "target": torch.randint(0, 2, (SIDE_PX, SIDE_PX), generator=g).to(torch.uint8),
            "valid": torch.ones(SIDE_PX, SIDE_PX, dtype=torch.bool),
            "seed": torch.tensor(i),
        }


def make_refiner(width: int, folder: Path) -> Refiner:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=min(32, width),
    ).save_pretrained(folder)
    table = ClassTable((LabelClass("background", (0,), (0, 0, 0)), LabelClass("building", (1,), (255, 0, 0))))
    stats = BandStats((127.0,) * 3, (50.0,) * 3, (0.0,) * 3, (255.0,) * 3)
    return Refiner.build(RefinerConfig(codec="vae", vae=str(folder), crop_px=SIDE_PX), 3, table, stats)


def images_per_second(training: RefinerTraining, stream: Numbered, images: int, batch: int) -> float:
    """Over `images` images after one round of warm-up, which also fills the cache."""
    optimizer = torch.optim.AdamW([p for p in training.parameters() if p.requires_grad], 1e-4)
    start = 0.0
    for step in range(images // batch + 1):
        if step == 1:
            start = time.perf_counter()
        rows = [stream[step * batch + i] for i in range(batch)]
        loss, _ = training({k: torch.stack([r[k] for r in rows]) for k in rows[0]})
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return images // batch * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training = RefinerTraining(make_refiner(options.width, Path(folder))).train()
    cached = images_per_second(training, Numbered(RandomCrops(), options.batch, cached_encoder(training)), options.images, options.batch)
    plain = images_per_second(training, Numbered(RandomCrops(), options.batch), options.images, options.batch)
    print(f"training, {SIDE_PX} px crops, batches of {options.batch}: {plain:.2f} images a second, {cached:.2f} with cached latents")
    print(json.dumps({"speedup_cached_latents": round(cached / plain, 3)}))


if __name__ == "__main__":
    main()
