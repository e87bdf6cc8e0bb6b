"""Cost of the Stable-Diffusion-1.5-shaped refiner at 512 px, counted by torch's FLOP counter on the meta device (no weights, no data).

    python benchmarks/flops.py

The authors' code spends 2,653 GFLOP a step and 71.1 TFLOP a tile at 25 steps (counted; docs/method.md). 2 FLOP a multiply-add.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from idgbr.config import RefinerConfig
from idgbr.datasets import BandStats
from idgbr.labels import ClassTable, LabelClass
from idgbr.refiner.refiner import Refiner
from idgbr.refiner.stable_diffusion import Parts

SIDE_PX = 512
STEPS = 4


def stable_diffusion_shape() -> Refiner:
    """The refiner of a Stable Diffusion 1.5 folder, attention alive over whole feature maps, on the meta device."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet, condition_unet = (
            UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280))
            for _ in range(2)
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
    # `base` only says that the U-Net is given: its folder is not read here
    config = RefinerConfig(base="given", codec="vae", guidance_width=512, guidance_heads=8, guidance_window=0, crop_px=SIDE_PX)
    table = ClassTable((LabelClass("background", (0,), (0, 0, 0)), LabelClass("building", (1,), (255, 0, 0))))
    stats = BandStats((127.0,) * 3, (50.0,) * 3, (0.0,) * 3, (255.0,) * 3)
    return Refiner(config, 3, table, stats, Parts(vae, unet, condition_unet, torch.zeros(1, 77, 768))).to("meta").eval()


def gflop(run: Callable[[], Any]) -> tuple[float, Any]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops() / 1e9, result


def main() -> None:
    refiner = stable_diffusion_shape()
    image = torch.empty(1, 3, SIDE_PX, SIDE_PX, device="meta")
    coarse = torch.empty(1, 2, SIDE_PX, SIDE_PX, device="meta")
    conditions, condition = gflop(lambda: refiner.condition(image, coarse))
    z, t = torch.empty_like(condition.latent), torch.empty(1, device="meta")
    plain, _ = gflop(lambda: refiner.predict(z, t, condition))
    guided, _ = gflop(lambda: refiner.predict(z, t, condition, guidance_scale=3.0))
    decode, _ = gflop(lambda: refiner.codec.decode(z))
    tile = (conditions + STEPS * plain + decode) / 1e3
    millions = {
        name: sum(p.numel() for p in getattr(refiner, name).parameters()) / 1e6 for name in ("denoiser", "condition_encoder", "guidance")
    }
    print(
        f"Stable Diffusion 1.5 shape, {SIDE_PX} px, one tile; millions of parameters: "
        + ", ".join(f"{k} {v:.1f}" for k, v in millions.items())
    )
    rows = [
        ("conditions (two VAE encodings, frozen encoder, keys and values)", conditions),
        ("one step", plain),
        ("one step with classifier-free guidance", guided),
        ("decoding", decode),
        (f"tile, {STEPS} steps", tile * 1e3),
        (f"tile, {STEPS} steps with classifier-free guidance", conditions + STEPS * guided + decode),
    ]
    for name, value in rows:
        print(f"{name:65s} {value:10.1f} GFLOP")
    print(json.dumps({"gflop_per_step_cfg": round(guided, 1), "gflop_per_step": round(plain, 1), "tflop_tile_4_steps": round(tile, 3)}))


if __name__ == "__main__":
    main()
