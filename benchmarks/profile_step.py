"""Where the time of a training step of the refiner goes: operators by their own time, and the share outside
convolutions and matrix products.

    python benchmarks/profile_step.py [RECIPE] [stage.field=value ...] [--steps 8] [--device cpu] [--precision fp32]

The real training loop (`idgbr.training.loop.train`: forward and backward pass, clipping, AdamW, average of weights) on
crops that cost nothing to read. On a GPU times are those of kernels; `busy` says which share of the time on the
clock they fill.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from idgbr.config import RefinerConfig, Runtime
from idgbr.datasets import BandStats
from idgbr.labels import ClassTable, LabelClass
from idgbr.recipes import experiment
from idgbr.refiner.loss import Numbered, RefinerTraining
from idgbr.refiner.refiner import Refiner
from idgbr.training.distributed import device_of
from idgbr.training.loop import World, train

WARM = 3
PRODUCTS = ("convolution", "conv2d", "mm", "addmm", "bmm", "baddbmm", "linear", "dot_product", "attention")


class SameCrops:
    """A pool of crops, made before."""

    def __init__(self, side: int, n_classes: int, n: int):
        g = torch.Generator().manual_seed(0)
        self.rows = [
            {
                "image": torch.rand(3, side, side, generator=g) * 255,
                "coarse": torch.rand(n_classes, side, side, generator=g).softmax(0),
                "target": torch.randint(0, n_classes, (side, side), generator=g).to(torch.uint8),
                "valid": torch.ones(side, side, dtype=torch.bool),
                "seed": torch.tensor(i),
            }
            for i in range(n)
        ]

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.rows[i % len(self.rows)]


def profiled(config: RefinerConfig, runtime: Runtime, n_classes: int, steps: int) -> tuple[Counter[str], float]:
    """(seconds of every operator's own work, seconds on the clock) of `steps` steps."""
    table = ClassTable(tuple(LabelClass(f"class{i}", (i,), (i, i, i)) for i in range(n_classes)))
    refiner = Refiner.build(config, 3, table, BandStats((127.0,) * 3, (50.0,) * 3, (0.0,) * 3, (255.0,) * 3))
    stream = Numbered(SameCrops(config.crop_px, n_classes, 2 * config.batch_images))
    cuda = device_of(runtime).type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    marks: list[float] = []

    found: list[Any] = []

    def keep(profiler: profile) -> None:
        found.extend(profiler.key_averages())

    timing = schedule(wait=0, warmup=WARM, active=steps, repeat=1)
    with tempfile.TemporaryDirectory() as folder, profile(activities=activities, schedule=timing, on_trace_ready=keep) as profiler:

        def between_steps() -> bool:
            if cuda:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            profiler.step()
            return False

        train(RefinerTraining(refiner), stream, config, seed=0, out=Path(folder) / "out", scratch=Path(folder) / "scratch",
              world=World(), runtime=runtime, report=None, stop=between_steps)  # fmt: skip
    own: Counter[str] = Counter()
    for event in found:
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        if event.key.startswith("aten::") or "fused" in event.key.lower():
            own[event.key.removeprefix("aten::")] += microseconds / 1e6
    return own, marks[WARM + steps - 1] - marks[WARM - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="naip_fields")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    config = experiment(options.recipe, (f"refiner.train_images={10**6}", *options.overrides)).refiner
    images = config.batch_images * (WARM + options.steps + 1)
    config = dataclasses.replace(config, train_images=images, checkpoint_images=10**9, held_out=0.0)
    runtime = Runtime(device=options.device, precision=options.precision, threads=options.threads)
    own, clock = profiled(config, runtime, options.classes, options.steps)
    total = sum(own.values())
    products = sum(seconds for name, seconds in own.items() if any(word in name for word in PRODUCTS))
    print(f"{options.recipe} {' '.join(options.overrides)}: batches of {config.batch_images}, {config.crop_px} px, {options.steps} steps")
    for name, seconds in own.most_common(16):
        print(f"  {name:<44} {seconds / options.steps * 1e3:9.2f} ms a step {100 * seconds / total:6.1f} %")
    result = {
        "ms_a_step": round(clock / options.steps * 1e3, 2),
        "busy": round(total / clock, 3),
        "outside_products": round(1 - products / total, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
