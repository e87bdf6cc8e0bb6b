"""What Ray Train costs, what a second worker brings, what FSDP saves; and a model of training at the size of Stable Diffusion 1.5.

    python benchmarks/scaling.py            measure on this machine (some minutes), print the model, end with one JSON line
    python benchmarks/scaling.py --model    the model alone: tables of docs/scaling.md, no torch, no Ray

Measured: ray_overhead = seconds of the training loop under Ray Train with one worker / in the bare loop, without start-up;
efficiency_2 = seconds with one worker / (2 x seconds with two), one thread each, same global batch; startup_s = wall time of a
one-worker training through Ray that is not the loop; fsdp_memory = resident bytes above the start, FSDP / DDP, two ranks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# ---- the model (docs/scaling.md derives it) --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A training: trainable parameters, FLOPs of one image (forward and backward), other bytes a GPU holds."""

    parameters: float
    flop_image: float
    frozen_parameters: float = 0.0


@dataclass(frozen=True)
class Machine:
    """Peak dense bf16 FLOP/s, share reached, GPUs a node, one-way bytes/s of a GPU in the node and of a node's network, share reached."""

    name: str
    peak: float
    mfu: float
    node_gpus: int
    link: float
    network: float
    reached: float = 0.8
    latency_s: float = 15e-6  # of one hop of a collective


REFINER = Network(parameters=965.7e6, flop_image=3_719e9, frozen_parameters=348.7e6)  # attention alive, latents cached
SD2 = Network(parameters=866e6, flop_image=3 * 803e9)  # the U-Net alone, as MosaicML trained it, latents cached
H100_IB = Machine("H100, 8 a node, NVLink, 8 x 400 Gb/s", 989e12, 0.35, 8, 450e9, 400e9)
H100_100G = Machine("H100, 8 a node, NVLink, 1 x 100 Gb/s", 989e12, 0.35, 8, 450e9, 12.5e9)
A100_IB = Machine("A100, 8 a node, NVLink, 8 x 200 Gb/s", 312e12, 0.28, 8, 300e9, 200e9)

BUCKET_BYTES = 25 * 2**20  # DDP's
BACKWARD = 2 / 3  # of the compute, during which gradients travel


def bytes_step(network: Network, gpus: int) -> float:
    """Bytes each GPU sends in a step. DDP: all-reduce of fp32 gradients, 2 (n-1)/n x 4 P. FSDP in bf16: two gathers of 2 P and one
    reduce-scatter of 4 P, times (n-1)/n: the same 8 P (n-1)/n."""
    return 8 * network.parameters * (gpus - 1) / gpus


def step_seconds(network: Network, machine: Machine, gpus: int, images_gpu: float) -> tuple[float, float, float]:
    """(compute, communication, step): communication hides behind the backward pass except for the last bucket."""
    compute = images_gpu * network.flop_image / (machine.peak * machine.mfu)
    if gpus == 1:
        return compute, 0.0, compute
    speed = machine.link * machine.reached
    if gpus > machine.node_gpus:  # a ring over nodes is as fast as its slowest part: the node's network, shared by nothing else
        speed = min(speed, machine.network * machine.reached)
    buckets = math.ceil(4 * network.parameters / BUCKET_BYTES)
    talk = bytes_step(network, gpus) / speed + buckets * 2 * math.log2(gpus) * machine.latency_s
    shown = max(talk / buckets, talk - BACKWARD * compute)
    return compute, talk, compute + shown


def efficiency(network: Network, machine: Machine, gpus: int, images_gpu: float) -> float:
    """Images per second and GPU against one GPU with the same images."""
    compute, _, step = step_seconds(network, machine, gpus, images_gpu)
    return compute / step


def memory_gb(network: Network, gpus: int, sharding: str) -> float:
    """Weights, gradients, two moments and the average in fp32 (20 bytes a parameter) and frozen weights in bf16; no activations."""
    states = 20 * network.parameters / (gpus if sharding == "fsdp" else 1)
    return (states + 2 * network.frozen_parameters) / 1e9


def print_model() -> None:
    print("Refiner of Stable Diffusion 1.5's size, 512 px, cached latents, bf16: predicted")
    print(
        f"{'machine':40} {'GPUs':>5} {'images/GPU':>10} {'GB sent':>8} {'compute ms':>10} {'talk ms':>8} {'efficiency':>10} {'images/s':>9}"
    )
    for machine in (H100_IB, H100_100G):
        for gpus in (8, 64, 512):
            for images in (64, 16, 8, 4, 1):
                compute, talk, step = step_seconds(REFINER, machine, gpus, images)
                print(
                    f"{machine.name:40} {gpus:5d} {images:10g} {bytes_step(REFINER, gpus) / 1e9:8.2f} {1e3 * compute:10.1f} "
                    f"{1e3 * talk:8.1f} {compute / step:10.2f} {gpus * images / step:9.0f}"
                )
    print(f"Memory of a GPU without activations, GB: DDP {memory_gb(REFINER, 8, 'ddp'):.1f}", end="")
    print("; FSDP on 8, 64, 512:", ", ".join(f"{memory_gb(REFINER, n, 'fsdp'):.1f}" for n in (8, 64, 512)))
    print("Check: Stable Diffusion 2 U-Net at 512 px on A100s, global batch 2048, images/s measured by MosaicML and predicted")
    for gpus, measured in ((8, 290), (16, 585), (32, 1195), (64, 2340), (128, 4590)):
        images = 2048 / gpus
        print(f"  {gpus:4d} GPUs  measured {measured:5d}  predicted {2048 / step_seconds(SD2, A100_IB, gpus, images)[2]:6.0f}")


# ---- measurements ----------------------------------------------------------------------------------------------------------


def loop_seconds(folder: Path) -> float:
    """Of the training loop, from its curve; the first line, with its warm-up, left out."""
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return sum((b["images"] - a["images"]) / b["images_per_s"] for a, b in itertools.pairwise(lines))


def measure_ray(images: int) -> dict[str, float]:
    from cluster.session import connected
    from cluster.train import RayTraining
    from idgbr import stages
    from idgbr.config import Experiment, Runtime, apply
    from idgbr.store import Store

    overrides = {
        "data.train_scenes": 4, "data.val_scenes": 1, "data.test_scenes": 0, "backbone.encoder": "resnet18", "backbone.decoder": "fpn",
        "backbone.crop_px": 96, "backbone.batch_images": 32, "backbone.train_images": images, "backbone.warmup_images": 160,
        "coarse.source": "in_fold",
    }  # fmt: skip
    experiment = apply(Experiment(), overrides)
    runtime = Runtime(device="cpu", threads=1)
    data, job = stages.jobs(experiment)[:2]
    seconds: dict[str, list[float]] = {"bare": [], "one": [], "two": []}
    startup = []
    with tempfile.TemporaryDirectory(prefix="idgbr-") as folder:
        store = Store(Path(folder) / "store")
        stages.run(data, store, experiment)
        with connected():
            for turn in range(2):  # in turns, so that a machine that changes its speed changes all of them
                out = Path(folder) / f"bare{turn}"
                stages.train_stage(job, store, experiment, out, runtime=runtime, scratch=out / "scratch")
                seconds["bare"].append(loop_seconds(out))
                for name, workers in (("one", 1), ("two", 2)):
                    out = Path(folder) / f"{name}{turn}"
                    out.mkdir()
                    started = time.monotonic()
                    RayTraining(workers)(job, store, experiment, out, runtime=runtime)
                    spent = time.monotonic() - started
                    store.delete(stages.scratch_name(job))  # else the next run would find this one finished
                    seconds[name].append(loop_seconds(out))
                    if workers == 1:
                        startup.append(spent - seconds[name][-1])
                print({name: [round(s, 1) for s in values] for name, values in seconds.items()}, flush=True)
    bare, one, two = (min(seconds[name]) for name in ("bare", "one", "two"))
    return {"ray_overhead": one / bare, "efficiency_2": one / (2 * two), "startup_s": sum(startup) / len(startup)}


MEMORY = """
import ctypes, gc, json, os, sys, torch
from torch import nn
from datetime import timedelta
from pathlib import Path
from idgbr.training.distributed import DistributedWorld
from idgbr.config import Runtime

def resident():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed but is kept by the allocator is nobody's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024

class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(*[nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()) for _ in range(int(sys.argv[3]))])
    def forward(self, x):
        return self.network(x).square().mean()

def main(rank, root, sharding):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(root + "/store", 2), rank=rank, world_size=2)
    before = resident()
    module = Toy()
    wrapped = DistributedWorld(sharding).wrap(module, Runtime(device="cpu"))
    optimizer = torch.optim.AdamW(module.parameters())
    for _ in range(3):
        wrapped(torch.randn(4, 1024)).backward()
        optimizer.step()
    if rank == 0:
        Path(root, "bytes").write_text(str(resident() - before))
    torch.distributed.barrier()

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.multiprocessing.start_processes(main, args=(sys.argv[1], sys.argv[2]), nprocs=2, start_method="fork")
"""


def measure_memory(layers: int = 40) -> dict[str, float]:
    """Two ranks, a network of some 42 million parameters (layers x 1.05 million)."""
    found = {}
    for sharding in ("ddp", "fsdp"):
        with tempfile.TemporaryDirectory(prefix="idgbr-") as folder:
            script = Path(folder) / "memory.py"
            script.write_text(MEMORY)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, str(script), folder, sharding, str(layers)], check=True, env=environment)
            found[sharding] = float((Path(folder) / "bytes").read_text())
            print(f"{sharding}: {found[sharding] / 1e6:.0f} MB a rank, {layers * 1.0496:.0f} million parameters", flush=True)
    return {"ddp_mb": found["ddp"] / 1e6, "fsdp_mb": found["fsdp"] / 1e6, "fsdp_memory": found["fsdp"] / found["ddp"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="store_true", help="the model alone")
    parser.add_argument("--images", type=int, default=1600, help="of each training")
    given = parser.parse_args()
    print_model()
    if given.model:
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = {**measure_memory(), **measure_ray(given.images)}
    print(json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
