"""What runs in the processes of test_several_processes.py: `python worlds.py FOLDER` imports torch once and forks."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from idgbr.config import Runtime
from idgbr.errors import Interrupted
from idgbr.training.curve import read_curve
from idgbr.training.distributed import DistributedWorld
from idgbr.training.loop import train


@dataclasses.dataclass(frozen=True)
class Settings:
    batch_images: int = 6
    accumulate: int = 1
    train_images: int = 60
    lr: float = 1e-2
    weight_decay: float = 0.01
    warmup_images: int = 12
    clip_norm: float = 1.0
    ema_images: float = 20.0
    checkpoint_images: int = 1000


class Samples(torch.utils.data.Dataset):
    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        image = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(i)) * (1 + i % 3)
        return {"image": image, "target": (image.mean(0) > 0).long()}


class Toy(nn.Module):
    """Batch norm, a block list (units of FSDP), and a buffer."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [
            nn.Sequential(nn.Conv2d(n, 8, 3, padding=1, bias=not norm), nn.BatchNorm2d(8) if norm else nn.GroupNorm(2, 8), nn.ReLU())
            for n in (3, 8)
        ]
        self.network = nn.Sequential(*blocks, nn.Conv2d(8, 2, 1))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = nn.functional.cross_entropy(self.network(batch["image"]), batch["target"], reduction="none").mean((1, 2))
        return loss, {"twice": 2 * loss}


class RefinerSamples(torch.utils.data.Dataset):
    """All that a refiner's batch holds, from the index alone."""

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(i)
        image = torch.rand(3, 32, 32, generator=g) * 255
        target = (image.mean(0) > 128).to(torch.uint8)
        coarse = torch.rand(2, 32, 32, generator=g).softmax(0)
        return {"image": image, "target": target, "coarse": coarse, "valid": torch.ones(32, 32, dtype=torch.bool), "seed": torch.tensor(i),
                "index": torch.tensor(i)}  # fmt: skip


def small_refiner() -> nn.Module:
    from idgbr.config import RefinerConfig
    from idgbr.datasets import BandStats
    from idgbr.labels import ClassTable, LabelClass
    from idgbr.refiner.loss import RefinerTraining
    from idgbr.refiner.refiner import Refiner

    config = RefinerConfig(
        channels=(16, 32), condition_channels=(16, 32), guidance_width=16, guidance_heads=2, crop_px=32, train_timesteps=100
    )
    table = ClassTable((LabelClass("ground", (0,), (0, 0, 0)), LabelClass("roof", (1,), (255, 0, 0))))
    torch.manual_seed(0)
    return RefinerTraining(Refiner.build(config, 3, table, BandStats((128.0,) * 3, (70.0,) * 3, (0.0,) * 3, (255.0,) * 3)))


def run_refiner(out: Path, world: Any = None) -> None:
    settings = Settings(train_images=24, lr=1e-3)
    train(small_refiner(), RefinerSamples(), settings, seed=2, out=out, world=world, runtime=Runtime(device="cpu", threads=1))


def run(out: Path, sharding: str, norm: bool = True, accumulate: int = 1, scratch: Path | None = None, stop_at: int = -1) -> None:
    polls = iter(range(10_000))
    try:
        train(Toy(norm), Samples(), Settings(accumulate=accumulate), seed=2, out=out, scratch=scratch, world=DistributedWorld(sharding),
              runtime=Runtime(device="cpu", threads=1), stop=lambda: next(polls) == stop_at)  # fmt: skip
    except Interrupted:
        if stop_at < 0:
            raise


def main(rank: int, root: Path) -> None:
    """Four processes, then two of them: every case of the test in one start of Pythons."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for size in (4, 2):
        if rank >= size:
            return
        store = torch.distributed.FileStore(str(root / f"store{size}"), size)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=90))
        for sharding in ("ddp", "fsdp"):
            run(root / f"{sharding}{size}", sharding)
            run(root / f"{sharding}{size}-accumulate", sharding, norm=False, accumulate=2)
            if size == 2:
                run_refiner(root / f"refiner-{sharding}", DistributedWorld(sharding))
        if size == 4:
            run(root / "never", "fsdp", scratch=root / "scratch", stop_at=3)
        else:
            run(root / "never", "ddp", scratch=root / "scratch", stop_at=2)
        torch.distributed.destroy_process_group()


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_curve(folder)]


def state(scratch: Path) -> dict[str, Any]:
    return json.loads(next(scratch.glob("checkpoint-*/state.json")).read_text())


if __name__ == "__main__":
    torch.set_num_threads(1)  # no thread pool may be alive at the fork
    torch.multiprocessing.start_processes(main, args=(Path(sys.argv[1]),), nprocs=4, start_method="fork")
