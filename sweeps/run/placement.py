"""What one job takes of a machine, how many may run at once, and what no node can hold. Pure arithmetic, no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idgbr.errors import BadRequest, Missing


@dataclass(frozen=True)
class Placement:
    """Shape of the work.

    Args:
        address: of a running Ray cluster; empty: `RAY_ADDRESS`, else a cluster of this machine alone, started and ended with the run.
        cpus, gpus: of one worker. cpus also sets its torch threads.
        workers: that share one training, through Ray Train; 1: none of that.
        concurrency: jobs at once at most; 0: as many as fit.
        sharding: ddp or fsdp, with several workers.
        device, precision: see `Runtime`.
        max_failures: how often a unit is tried again after its worker or node was lost.
    """

    address: str = ""
    cpus: float = 1.0
    gpus: float = 0.0
    workers: int = 1
    concurrency: int = 0
    sharding: str = "ddp"
    device: str = "auto"
    precision: str = "fp32"
    max_failures: int = 2

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.gpus < 0 or self.workers < 1 or self.concurrency < 0:
            raise BadRequest(
                "a job's shape is positive",
                value=f"cpus={self.cpus}, gpus={self.gpus}, workers={self.workers}, concurrency={self.concurrency}",
            )

    @property
    def shape(self) -> dict[str, float]:
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def threads(self) -> int:
        return max(1, math.floor(self.cpus))


def slots(placement: Placement, nodes: Sequence[Mapping[str, Any]]) -> int:
    """How many workers of this shape fit on the cluster at once: floor by node, summed.

    Args:
        nodes: resources of each living node, e.g. {"CPU": 8.0, "GPU": 2.0}.

    Raises:
        Missing: no node can hold one worker, or the cluster cannot hold one training.
    """
    fits = [min(math.floor(node.get(name, 0.0) / need + 1e-9) for name, need in placement.shape.items()) for node in nodes]
    total = sum(fits)
    if not total:
        for name, need in placement.shape.items():
            largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
            if largest < need:
                flag = {"CPU": "--cpus", "GPU": "--gpus"}[name]
                raise Missing(
                    f"a job needs {need:g} {name}s on one node; the cluster's largest node has {largest:g}",
                    value=f"{len(nodes)} nodes",
                    hint=f"{flag} {max(largest, 0):g}" if largest else f"nodes with {name}s, or {flag} 0",
                )
        raise Missing(f"no node holds {placement.shape} together", value=f"{len(nodes)} nodes", hint="fewer --cpus or --gpus a job")
    if placement.workers > total:
        raise Missing(
            f"a training over {placement.workers} workers needs {placement.workers} places of {placement.shape}; the cluster has {total}",
            hint=f"--workers {total}, or more nodes",
        )
    return min(total, max(placement.concurrency, placement.workers)) if placement.concurrency else total
