"""What one job takes of a machine, how many may run at once, and what no node can hold. Pure arithmetic, no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from idgbr.errors import BadRequest, Missing

ROUNDING = 1e-9


@dataclass(frozen=True)
class Placement:
    """Shape of the work, and the cluster it is placed on.

    Raises:
        BadRequest: a shape that cannot be.
    """

    address: Annotated[str, arg(help="of a Ray cluster; empty: RAY_ADDRESS, or this machine alone")] = ""
    cpus: Annotated[float, arg(help="CPUs of one worker, and its torch threads")] = 1.0
    gpus: Annotated[float, arg(help="GPUs of one worker; below 1: several workers share a GPU")] = 0.0
    workers: Annotated[int, arg(help="workers that share one training, through Ray Train")] = 1
    min_workers: Annotated[int, arg(help="train with so few while the cluster has no more; 0: all of --workers")] = 0
    one_node: Annotated[bool, arg(help="all --workers of a training on one node (STRICT_PACK); it waits until one is free")] = False
    concurrency: Annotated[int, arg(help="jobs at once at most; 0: as many as fit")] = 0
    sharding: Annotated[str, arg(help="ddp or fsdp; empty: what the recipe says")] = ""
    device: str = "auto"
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.gpus < 0 or self.workers < 1 or self.concurrency < 0:
            raise BadRequest(
                "a job's shape is positive",
                value=f"cpus={self.cpus}, gpus={self.gpus}, workers={self.workers}, concurrency={self.concurrency}",
            )
        if not 0 <= self.min_workers <= self.workers:
            raise BadRequest("--min-workers lies outside 0 to --workers", value=self.min_workers, allowed=f"0 to {self.workers}")
        if self.one_node and (self.workers == 1 or self.min_workers):
            raise BadRequest(
                "--one-node is for trainings of a fixed number of --workers, more than one",
                value=f"workers={self.workers}, min_workers={self.min_workers}",
            )
        if self.gpus % 1 and (self.gpus > 1 or self.workers > 1):
            raise BadRequest(
                "only one worker alone can take a part of a GPU", value=f"gpus={self.gpus}, workers={self.workers}",
                allowed="a whole number of GPUs, or below 1 with --workers 1",
            )  # fmt: skip

    @property
    def least(self) -> int:
        """Workers without which a training does not start."""
        return self.min_workers or self.workers

    @property
    def precision(self) -> str:
        """Of the workers' runtime."""
        return "bf16" if self.bf16 else "fp32"

    @property
    def shape(self) -> dict[str, float]:
        """CPUs and GPUs of one worker, by Ray's names."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def threads(self) -> int:
        """Torch threads of one worker on a CPU."""
        return max(1, math.floor(self.cpus))

    def fitting(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many workers of this shape fit on these nodes at once: the floor of each node, summed.

        Args:
            nodes: resources of each living node, e.g. {"CPU": 8.0, "GPU": 2.0}.
        """
        return sum(min(_times(name, need, node.get(name, 0.0)) for name, need in self.shape.items()) for node in nodes)

    def whole(self, nodes: Sequence[Mapping[str, float]]) -> int | None:
        """How many trainings over several workers fit on these nodes at once, each on one of them; None: any nodes do."""
        return sum(self.fitting([node]) // self.workers for node in nodes) if self.one_node else None

    @property
    def cpu_shape(self) -> dict[str, float]:
        """Of a unit that needs no GPU, where others take one."""
        return {"CPU": min(1.0, self.cpus)}

    def beside(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many units without a GPU fit beside as many workers as fit; 0 where workers take no GPU."""
        if not self.gpus:
            return 0
        need = self.cpu_shape["CPU"]
        found = sum(_times("CPU", need, node.get("CPU", 0.0) - self.fitting([node]) * self.cpus) for node in nodes)
        return min(found, self.concurrency) if self.concurrency else found


def _times(name: str, need: float, there: float) -> int:
    """How often `need` fits into what a node has.

    A part of a GPU lies on one GPU: 0.6 fits once on each, not 13 times on 8.
    """
    if name == "GPU" and need < 1:
        return math.floor(there + ROUNDING) * math.floor(1 / need + ROUNDING)
    return math.floor(there / need + ROUNDING)


def slots(placement: Placement, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers of this shape may be busy at once: as many as fit, or `concurrency`.

    Raises:
        Missing: no node can hold one worker, or the cluster cannot hold one training.
    """
    total = placement.fitting(nodes)
    if not total:
        for name, need in placement.shape.items():
            largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
            if largest < need:
                flag = {"CPU": "--cpus", "GPU": "--gpus"}[name]
                raise Missing(
                    f"a job needs {need:g} {name}s on one node; the cluster's largest node has {largest:g}",
                    value=f"{len(nodes)} nodes",
                    hint=f"{flag} {largest:g}" if largest else f"nodes with {name}s" + (f", or {flag} 0" if name == "GPU" else ""),
                )
        raise Missing(f"no node holds {placement.shape} together", value=f"{len(nodes)} nodes", hint="fewer --cpus or --gpus a job")
    if placement.least > total:
        raise Missing(
            f"a training over {placement.least} workers needs {placement.least} places of {placement.shape}; the cluster has {total}",
            hint=f"--workers {total}, or more nodes",
        )
    if placement.whole(nodes) == 0:
        most = max(placement.fitting([node]) for node in nodes)
        raise Missing(
            f"a training over {placement.workers} workers on one node needs {placement.workers} places of {placement.shape} there",
            value=f"the largest node has {most}", hint=f"--workers {most}, or without --one-node",
        )  # fmt: skip
    return min(total, max(placement.concurrency, placement.workers)) if placement.concurrency else total
