"""Which samples a rank sees in which step, and their loading. The global batch is the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor


class Samples(Protocol):
    """`samples[i]` is the i-th image ever seen: a dict of tensors of one shape."""

    def __getitem__(self, i: int) -> dict[str, Tensor]: ...

    def __len__(self) -> int: ...


def slice_of(step: int, batch: int, rank: int, size: int) -> range:
    """Indices of a rank's samples in a step: contiguous, sizes differ by at most one."""
    return range(step * batch + rank * batch // size, step * batch + (rank + 1) * batch // size)


def micro_batches(batch: int, size: int, accumulate: int, micro_images: int = 0) -> int:
    """Micro-batches of a step, the same on all ranks: at least `accumulate`, and so many that none has more than
    `micro_images` (0: any).

    Never more than the images of the rank that has fewest: FSDP and batch norm run collectives in every micro-batch.
    """
    largest = -(-batch // size)
    return min(max(accumulate, -(-largest // micro_images) if micro_images else 1), max(1, batch // size))


def batches(samples: Samples, plan: Plan, seed: int, workers: int, pin_memory: bool) -> Iterator[list[dict[str, Tensor]]]:
    """Per step: the rank's micro-batches, from this process or from `workers` loader processes."""
    loader: torch.utils.data.DataLoader[dict[str, Tensor]] = torch.utils.data.DataLoader(
        samples,  # type: ignore[arg-type]  # a torch Dataset in all but name
        batch_sampler=plan,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,  # rasterio and CUDA do not survive a fork
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),  # the loader must not draw from the generator of the steps
    )
    found = iter(loader)
    for _ in range(plan.first, plan.steps):
        yield [next(found) for _ in range(plan.pieces)]


class Plan:
    """Indices of the rank's micro-batches, from step to step (a batch sampler)."""

    def __init__(self, first: int, steps: int, batch: int, rank: int, size: int, pieces: int):
        self.first, self.steps, self.batch, self.rank, self.size, self.pieces = first, steps, batch, rank, size, pieces

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.steps):
            mine = slice_of(step, self.batch, self.rank, self.size)
            for n in range(self.pieces):
                yield list(mine[n * len(mine) // self.pieces : (n + 1) * len(mine) // self.pieces])

    def __len__(self) -> int:
        return (self.steps - self.first) * self.pieces
