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
from idgbr.train import Interrupted, read_curve, train
from idgbr.world import DistributedWorld


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
            run(root / f"{sharding}{size}-accumulate", sharding, norm=False, accumulate=2 if size == 2 else 1)
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
