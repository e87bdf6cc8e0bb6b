"""Training and sampling throughput of the refiner on one GPU: precision, memory format, compilation; small and Stable Diffusion size.

    python benchmarks/gpu.py                     every line, some minutes on one GPU; needs no Ray and reads no file
    python benchmarks/gpu.py --device cpu --small-only --images 16

Weights are random everywhere: time does not depend on them. Each line is the median of `--repeats` timed runs after a warm-up run that
also compiles. Memory is the peak that torch's allocator held.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from flops import stable_diffusion_shape
from refine import small_refiner
from torch import Tensor

from idgbr.config import SamplerConfig
from idgbr.refiner.loss import RefinerTraining
from idgbr.refiner.refiner import Refiner

MODES = (("fp32", torch.float32, False), ("bf16", torch.bfloat16, False), ("bf16_compile", torch.bfloat16, True))


def large_refiner(device: torch.device) -> Refiner:
    """Stable Diffusion 1.5 shape with random weights of a sane size, on `device`."""
    refiner = stable_diffusion_shape().to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for tensor in (*refiner.parameters(), *refiner.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(0, 0.02, generator=generator)
        for name in ("mean", "low"):
            getattr(refiner, name).fill_(0)
        for name in ("std", "high"):
            getattr(refiner, name).fill_(255)
    return refiner.to(memory_format=torch.channels_last)


def compiled(refiner: Refiner) -> None:
    for name in ("encode", "decode"):
        setattr(refiner.denoiser, name, torch.compile(getattr(refiner.denoiser, name)))


def batch_of(n: int, side: int, device: torch.device) -> dict[str, Tensor]:
    return {
        "image": torch.rand(n, 3, side, side, device=device) * 255,
        "coarse": torch.rand(n, 2, side, side, device=device).softmax(1),
        "target": torch.randint(0, 2, (n, side, side), device=device).to(torch.uint8),
        "valid": torch.ones(n, side, side, dtype=torch.bool, device=device),
        "seed": torch.arange(n),
    }


def timed(run: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds of a run, peak GiB (0 on the CPU)."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        if i:  # the first one warms up
            times.append(time.perf_counter() - start)
    return statistics.median(times), torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0


def measure(make: Callable[[], Refiner], name: str, n: int, side: int, options: argparse.Namespace) -> dict[str, float]:
    """Images a second of sampling (4 steps) and of training, by mode."""
    device, found = torch.device(options.device), {}
    config = SamplerConfig(steps=4)
    batch = batch_of(n, side, device)
    for mode, dtype, compile_it in MODES:
        refiner = make().eval()
        if compile_it:
            compiled(refiner)

        def sample(refiner: Refiner = refiner, dtype: torch.dtype = dtype) -> None:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                refiner.sample(refiner.condition(batch["image"], batch["coarse"]), list(range(n)), config)

        seconds, peak = timed(sample, device, options.repeats)
        found[f"{name}_sample_{mode}_images_per_s"] = n / seconds
        print(f"{name:6s} {mode:14s} sampling, 4 steps: {n / seconds:10.2f} images/s, {peak:6.2f} GiB", flush=True)
        training = RefinerTraining(refiner).train()
        optimizer = torch.optim.AdamW([p for p in training.parameters() if p.requires_grad], 1e-5)

        def step(training: RefinerTraining = training, optimizer: torch.optim.Optimizer = optimizer, dtype: torch.dtype = dtype) -> None:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss, _ = training(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimizer.step()

        seconds, peak = timed(step, device, options.repeats)
        found[f"{name}_train_{mode}_images_per_s"] = n / seconds
        print(f"{name:6s} {mode:14s} training:          {n / seconds:10.2f} images/s, {peak:6.2f} GiB", flush=True)
        del refiner, training, optimizer
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=256, help="images a batch at the small size")
    parser.add_argument("--large-images", type=int, default=4, help="images a batch at the Stable Diffusion size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small-only", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is visible to torch; on the CPU: --device cpu --small-only --images 16")
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", f"torch {torch.__version__}")
    found = measure(lambda: small_refiner().to(device), "small", options.images, 128, options)
    if not options.small_only:
        found |= measure(lambda: large_refiner(device), "sd15", options.large_images, 512, options)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
