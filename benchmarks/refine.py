"""Our sampler against a plain, uncached rendering of the same maths, at the small CPU size, in one run.

    python benchmarks/refine.py [--tiles 4] [--steps 4] [--repeats 9]

Plain: every step runs the condition encoder, prepares keys and values, runs the U-Net's encoder for the guidance network and then the
whole U-Net again (twice with classifier-free guidance), as the authors' code does. Ours: conditions once a tile, one encoder pass a
step. Both give the same maps; the largest difference is printed. `speedup_cached` is for the paper's sampling, two passes with guidance
scale 3; `speedup_cached_scale_1` for one pass without classifier-free guidance. On a GPU: bf16, channels-last and torch.compile against
fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from idgbr.config import RefinerConfig, SamplerConfig
from idgbr.datasets import BandStats
from idgbr.labels import ClassTable, LabelClass
from idgbr.refiner.diffusion import Diffusion, Sampler, noise_like
from idgbr.refiner.refiner import Refiner


def small_refiner() -> Refiner:
    """The default CPU size; random weights everywhere (a fresh guidance network has no effect)."""
    table = ClassTable((LabelClass("background", (0,), (0, 0, 0)), LabelClass("building", (1,), (255, 0, 0))))
    stats = BandStats((127.0,) * 3, (50.0,) * 3, (0.0,) * 3, (255.0,) * 3)
    torch.manual_seed(0)
    refiner = Refiner.build(RefinerConfig(condition_dropout=0.1), 3, table, stats).eval()
    with torch.no_grad():
        for parameter in refiner.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return refiner


@torch.no_grad()
def plain(refiner: Refiner, image: Tensor, coarse: Tensor, seeds: list[int], config: SamplerConfig) -> Tensor:
    latent = refiner.codec.encode(coarse)
    sampler = Sampler(Diffusion(refiner.config), config)
    z = sampler.start(noise_like(seeds, tuple(latent.shape[1:]))[0].to(latent), latent)
    for step, t in enumerate(sampler.timesteps):
        t_B = t.to(latent.device).expand(len(z))
        prepared = refiner.prepare(refiner.image_input(image), coarse, latent).prepared
        early = refiner.denoiser.encode(z, t_B)
        guidance = refiner.guidance((*early.skips, early.middle), prepared)
        output = refiner.denoiser.decode(refiner.denoiser.encode(z, t_B).with_guidance(guidance))
        if config.guidance_scale != 1:
            free = refiner.denoiser.decode(refiner.denoiser.encode(z, t_B))
            output = free + config.guidance_scale * (output - free)
        x0 = refiner.codec.encode(refiner.codec.logits(output).softmax(1))
        z = sampler.next(z, x0, step)
    return refiner.codec.decode(z)


def seconds(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_seconds(repeats: int, *runs: Callable[[], Tensor]) -> list[float]:
    """Of each, after one warm-up; in turn, so that a machine that slows down slows all of them."""
    for run in runs:
        run()
    times = [[seconds(run) for run in runs] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    n, side = options.tiles, 128
    refiner = small_refiner()
    image, coarse = torch.rand(n, 3, side, side) * 255, torch.rand(n, 2, side, side).softmax(1)
    seeds = list(range(n))
    results: dict[str, float] = {}
    for name, scale in (("cached", 3.0), ("cached_scale_1", 1.0)):
        config = SamplerConfig(steps=options.steps, guidance_scale=scale)

        def ours(config: SamplerConfig = config) -> Tensor:
            return refiner.sample(refiner.condition(image, coarse), seeds, config)

        def theirs(config: SamplerConfig = config) -> Tensor:  # tile by tile too, as ours on the CPU
            return torch.cat([plain(refiner, image[i : i + 1], coarse[i : i + 1], seeds[i : i + 1], config) for i in range(n)])

        fast, slow = median_seconds(options.repeats, ours, theirs)
        per = n * options.steps / 1000
        print(f"guidance scale {scale}: plain {slow / per:7.2f} ms, cached {fast / per:7.2f} ms a tile and step, x{slow / fast:.2f}; "
              f"largest difference of probabilities {(ours() - theirs()).abs().max():.1e}")  # fmt: skip
        results[f"speedup_{name}"] = round(slow / fast, 3)
    if torch.cuda.is_available():
        results |= gpu(options.steps)
    print(json.dumps(results))


def gpu(steps: int) -> dict[str, float]:
    """Speed-ups on the GPU over fp32 without channels-last, one batch of 64 tiles."""
    config, n = SamplerConfig(steps=steps), 64
    image, coarse = torch.rand(n, 3, 128, 128, device="cuda") * 255, torch.rand(n, 2, 128, 128, device="cuda").softmax(1)
    times = {}
    for name, layout, dtype, compiled in (
        ("fp32", torch.contiguous_format, torch.float32, False),
        ("fp32_channels_last", torch.channels_last, torch.float32, False),
        ("bf16_channels_last", torch.channels_last, torch.bfloat16, False),
        ("bf16_channels_last_compile", torch.channels_last, torch.bfloat16, True),
    ):
        refiner = small_refiner().to("cuda").to(memory_format=layout)
        if compiled:
            refiner.denoiser.encode, refiner.denoiser.decode = (
                torch.compile(refiner.denoiser.encode),
                torch.compile(refiner.denoiser.decode),
            )

        def run(refiner: Refiner = refiner, dtype: torch.dtype = dtype) -> Tensor:
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                return refiner.sample(refiner.condition(image, coarse), list(range(n)), config)

        (times[name],) = median_seconds(5, run)
        print(f"GPU {name:28s} {times[name] / n / steps * 1e6:8.1f} us a tile and step")
    return {f"speedup_{name}": round(times["fp32"] / value, 3) for name, value in times.items() if name != "fp32"}


if __name__ == "__main__":
    main()
