"""Training and sampling throughput of the refiner on one GPU, and what training ten times as long as on two CPU cores buys.

    python benchmarks/gpu.py                     throughput, then the training; under 8 minutes on an H100; needs no Ray
    python benchmarks/gpu.py --no-training       throughput only: reads no file and needs neither rasterio nor segmentation-models
    python benchmarks/gpu.py --sizes sd15 --modes fp32,bf16 --no-training     one size, some modes: a minute
    python benchmarks/gpu.py --device cpu --sizes small --images 16 --no-training

Throughput: weights are random, time does not depend on them. Each line is the median of `--repeats` timed runs after a warm-up run
that also compiles. Every mode is compared with `plain`: the same maths in fp32 without cached conditions and without channels-last, in
the same run. Share of peak: counted FLOPs (2 a multiply-add) a second over the card's dense peak for that precision; for cards that are
not in `PEAK_TFLOPS` it is left out. Memory is the peak that torch's allocator held.

Training: the recipe `naip_fields` with the CPU budget and with ten times its refiner images, both scored on the validation places.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from flops import stable_diffusion_shape
from refine import plain, small_refiner
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from idgbr.config import SamplerConfig
from idgbr.refiner.loss import RefinerTraining
from idgbr.refiner.refiner import Refiner

MODES = (
    ("fp32", torch.float32, False),
    ("tf32", torch.float32, False),
    ("bf16", torch.bfloat16, False),
    ("bf16_compile", torch.bfloat16, True),
)
# Dense, without sparsity, as NVIDIA's data sheets give them (SXM): fp32 outside tensor cores, TF32 and BF16 inside.
PEAK_TFLOPS = {
    "H100": {"fp32": 67, "tf32": 494, "bf16": 989},
    "H200": {"fp32": 67, "tf32": 494, "bf16": 989},
    "A100": {"fp32": 19.5, "tf32": 156, "bf16": 312},
}
STEPS = 4


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


def tflop(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


def peak_of(device: torch.device, mode: str) -> float | None:
    """Dense TFLOP/s of this card in this mode; None where the card is not listed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    card = next((peaks for card, peaks in PEAK_TFLOPS.items() if card in name), {})
    return card.get(mode.partition("_")[0])


class Lines:
    """Prints a line a measurement and keeps it for the JSON object."""

    def __init__(self, device: torch.device):
        self.device, self.values = device, {}

    def add(self, name: str, n: int, seconds: float, gib: float, work_tflop: float, mode: str) -> None:
        self.values[f"{name}_images_per_s"] = n / seconds
        peak = peak_of(self.device, mode)
        share = "" if peak is None else f", {work_tflop / seconds / peak:6.1%} of peak"
        if peak is not None:
            self.values[f"{name}_share_of_peak"] = work_tflop / seconds / peak
        if gib:
            self.values[f"{name}_gib"] = gib
        print(f"{name:36s} {n / seconds:10.2f} images/s, {gib:6.2f} GiB{share}", flush=True)


def measure(make: Callable[[], Refiner], name: str, n: int, side: int, options: argparse.Namespace) -> dict[str, float]:
    """Images a second of sampling and of training, by mode."""
    device = torch.device(options.device)
    lines, config, batch = Lines(device), SamplerConfig(steps=STEPS), batch_of(n, side, device)
    seeds = list(range(n))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # torch lets convolutions use it by default
    refiner = make().to(memory_format=torch.contiguous_format).eval()
    render = partial(plain, refiner, batch["image"], batch["coarse"], seeds, config)
    reference, gib = timed(render, device, options.repeats)
    lines.add(f"{name}_sample_plain", n, reference, gib, tflop(render), "fp32")
    sampling = tflop(lambda r=refiner: r.sample(r.condition(batch["image"], batch["coarse"]), seeds, config))  # type: ignore[misc]
    del refiner, render
    work = 0.0
    for mode, dtype, compile_it in (m for m in MODES if m[0] in options.modes):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode != "fp32"
        refiner = make().eval()
        if compile_it:
            compiled(refiner)

        def sample(refiner: Refiner = refiner, dtype: torch.dtype = dtype) -> None:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                refiner.sample(refiner.condition(batch["image"], batch["coarse"]), seeds, config)

        seconds, gib = timed(sample, device, options.repeats)
        lines.add(f"{name}_sample_{mode}", n, seconds, gib, sampling, mode)
        lines.values[f"{name}_sample_{mode}_speedup"] = reference / seconds
        training = RefinerTraining(refiner).train()
        optimizer = torch.optim.AdamW([p for p in training.parameters() if p.requires_grad], 1e-5, fused=device.type == "cuda")

        def step(training: RefinerTraining = training, optimizer: torch.optim.Optimizer = optimizer, dtype: torch.dtype = dtype) -> None:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss, _ = training(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.mean().backward()
            optimizer.step()

        seconds, gib = timed(step, device, options.repeats)
        if not compile_it:  # a compiled graph hides its operators from the counter, but computes the same
            work = tflop(step)
        lines.add(f"{name}_train_{mode}", n, seconds, gib, work, mode)
        del refiner, training, optimizer
    return lines.values


def trained(options: argparse.Namespace) -> dict[str, float]:
    """Boundary IoU and mIoU on the validation places of naip_fields: coarse, and refined after 1x and 10x the CPU budget."""
    from idgbr import stages
    from idgbr.config import Runtime
    from idgbr.recipes import recipe
    from idgbr.scores import evaluate, read_counts
    from idgbr.store import Store

    store = Store(options.store or tempfile.mkdtemp(prefix="idgbr-gpu-"))
    runtime = Runtime(device=options.device, precision="bf16")
    found: dict[str, float] = {}
    base = recipe("naip_fields")
    arms = {"coarse": replace(base, refiner=replace(base.refiner, kind="none"))}
    for times in (1, 10):
        longer = replace(base.refiner, train_images=base.refiner.train_images * times)
        arms[f"diffusion_{times}x"] = replace(base, refiner=longer)
    for name, experiment in arms.items():
        start = time.perf_counter()
        for job in stages.jobs(experiment):
            stages.run(job, store, experiment, runtime)
        counts = read_counts(store.path("counts", stages.jobs(experiment)[-1].key) / "counts.parquet")
        for metric in ("miou", "boundary_iou"):
            found[f"naip_{name}_{metric}"] = float(evaluate(counts, metric).score)
        found[f"naip_{name}_seconds"] = time.perf_counter() - start
        print(
            f"naip_fields {name:14s} " + ", ".join(f"{k.rpartition(name + '_')[2]} {v:.4g}" for k, v in found.items() if f"_{name}_" in k),
            flush=True,
        )
    return found


def names(*allowed: str) -> Callable[[str], list[str]]:
    """Reads a list of names separated by commas."""

    def read(text: str) -> list[str]:
        found = text.split(",")
        if not set(found) <= set(allowed):
            raise argparse.ArgumentTypeError(f"{text}; allowed: {', '.join(allowed)}")
        return found

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=256, help="images a batch at the small size")
    parser.add_argument("--large-images", type=int, default=4, help="images a batch at the Stable Diffusion size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=names("small", "sd15"), default=["small", "sd15"], help="small, sd15")
    parser.add_argument("--modes", type=names(*(m[0] for m in MODES)), default=[m[0] for m in MODES], help=", ".join(m[0] for m in MODES))
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--store", default="", help="of the training; empty: a temporary folder")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is visible to torch; on the CPU: --device cpu --sizes small --images 16 --no-training")
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", f"torch {torch.__version__}")
    found: dict[str, float] = {}
    if "small" in options.sizes:
        found |= measure(lambda: small_refiner().to(device), "small", options.images, 128, options)
    if "sd15" in options.sizes:
        found |= measure(lambda: large_refiner(device), "sd15", options.large_images, 512, options)
    if not options.no_training:
        found |= trained(options)
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()
